"""The static network: segments every frame by itself, and gives its inner maps to the dynamic cell."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import blocks, decoders, encoders
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.nets.weights import pretrained, weights_folder

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""The encoder's maps that other packages see, at strides 4, 8, 16 and 32 (or 16)."""
PLAIN = ("image", "patches")
"""Maps that need no network."""
LOGITS_STRIDE = 4
"""Pixels between neighbours, per axis, of the logits, the decoder's map and `stage1`."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class StaticNet(nn.Module):
    """An encoder, a decoder and a classifier of K classes; any input size.

    The fields are the keys of the config's section `net`, which `core.defaults` explains. With dropout, training needs
    `rngs={"dropout": key}`. `dtype` is that of the computation; parameters are float32.
    """

    num_classes: int
    encoder: str = "mobilenet_v2"
    width: float = 1.0
    expand_first: bool = True
    stride_in_1x1: bool = False
    output_stride: int = 32
    is_norm_frozen: bool = False
    decoder: str = "refinenet"
    decoder_channels: int = 256
    dropout: float = 0.0
    has_auxiliary: bool = False
    dtype: Any = jnp.float32
    grid_stride: int = 4  # of `infer` alone

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, last: str = "decoder", found: Mapping[str, jax.Array] | None = None
    ) -> types.Features:
        """Segments frames.

        Args:
          images: f32 [B, H, W, 3], as `normalise` gives them.
          train: normalise by the batch and update the running statistics (`mutable=["batch_stats"]`).
          last: `stageN`: stop after that stage of the encoder; there are all its maps then, and no logits (K = 0).
          found: the maps from `stage1` on that were computed so before, to go on from; the images are not read then.

        Returns:
          Maps `stage1` .. `stage4` at strides 4, 8, 16, `output_stride` and `decoder` at stride 4, logits
          [B, h, w, K] at stride 4, all in `dtype`. In training, where there is an auxiliary classifier, also the map
          `auxiliary`: its logits at stride 16.
        """
        maps = self._encoder()(images, train, last, **({} if found is None else {"found": found}))
        if last in STAGES:
            return types.Features(maps=maps, logits=jnp.zeros((*maps["stage1"].shape[:3], 0), self.dtype))
        found = {name: maps[name] for name in STAGES}
        found["decoder"] = self._decoder()(maps, train)
        logits = blocks.Classifier(self.num_classes, dtype=self.dtype, name="classifier")(found["decoder"])
        if self.has_auxiliary and (train or self.is_initializing()):
            found["auxiliary"] = Auxiliary(self.num_classes, self.dtype, name="auxiliary")(found["stage3"], train)
        return types.Features(maps=found, logits=logits)

    def _encoder(self) -> Any:
        record = encoders.TABLE[self.encoder]
        return record.make_fn(
            width=self.width, output_stride=self.output_stride, is_frozen=self.is_norm_frozen, dtype=self.dtype,
            name="encoder", **{option: getattr(self, option) for option in record.options},
        )  # fmt: skip

    def _decoder(self) -> Any:
        record = encoders.TABLE[self.encoder].decoder_for(self.decoder)
        options = {option: getattr(self, option) for option in record.options}
        return record.make_fn(channels=self.decoder_channels, dtype=self.dtype, name="decoder", **options)


class Auxiliary(nn.Module):
    """A second classifier on an encoder map, for a loss that trains the encoder more directly (Zhao et al., CVPR 2017,
    arXiv 1612.01105): 3x3 convolution to a quarter of the channels, then 1x1."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] -> logits [B, h, w, K]."""
        channels = max(x.shape[-1] // 4, 8)
        y = blocks.ConvNorm(channels, size=3, activation_fn=blocks.relu, dtype=self.dtype, name="conv")(x, train)
        return blocks.Classifier(self.num_classes, size=1, dtype=self.dtype, name="classifier")(y)


def make(config: ml_collections.ConfigDict, num_classes: int) -> StaticNet:
    """Builds the network for K classes that a config's section `net` describes.

    Raises:
      UserError: a value is out of range.
    """
    _check(config)
    return StaticNet(
        num_classes, encoder=config.encoder, width=float(config.width), expand_first=config.expand_first,
        stride_in_1x1=config.stride_in_1x1, output_stride=config.output_stride, is_norm_frozen=config.freeze_norm,
        decoder=config.decoder, decoder_channels=config.decoder_channels, dropout=float(config.dropout),
        has_auxiliary=config.auxiliary, dtype=DTYPES[config.dtype], grid_stride=config.grid_stride,
    )  # fmt: skip


def _check(config: ml_collections.ConfigDict) -> None:
    if config.width <= 0:
        raise errors.UserError(f"net.width: must be above 0, got {config.width}")
    if config.decoder_channels < 1:
        raise errors.UserError(f"net.decoder_channels: must be at least 1, got {config.decoder_channels}")
    if not 0 <= config.dropout < 1:
        raise errors.UserError(f"net.dropout: must be at least 0 and below 1, got {config.dropout}")
    encoder = encoders.TABLE.get(config.encoder)
    allowed: dict[str, Collection[Any]] = {"encoder": encoders.TABLE, "decoder": decoders.TABLE, "dtype": DTYPES}
    allowed["output_stride"] = encoder.output_strides if encoder else ()
    for key, values in allowed.items():
        if config[key] not in values:
            raise errors.UserError(f"net.{key}: unknown {config[key]!r}, allowed are {', '.join(map(str, values))}")
    if config.dropout and encoder and "dropout" not in encoder.decoder_for(config.decoder).options:
        raise errors.UserError("net.dropout: only the decoder refinenet on a ResNet has dropout; set net.dropout to 0")


def start(
    config: ml_collections.ConfigDict, net: StaticNet, rng: jax.Array, note_fn: Callable[[str], None] | None = None
) -> types.Params:
    """The variables `{"params", "batch_stats"}` that training begins with: drawn, then `with_weights`.

    Raises:
      UserError: see there.
    """
    return with_weights(config, init(net, rng), note_fn)


def with_weights(
    config: ml_collections.ConfigDict, variables: types.Params, note_fn: Callable[[str], None] | None = None
) -> types.Params:
    """Variables, with what `config.weights` names in their place: a folder, or the encoder's weights from ImageNet, of
    which `note_fn` is told.

    Raises:
      UserError: the folder or package is not there or cannot be read, or its weights are of another network.
    """
    if config.weights == config_lib.IMAGENET:
        return pretrained.load(encoders.TABLE[config.encoder], variables, config, note_fn)
    return weights_folder.load(config.weights, variables, config) if config.weights else variables


def init(net: StaticNet, rng: jax.Array) -> types.Params:
    """Draws the variables `{"params", "batch_stats"}`; they do not depend on the size of the images.

    Distributed as by `net.init`, but all kernels are parts of one draw: a generator for each of them takes many times
    as long to compile.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(net))
    paths = [tuple(entry.key for entry in path) for path, _ in leaves]
    is_kernel = [path[-1] == "kernel" for path in paths]
    is_normed = {path[:-1] for path in paths if path[-1] == "scale"}
    sizes = [math.prod(leaf.shape) * drawn for (_, leaf), drawn in zip(leaves, is_kernel, strict=True)]
    normals = np.split(np.asarray(jax.random.normal(rng, (sum(sizes),))), np.cumsum(sizes)[:-1])
    values = []
    for path, (_, leaf), part in zip(paths, leaves, normals, strict=True):
        if path[-1] == "kernel":
            scale_fn = layers.he_scale if path[:-1] in is_normed else blocks.plain_scale
            values.append(part.reshape(leaf.shape) * np.float32(scale_fn(leaf.shape)))
        else:
            values.append(np.full(leaf.shape, 1.0 if path[-1] in ("scale", "var") else 0.0, np.float32))
    return jax.device_put(jax.tree.unflatten(tree, values))


@functools.lru_cache(maxsize=16)
def shapes(net: StaticNet) -> types.Params:
    """Shapes and types of what `init` draws, without drawing; kept, since tracing a network takes most of a second."""
    return jax.eval_shape(lambda rng: net.init(rng, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))


def frame_shapes(net: StaticNet, size: tuple[int, int]) -> types.Features:
    """What `infer` returns for one frame of this height and width, as shapes; nothing is traced."""
    grid = 1, *grid_of(net, size)
    stages = dict(zip(STAGES, encoders.TABLE[net.encoder].channels_fn(net.width), strict=True))
    channels = {**stages, "decoder": net.decoder_channels, "image": 3, "patches": 3 * net.grid_stride**2}
    maps: dict[str, Any] = {name: jax.ShapeDtypeStruct((*grid, num), np.float32) for name, num in channels.items()}
    logits: Any = jax.ShapeDtypeStruct((1, *grid_size(size), net.num_classes), np.float32)
    return types.Features(maps=maps, logits=logits)


def infer(net: StaticNet, variables: types.Params, frames: types.Array, last: str = "decoder") -> types.Features:
    """Segments frames u8 [B, H, W, 3] with the running statistics; all maps at the grid, float32.

    The grid is that of `net.grid_stride`: finer maps are averaged to it, coarser ones interpolated. The logits stay at
    stride 4. `last`: `stageN`: only the encoder as far as that stage, see `StaticNet.__call__`; `image`: not even that,
    only the maps that need no network, `image`, the normalised frame, and `patches`, see `to_patches`.
    """
    images = normalise(net, frames)
    size = images.shape[1], images.shape[2]
    grid, nothing = grid_of(net, size), jnp.zeros((images.shape[0], *grid_size(size), 0))
    plain = {"image": layers.average_to_grid(images, grid), "patches": to_patches(images, net.grid_stride)}
    if last == "image":
        return types.Features(maps=plain, logits=nothing)
    found = cast(types.Features, net.apply(variables, images, train=False, last=last))
    own = {name: jnp.asarray(x) for name, x in found.maps.items() if name in (*STAGES, "decoder")}
    maps = {name: layers.to_grid(x, grid) for name, x in own.items()}
    maps |= {name: x.astype(net.dtype) for name, x in plain.items()}
    return jax.tree.map(lambda x: x.astype(jnp.float32), types.Features(maps=maps, logits=found.logits))


def to_patches(images: jax.Array, stride: int) -> jax.Array:
    """The pixels of each cell of a grid as its channels: [B, H, W, C] -> [B, h, w, C * stride^2], row by row.

    A projection of them is a convolution of as many pixels at that stride. Images that are no whole number of cells are
    continued by their last row and column.
    """
    batch, height, width, channels = images.shape
    rows, columns = grid_size((height, width), stride)
    padding = (0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0)
    cells = jnp.pad(images, padding, mode="edge").reshape(batch, rows, stride, columns, stride, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)


def first_stages(net: StaticNet, variables: types.Params, frames: types.Array, last: str) -> dict[str, jax.Array]:
    """The encoder's own maps of frames u8 [B, H, W, 3] from `stage1` as far as the stage `last`, as `finish` goes on
    from them (a decoder may read some between stages); and `image` and `patches`, as `infer` gives them."""
    found = cast(types.Features, net.apply(variables, normalise(net, frames), train=False, last=last)).maps
    names = list(found)
    maps = {name: jnp.asarray(found[name]) for name in names[names.index("stage1") :]}
    return {**maps, **{name: jnp.asarray(x) for name, x in infer(net, variables, frames, "image").maps.items()}}


def on_grid(maps: Mapping[str, types.Array]) -> dict[str, jax.Array]:
    """What `infer` gives, from maps of `first_stages`."""
    grid, names = (maps["image"].shape[1], maps["image"].shape[2]), (*STAGES, *PLAIN)
    found = {name: layers.to_grid(jnp.asarray(x), grid) for name, x in maps.items() if name in names}
    return {name: x.astype(jnp.float32) for name, x in found.items()}


def goes_on(net: StaticNet) -> bool:
    """Whether the network can `finish` what it began."""
    return encoders.TABLE[net.encoder].goes_on


def finish(net: StaticNet, variables: types.Params, maps: Mapping[str, types.Array]) -> types.Features:
    """The map `decoder` and the logits, f32, of frames from maps of `first_stages`; of crops of them, without `PLAIN`,
    the map as it is."""
    stages = {name: jnp.asarray(x) for name, x in maps.items() if name not in PLAIN}
    unread = jnp.zeros((1, 1, 1, 3))
    found = cast(types.Features, net.apply(variables, unread, train=False, found=stages))
    decoder = jnp.asarray(found.maps["decoder"])
    if "image" in maps:
        decoder = layers.to_grid(decoder, (maps["image"].shape[1], maps["image"].shape[2]))
    logits = jnp.asarray(found.logits, jnp.float32)
    return types.Features(maps={"decoder": decoder.astype(jnp.float32)}, logits=logits)


def fold(net: StaticNet, variables: types.Params) -> types.Params:
    """Variables for `infer` alone, see `blocks.fold`: less work and fewer arrays for every frame."""
    return cast(types.Params, _folding(encoders.TABLE[net.encoder].norm_epsilon)(variables))


@functools.cache
def _folding(epsilon: float) -> Callable[[types.Params], types.Params]:
    """Kept: a network is folded wherever it is run, by one program."""
    return compilation.jit_once(functools.partial(blocks.fold, epsilons={"encoder": epsilon}))


def needed(net: StaticNet, variables: types.Params, last: str) -> types.Params:
    """The part of the variables (folded or not) that `infer` reads as far as `last`.

    A call with all of them is slower though nothing else is computed: each array costs about a microsecond.
    """
    if last == "image":
        return {}
    images = jax.ShapeDtypeStruct((1, 2 * LOGITS_STRIDE, 2 * LOGITS_STRIDE, 3), jnp.float32)
    init_fn = functools.partial(net.init, train=False, last=last)
    read = jax.eval_shape(init_fn, jax.random.key(0), images)
    if blocks.FOLDED in variables:
        read = jax.eval_shape(blocks.fold, read)

    def select(tree: Any, shapes: Any) -> Any:
        return {key: select(tree[key], shapes[key]) for key in shapes} if isinstance(shapes, dict) else tree

    return select(variables, read)


def feature_channels(config: ml_collections.ConfigDict, num_classes: int) -> dict[str, int]:
    """Channels of every map of `infer`, and of `logits`, of the network of a config's section `net`."""
    stages = dict(zip(STAGES, encoders.TABLE[config.encoder].channels_fn(config.width), strict=True))
    plain = {"logits": num_classes, "image": 3, "patches": 3 * config.grid_stride**2}
    return {**stages, "decoder": config.decoder_channels, **plain}


def grid_size(size: tuple[int, int], stride: int = LOGITS_STRIDE) -> tuple[int, int]:
    """Rows and columns of the maps at this stride of images of this height and width."""
    rows, columns = (-(-length // stride) for length in size)
    return rows, columns


def grid_of(net: StaticNet, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the maps that `infer` returns for frames of this height and width."""
    return grid_size(size, net.grid_stride)


@functools.cache
def num_macs(net: StaticNet, size: tuple[int, int], last: str = "decoder") -> int:
    """Multiply-adds of all convolutions for one image of this height and width as far as `last` (see `infer`), without
    running anything."""
    if last == "image":
        return 0
    total = 0

    def count_fn(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal total
        if context.method_name != "__call__" or not isinstance(context.module, blocks.LAYERS):
            return next_fn(*args, **kwargs)
        before = total
        y = next_fn(*args, **kwargs)
        total = before  # two layers computed as one count as they are published: one after the other
        for layer in (context.module, getattr(context.module, "then", None)):
            if layer is not None:
                kernel: Any = layer.get_variable("params", "kernel")
                total += y.shape[1] * y.shape[2] * math.prod(kernel.shape)
        return y

    variables, images = shapes(net), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    with nn.intercept_methods(count_fn):
        jax.eval_shape(lambda variables, x: net.apply(variables, x, train=False, last=last), variables, images)
    return total


def normalise(net: StaticNet, frames: types.Array) -> jax.Array:
    """u8 [..., 3] RGB -> f32 [..., 3], as the network's encoder expects it."""
    frames, record = jnp.asarray(frames), encoders.TABLE[net.encoder]
    mean, std = (
        layers.per_channel(jnp.asarray(values, jnp.float32), frames.ndim) for values in (record.mean, record.std)
    )
    return (frames.astype(jnp.float32) / 255 - mean) / std


def predict(logits: types.Array, size: tuple[int, ...]) -> jax.Array:
    """The most probable class of every pixel, u8 [B, *size]: logits [B, h, w, K] are interpolated to that height and
    width without aligned corners."""
    return layers.strongest_at(jnp.asarray(logits, jnp.float32), (size[0], size[1]))
