"""Writes programs as a TensorFlow SavedModel, by `jax.experimental.jax2tf` (TensorFlow is imported only here).

Each program becomes one `XlaCallModule` operation that holds its StableHLO: TensorFlow, TensorFlow Serving and their
XLA run it. TensorFlow Lite's converter takes the signatures, whose shapes are fixed to one video; TensorFlow.js does
not know the operation.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.deploy import stablehlo
from dvsnas_jax.infer import programs

SERVING = "serving_default"
"""The signature that segments the next frame."""
_PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: str | os.PathLike[str], model: programs.Model) -> None:
    """Writes a SavedModel whose object has each program as a method, and `initial_state() -> state` of one video.

    Its programs have the layers of a CPU, which run on all platforms. Each has a serving signature of its name, for one
    video; `serving_default` segments the next frame of a video and decides itself whether it is a key frame. A
    TensorFlow Lite file that is converted from it has them all, but in propagate mode `serving_default` does not run
    there: see `lite_signatures`.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf, made = _tensorflow("--savedmodel"), programs.make(model)
    signatures = {**made, SERVING: programs.next_frame(model)}
    module = _module(tf, signatures)
    with compilation.target(stablehlo.BACKENDS["cpu"]):
        for name, program in made.items():
            call = stablehlo.exported(program, "cpu", _PLATFORMS).call
            shapes = ["b, ..." if program.is_batched else None for _ in program.args]
            bound = _bound(module, program, call, shapes, _PLATFORMS)
            specs = jax.tree.map(functools.partial(_spec, tf, program), list(program.args))
            setattr(module, name, tf.function(bound, input_signature=specs, autograph=False))
        constants = {name: tf.constant(np.asarray(x)) for name, x in model.initial_state().items()}
        module.initial_state = tf.function(lambda: dict(constants), input_signature=[], autograph=False)
        signed = _sign(tf, module, signatures, _PLATFORMS)
        tf.saved_model.save(module, os.fspath(path), signatures=signed)


def lite_signatures(model: programs.Model) -> dict[str, programs.Program]:
    """What a TensorFlow Lite file of a model has: its programs.

    In propagate mode it has no `serving_default`: where a branch leaves an argument unused, the converter (2.21) writes
    the branch's first argument in its place, and no interpreter takes the file's choice between key frames and others.
    The host chooses: `key` or `other` (learned schedules: `look` first), as `dispatch.Dispatch.step` does.
    """
    made = programs.make(model)
    return {**made, SERVING: made["step"]} if "step" in made else made


def lite(signatures: Mapping[str, programs.Program]) -> bytes:
    """The contents of one TensorFlow Lite file with these signatures, for one video; the weights are in it.

    Its layers are plain convolutions.

    Raises:
      UserError: TensorFlow is not installed, or its converter does not take a program.
    """
    tf = _tensorflow("--tflite")
    module = _module(tf, signatures)
    with tempfile.TemporaryDirectory() as folder, compilation.target(stablehlo.BACKENDS["accelerator"]):
        tf.saved_model.save(module, folder, signatures=_sign(tf, module, signatures, ("cpu",)))
        try:
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:  # the converter raises what its parts raise
            words = str(error).splitlines() or [type(error).__name__]
            reason = next((line for line in words if "error" in line), words[0])
            raise errors.UserError(f"--tflite: TensorFlow Lite's converter fails: {reason}; leave it out") from None


def _tensorflow(flag: str) -> Any:
    try:
        import tensorflow as tf
    except ImportError:
        raise errors.UserError(
            f"{flag}: needs TensorFlow, which is not installed; pip install tensorflow, or leave the option out"
        ) from None
    return tf


def _module(tf: Any, made: Mapping[str, programs.Program]) -> Any:
    """An object that holds the weights of all programs as variables, which these share."""
    module, weights = tf.Module(), dict[str, np.ndarray]()
    for program in made.values():
        weights |= program.named_weights()
    module.weights = {name.replace("/", "."): tf.Variable(value) for name, value in weights.items()}
    return module


def _bound(
    module: Any, program: programs.Program, fn: Callable[..., Any], shapes: Sequence[str | None], platforms: Any
) -> Callable[..., Any]:
    """A function `(list of the program's weights, *args) -> results` for TensorFlow, with its weights."""
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        fn, polymorphic_shapes=[None, *shapes], with_gradient=False, native_serialization_platforms=platforms
    )
    weights = [module.weights[name.replace("/", ".")] for name in program.named_weights()]
    return lambda *args: converted(list(weights), *args)


def _spec(tf: Any, program: programs.Program, leaf: Any) -> Any:
    """An argument as TensorFlow describes it."""
    shape = (None, *leaf.shape[1:]) if program.is_batched else leaf.shape
    return tf.TensorSpec(shape, np.dtype(leaf.dtype).name)


def _sign(tf: Any, module: Any, made: Mapping[str, programs.Program], platforms: Sequence[str]) -> dict[str, Any]:
    """Concrete functions of one video, whose inputs and outputs have names."""

    def sign(program: programs.Program) -> Any:
        bound = _bound(module, program, program.of_listed_weights(), [None for _ in program.args], platforms)
        tree, inputs, outputs = jax.tree.structure(program.args), program.input_names(), program.result_names()

        def call(**values: Any) -> dict[str, Any]:
            found = jax.tree.leaves(bound(*jax.tree.unflatten(tree, [values[name] for name in inputs])))
            # A value that passes through unchanged would be one tensor under two names.
            return {name: tf.identity(value) for name, value in zip(outputs, found, strict=True)}

        leaves = zip(inputs, jax.tree.leaves(program.args), strict=True)
        specs = {name: tf.TensorSpec(leaf.shape, np.dtype(leaf.dtype).name, name=name) for name, leaf in leaves}
        return tf.function(call, autograph=False).get_concrete_function(**specs)

    return {name: sign(program) for name, program in made.items()}
