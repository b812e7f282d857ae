"""Writes functions of JAX as a TensorFlow SavedModel, by `jax.experimental.jax2tf` (TensorFlow is imported only here).

Each function becomes one `XlaCallModule` operation that holds its StableHLO: TensorFlow, TensorFlow Serving and their
XLA run it. TensorFlow Lite's converter takes the signatures, whose shapes are fixed to one video; TensorFlow.js does
not know the operation.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import errors

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of the SavedModel.

    Attributes:
      fn: `(weights, *args) -> results`, all in lists, tuples and dictionaries.
      weights: names of its weights, in their order.
      args: shapes and types of the arguments, for a batch of one.
      is_batched: whether the first axis of every argument may have any length.
      inputs: a name for each array among the arguments.
      outputs: a name for each array among the results.
    """

    fn: Callable[..., Any]
    weights: Sequence[str]
    args: tuple[Any, ...]
    is_batched: bool
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def write(
    path: str | os.PathLike[str],
    functions: Mapping[str, Function],
    weights: Mapping[str, np.ndarray],
    initial_state: Mapping[str, Any],
    *,
    signatures: Mapping[str, Function] | None = None,
) -> None:
    """Writes a SavedModel whose object has each function as a method, and `initial_state() -> state` of one video.

    Args:
      path: of the folder.
      functions: by name.
      signatures: functions that get a serving signature by name, with named inputs and outputs, for one video.
      weights: all weights by name; they become variables that the functions share.
      initial_state: the arrays of the state before the first frame.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = _tensorflow("--savedmodel")
    module = _module(tf, weights)
    for name, function in functions.items():
        converted = _converted(function, ["b, ..." if function.is_batched else None for _ in function.args], PLATFORMS)
        setattr(module, name, _bound(tf, converted, _chosen(module, function), _specs(tf, function)))
    constants = {name: tf.constant(np.asarray(value)) for name, value in initial_state.items()}
    module.initial_state = tf.function(lambda: dict(constants), input_signature=[], autograph=False)
    signed = _sign(tf, module, signatures or {}, PLATFORMS)
    tf.saved_model.save(module, os.fspath(path), signatures=signed)


def lite(signatures: Mapping[str, Function], weights: Mapping[str, np.ndarray]) -> bytes:
    """The contents of one TensorFlow Lite file with these signatures, for one video; the weights are in it.

    Raises:
      UserError: TensorFlow is not installed, or its converter does not take a function.
    """
    tf = _tensorflow("--tflite")
    module = _module(tf, weights)
    with tempfile.TemporaryDirectory() as folder:
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


def _module(tf: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """An object that holds the weights as variables."""
    module = tf.Module()
    module.weights = {name.replace("/", "."): tf.Variable(value) for name, value in weights.items()}
    return module


def _chosen(module: Any, function: Function) -> list[Any]:
    return [module.weights[weight.replace("/", ".")] for weight in function.weights]


def _converted(function: Function, shapes: Sequence[str | None], platforms: Sequence[str]) -> Callable[..., Any]:
    from jax.experimental import jax2tf

    return jax2tf.convert(
        function.fn,
        polymorphic_shapes=[None, *shapes],
        with_gradient=False,
        native_serialization_platforms=platforms,
    )


def _sign(tf: Any, module: Any, signatures: Mapping[str, Function], platforms: Sequence[str]) -> dict[str, Any]:
    """Concrete functions of one video, whose inputs and outputs have names."""

    def sign(function: Function) -> Any:
        converted = _converted(function, [None for _ in function.args], platforms)
        tree, weights = jax.tree.structure(function.args), _chosen(module, function)

        def call(**values: Any) -> dict[str, Any]:
            args = jax.tree.unflatten(tree, [values[name] for name in function.inputs])
            found = jax.tree.leaves(converted(list(weights), *args))
            # A value that passes through unchanged would be one tensor under two names.
            return {name: tf.identity(value) for name, value in zip(function.outputs, found, strict=True)}

        leaves = zip(function.inputs, jax.tree.leaves(function.args), strict=True)
        specs = {name: tf.TensorSpec(leaf.shape, np.dtype(leaf.dtype).name, name=name) for name, leaf in leaves}
        return tf.function(call, autograph=False).get_concrete_function(**specs)

    return {name: sign(function) for name, function in signatures.items()}


def _bound(tf: Any, converted: Callable[..., Any], weights: Sequence[Any], specs: Sequence[Any]) -> Any:
    """A function with its weights, traced for these arguments."""
    return tf.function(lambda *args: converted(list(weights), *args), input_signature=specs, autograph=False)


def _specs(tf: Any, function: Function) -> list[Any]:
    """The arguments as TensorFlow describes them."""

    def spec(leaf: Any) -> Any:
        shape = [None, *leaf.shape[1:]] if function.is_batched else list(leaf.shape)
        return tf.TensorSpec(shape, np.dtype(leaf.dtype).name)

    return jax.tree.map(spec, list(function.args))
