"""Writes functions of JAX as a TensorFlow SavedModel, by `jax.experimental.jax2tf` (TensorFlow is imported only here).

Each function becomes one `XlaCallModule` operation that holds its StableHLO: TensorFlow, TensorFlow Serving and their
XLA run it, TensorFlow Lite and TensorFlow.js do not.
"""

from __future__ import annotations

import dataclasses
import os
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
    """

    fn: Callable[..., Any]
    weights: Sequence[str]
    args: tuple[Any, ...]
    is_batched: bool


def write(
    path: str | os.PathLike[str],
    functions: Mapping[str, Function],
    weights: Mapping[str, np.ndarray],
    initial_state: Mapping[str, Any],
) -> None:
    """Writes a SavedModel whose object has each function as a method, and `initial_state() -> state` of one video.

    Args:
      path: of the folder.
      functions: by name.
      weights: all weights by name; they become variables that the functions share.
      initial_state: the arrays of the state before the first frame.

    Raises:
      UserError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError:
        raise errors.UserError("--savedmodel: needs TensorFlow, which is not installed; leave the option out") from None
    from jax.experimental import jax2tf

    module = tf.Module()
    module.weights = {name.replace("/", "."): tf.Variable(value) for name, value in weights.items()}
    for name, function in functions.items():
        chosen = [module.weights[weight.replace("/", ".")] for weight in function.weights]
        converted = jax2tf.convert(
            function.fn,
            polymorphic_shapes=[None, *("b, ..." if function.is_batched else None for _ in function.args)],
            with_gradient=False,
            native_serialization_platforms=PLATFORMS,
        )
        setattr(module, name, _bound(tf, converted, chosen, _specs(tf, function)))
    constants = {name: tf.constant(np.asarray(value)) for name, value in initial_state.items()}
    module.initial_state = tf.function(lambda: dict(constants), input_signature=[], autograph=False)
    tf.saved_model.save(module, os.fspath(path))


def _bound(tf: Any, converted: Callable[..., Any], weights: Sequence[Any], specs: Sequence[Any]) -> Any:
    """A function with its weights, traced for these arguments."""
    return tf.function(lambda *args: converted(list(weights), *args), input_signature=specs, autograph=False)


def _specs(tf: Any, function: Function) -> list[Any]:
    """The arguments as TensorFlow describes them."""

    def spec(leaf: Any) -> Any:
        shape = [None, *leaf.shape[1:]] if function.is_batched else list(leaf.shape)
        return tf.TensorSpec(shape, np.dtype(leaf.dtype).name)

    return jax.tree.map(spec, list(function.args))
