"""The static network: segments every frame by itself, and gives its inner maps to the dynamic cell."""

from __future__ import annotations

import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.nets import layers, mobilenet, refinenet

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, RGB in 0..1."""

STAGES = {"stage1": "layer3", "stage2": "layer4", "stage3": "layer6", "stage4": "layer8"}
"""Names of the encoder maps outside of this package, at strides 4, 8, 16 and 32."""

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class StaticNet(nn.Module):
    """MobileNetV2 with the light-weight RefineNet decoder; any input size.

    Attributes:
      num_classes: K.
      width: multiplier of the encoder's channels.
      decoder_channels: of the decoder.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    width: float = 1.0
    decoder_channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> types.Features:
        """Segments frames.

        Args:
          images: f32 [B, H, W, 3], as `normalise` gives them.
          train: normalise by the batch and update the running statistics (`mutable=["batch_stats"]`).

        Returns:
          Maps `stage1` .. `stage4` at strides 4, 8, 16, 32 and `decoder` at stride 4, logits [B, h, w, K] at
          stride 4, all in `dtype`.
        """
        maps = mobilenet.MobileNetV2(self.width, self.dtype, name="encoder")(images, train)
        decoder = refinenet.RefineNet(self.decoder_channels, self.dtype, name="decoder")(maps)
        logits = refinenet.Classifier(self.num_classes, self.dtype, name="classifier")(decoder)
        stages = {name: maps[layer] for name, layer in STAGES.items()}
        return types.Features(maps={**stages, "decoder": decoder}, logits=logits)


def make(config: ml_collections.ConfigDict, num_classes: int) -> StaticNet:
    """Builds the network that a config describes.

    Args:
      config: the section `net`: width, decoder_channels, dtype.
      num_classes: K.

    Raises:
      UserError: a value is out of range.
    """
    if config.width <= 0:
        raise errors.UserError(f"net.width: must be above 0, got {config.width}")
    if config.decoder_channels < 1:
        raise errors.UserError(f"net.decoder_channels: must be at least 1, got {config.decoder_channels}")
    if config.dtype not in _DTYPES:
        raise errors.UserError(f"net.dtype: unknown type {config.dtype!r}, allowed are {', '.join(_DTYPES)}")
    return StaticNet(
        num_classes=num_classes,
        width=float(config.width),
        decoder_channels=config.decoder_channels,
        dtype=_DTYPES[config.dtype],
    )


def init(net: StaticNet, rng: jax.Array) -> types.Params:
    """Draws the variables `{"params", "batch_stats"}`; they do not depend on the size of the images.

    Distributed as by `net.init`, but all kernels are parts of one draw: a generator for each of them takes many times
    as long to compile.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(net))
    paths = [tuple(entry.key for entry in path) for path, _ in leaves]
    is_kernel = [path[-1] == "kernel" for path in paths]
    sizes = [math.prod(leaf.shape) * drawn for (_, leaf), drawn in zip(leaves, is_kernel, strict=True)]
    normals = np.split(np.asarray(jax.random.normal(rng, (sum(sizes),))), np.cumsum(sizes)[:-1])
    values = []
    for path, (_, leaf), part in zip(paths, leaves, normals, strict=True):
        if path[-1] == "kernel":
            scale_fn = layers.he_scale if path[1] == "encoder" else refinenet.kernel_scale
            values.append(part.reshape(leaf.shape) * np.float32(scale_fn(leaf.shape)))
        else:
            values.append(np.full(leaf.shape, 1.0 if path[-1] in ("scale", "var") else 0.0, np.float32))
    return jax.device_put(jax.tree.unflatten(tree, values))


def shapes(net: StaticNet) -> types.Params:
    """Shapes and types of what `init` draws, without drawing."""
    return jax.eval_shape(lambda rng: net.init(rng, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))


def infer(net: StaticNet, variables: types.Params, frames: types.Array) -> types.Features:
    """Segments frames u8 [B, H, W, 3] with the running statistics; all maps at the grid, float32."""
    images = normalise(frames)
    features = to_grid(cast(types.Features, net.apply(variables, images, train=False)), images)
    return jax.tree.map(lambda x: x.astype(jnp.float32), features)


def feature_channels(config: ml_collections.ConfigDict, num_classes: int) -> dict[str, int]:
    """Channels of every map of `to_grid`, and of `logits`.

    Args:
      config: the section `net`.
      num_classes: K.
    """
    encoder = mobilenet.stage_channels(config.width)
    stages = {name: encoder[layer] for name, layer in STAGES.items()}
    return {**stages, "decoder": config.decoder_channels, "logits": num_classes, "image": 3}


def normalise(frames: types.Array) -> jax.Array:
    """u8 [..., 3] RGB -> f32 [..., 3], as ImageNet networks expect it."""
    frames = jnp.asarray(frames)
    mean, std = (layers.per_channel(jnp.asarray(values, jnp.float32), frames.ndim) for values in (MEAN, STD))
    return (frames.astype(jnp.float32) / 255 - mean) / std


def to_grid(features: types.Features, images: jax.Array) -> types.Features:
    """Brings all maps to the decoder's grid and adds `image`.

    Args:
      features: of the network.
      images: f32 [B, H, W, 3], its input.

    Returns:
      Maps [B, h, w, C_name] (encoder maps bilinearly, half-pixel centres); the logits are unchanged.
    """
    size = (features.maps["decoder"].shape[1], features.maps["decoder"].shape[2])
    maps = {name: layers.resize_bilinear(jnp.asarray(x), size) for name, x in features.maps.items()}
    image = layers.average_to_grid(images, size).astype(features.logits.dtype)
    return types.Features(maps={**maps, "image": image}, logits=features.logits)


def predict(logits: types.Array, size: tuple[int, ...]) -> jax.Array:
    """The most probable class of every pixel.

    Args:
      logits: [B, h, w, K].
      size: height and width of the labels; logits are interpolated to it without aligned corners.

    Returns:
      u8 [B, *size], train ids.
    """
    full = layers.resize_bilinear(jnp.asarray(logits, jnp.float32), (size[0], size[1]))
    return jnp.argmax(full, axis=-1).astype(jnp.uint8)
