"""Building blocks that the encoders and decoders share: convolution with batch normalisation, 1x1, classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dvsnas_jax.nets.kernels import layers

NORM_DECAY = 0.9
FOLDED = "folded"
"""The collection of what `fold` makes of scale, bias and running statistics."""
Activation = Callable[[jax.Array], jax.Array]


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0); gradient 0 at 0.

    Its gradient needs the result only, which the next layer keeps anyway. Autodiff's shares the gradient of equal
    operands, which is a map of its own, with a division.
    """
    return jnp.maximum(x, 0)


@jax.custom_vjp
def relu6(x: jax.Array) -> jax.Array:
    """x clipped to 0..6; gradient 0 at both ends, see `relu`."""
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, grad: (jnp.where(y > 0, grad, 0),))
relu6.defvjp(lambda x: (relu6(x),) * 2, lambda y, grad: (jnp.where((y > 0) & (y < 6), grad, 0),))


def _unread(x: jax.Array, channels: int, stride: int, dtype: Any) -> jax.Array:
    """What stands for the result of a layer whose variables are made: shapes alone are asked for then, and to trace the
    arithmetic of a whole network takes most of a second."""
    batch, height, width, _ = x.shape
    return jnp.zeros((batch, -(-height // stride), -(-width // stride), channels), dtype)


class ConvNorm(nn.Module):
    """A convolution without bias (of each channel by itself where `features` is None), batch normalisation and, if
    wanted, an activation. Variables from `fold` need no normalisation.

    `is_same`: padded as TensorFlow does it, see `layers.conv`. `epsilon` is added to the variances; a part of the
    network with another one than `layers.NORM_EPS` has to say so to `fold`. `is_frozen`: training, too, normalises by
    the running statistics and leaves them as they are. `dtype` is that of the computation; parameters and statistics
    are float32.
    """

    features: int | None
    size: int = 1
    stride: int = 1
    dilation: int = 1
    activation_fn: Activation | None = relu6
    is_same: bool = False
    epsilon: float = layers.NORM_EPS
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        channels = self.features or x.shape[-1]
        shape = (self.size, self.size, x.shape[-1]) + (() if self.features is None else (channels,))
        kernel = self.param("kernel", layers.he_normal, shape)
        conv_fn = layers.depthwise_conv if self.features is None else layers.conv
        geometry: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, "is_same": self.is_same}
        x = x.astype(self.dtype)
        if self.has_variable(FOLDED, "bias"):
            offset: jax.Array = self.get_variable(FOLDED, "bias").astype(self.dtype)
            y = conv_fn(x, kernel, **geometry) + layers.per_channel(offset, 4)
            return y if self.activation_fn is None else self.activation_fn(y)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if self.is_initializing():
            return _unread(x, channels, self.stride, self.dtype)
        if train and not self.is_frozen:
            y = conv_fn(x, kernel, **geometry)
            batch_mean, batch_var = layers.batch_moments(y)
            y = layers.normalize(y, scale, bias, batch_mean, batch_var, self.epsilon)
            mean.value = NORM_DECAY * mean.value + (1 - NORM_DECAY) * batch_mean
            var.value = NORM_DECAY * var.value + (1 - NORM_DECAY) * batch_var
        else:
            norm = layers.Norm(scale, bias, mean.value, var.value, self.epsilon)
            y = layers.normalized_conv(x, kernel, norm, **geometry)
        return y if self.activation_fn is None else self.activation_fn(y)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; the input is added where shapes agree.

    `norm`: further attributes of its three `ConvNorm`: `is_same`, `epsilon`, `is_frozen`, `dtype`.
    """

    features: int
    expansion: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    has_expansion: bool = True
    norm: Mapping[str, Any] = flax.core.FrozenDict()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        depthwise = {"size": self.size, "stride": self.stride, "dilation": self.dilation, **self.norm}
        y = x
        if self.has_expansion:
            y = ConvNorm(x.shape[-1] * self.expansion, **self.norm, name="expand")(y, train)
        y = ConvNorm(None, **depthwise, name="depthwise")(y, train)
        y = ConvNorm(self.features, activation_fn=None, **self.norm, name="project")(y, train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


def fold(variables: Any, epsilons: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Variables for inference alone, of `params` and `batch_stats` of a network of these blocks: `params`, in which
    every `ConvNorm` has a kernel only, with scale and running statistics in it, and the collection of the biases.

    `epsilons`: of the parts of the network that have another one than `layers.NORM_EPS`, by name.
    """

    def convert(params: Any, stats: Any, epsilon: float) -> tuple[dict[str, Any], dict[str, Any]]:
        if "scale" in params:
            norm = layers.Norm(params["scale"], params["bias"], stats["mean"], stats["var"], epsilon)
            kernel, bias = layers.fold_norm(params["kernel"], norm)
            return {"kernel": kernel}, {"bias": bias}
        kept: dict[str, Any] = {}
        biases: dict[str, Any] = {}
        for name, value in params.items():
            if isinstance(value, Mapping):
                kept[name], inner = convert(value, stats.get(name, {}), own.get(name, epsilon))
                biases |= {name: inner} if inner else {}
            else:
                kept[name] = value
        return kept, biases

    own = epsilons or {}
    params, biases = convert(variables.get("params", {}), variables.get("batch_stats", {}), layers.NORM_EPS)
    return {"params": params, FOLDED: biases}


def plain_scale(shape: tuple[int, ...]) -> float:
    """Standard deviation of the weights of a kernel that no normalisation follows, sqrt(1 / (3 fan-in)).

    He's larger kernels would drive the sums of the decoder past the 6 of ReLU6, where gradients end.
    """
    return layers.he_scale(shape) / math.sqrt(6.0)


def _plain(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(rng, shape, jnp.float32) * plain_scale(shape)


class Pointwise(nn.Module):
    """A 1x1 convolution without bias.

    `then`: another one that follows at once. Where a map has more pixels than channels, the two kernels are multiplied
    and applied as one, which is less work.
    """

    features: int
    dtype: Any = jnp.float32
    then: nn.Module | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, Cin] -> [B, h, w, features], or the features of the one that follows."""
        kernel = self.param("kernel", _plain, (1, 1, x.shape[-1], self.features))
        if self.is_initializing():
            x = _unread(x, self.features, 1, self.dtype)
            return x if self.then is None else self.then(x)
        x = x.astype(self.dtype)
        if self.then is None:
            return layers.conv(x, kernel)
        if x.shape[1] * x.shape[2] > x.shape[-1]:
            return layers.conv(x, self.then(kernel))  # to the second, the kernel is a map of Cin pixels
        return self.then(layers.conv(x, kernel))


class Classifier(nn.Module):
    """A convolution with bias."""

    num_classes: int
    size: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> logits [B, h, w, K]."""
        kernel = self.param("kernel", _plain, (self.size, self.size, x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        if self.is_initializing():
            return _unread(x, self.num_classes, 1, self.dtype)
        return layers.conv(x.astype(self.dtype), kernel) + layers.per_channel(bias.astype(self.dtype), 4)


LAYERS = (ConvNorm, Pointwise, Classifier)
"""All modules that hold a kernel."""
