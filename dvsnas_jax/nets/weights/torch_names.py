"""What PyTorch's files call the weights of the static networks: torchvision's classifiers, light-weight RefineNet."""

from __future__ import annotations

from collections.abc import Iterator

from dvsnas_jax.nets.decoders import refinenet
from dvsnas_jax.nets.encoders import mobilenet, resnet

HEADS = {"mobilenet_v2": ("features.18.", "classifier."), "resnet": ("fc.",)}
"""Beginnings of the names of a torchvision classifier's weights that an encoder does not have."""

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def of_classifier(encoder: str, *, expand_first: bool = False) -> dict[str, str]:
    """A torchvision classifier's names of an encoder's weights.

    Args:
      encoder: one of `static_net.ENCODERS`.
      expand_first: of the encoder; torchvision's has none.

    Returns:
      Path in the variables ("params/encoder/layer1/kernel") -> name in the file.
    """
    if encoder == "mobilenet_v2":
        return dict(_mobilenet_classifier(expand_first))
    return dict(_resnet(encoder))


def of_refinenet(encoder: str) -> dict[str, str]:
    """The authors' names of all weights of light-weight RefineNet on an encoder; returns as `of_classifier`."""
    if encoder == "mobilenet_v2":
        return {**dict(_mobilenet_refinenet()), **dict(_mobilenet_decoder())}
    return {**dict(_resnet(encoder)), **dict(_resnet_decoder())}


def head(encoder: str) -> tuple[str, ...]:
    """Beginnings of the names in a torchvision classifier's file that no encoder has."""
    return HEADS["mobilenet_v2" if encoder == "mobilenet_v2" else "resnet"]


def _conv_norm(path: str, conv: str, norm: str) -> Iterator[tuple[str, str]]:
    """The five tensors of a `blocks.ConvNorm`."""
    yield f"params/encoder/{path}/kernel", f"{conv}.weight"
    for ours, theirs in _NORM.items():
        collection = "batch_stats" if ours in ("mean", "var") else "params"
        yield f"{collection}/encoder/{path}/{ours}", f"{norm}.{theirs}"


def _mobilenet_blocks() -> Iterator[tuple[int, int]]:
    """Stage (2..8) and index in it of every block."""
    for stage, (_, _, num_blocks, _) in enumerate(mobilenet.STAGES, start=2):
        for block in range(num_blocks):
            yield stage, block


def _mobilenet_classifier(expand_first: bool) -> Iterator[tuple[str, str]]:
    yield from _conv_norm("layer1", "features.0.0", "features.0.1")
    for position, (stage, block) in enumerate(_mobilenet_blocks(), start=1):
        ours, theirs = f"layer{stage}_{block}", f"features.{position}.conv"
        parts = ["expand", "depthwise"] if stage > 2 or expand_first else ["depthwise"]
        for index, part in enumerate(parts):
            yield from _conv_norm(f"{ours}/{part}", f"{theirs}.{index}.0", f"{theirs}.{index}.1")
        yield from _conv_norm(f"{ours}/project", f"{theirs}.{len(parts)}", f"{theirs}.{len(parts) + 1}")


def _mobilenet_refinenet() -> Iterator[tuple[str, str]]:
    yield from _conv_norm("layer1", "layer1.0", "layer1.1")
    for stage, block in _mobilenet_blocks():
        for index, part in enumerate(("expand", "depthwise", "project")):
            theirs = f"layer{stage}.{block}.output.{index}"
            yield from _conv_norm(f"layer{stage}_{block}/{part}", f"{theirs}.0", f"{theirs}.1")


def _mobilenet_decoder() -> Iterator[tuple[str, str]]:
    for level, laterals in refinenet.MOBILENET_LEVELS:
        for lateral in laterals:
            yield f"params/decoder/conv{lateral}/kernel", f"conv{lateral}.weight"
        for stage in range(1, refinenet.POOL_STAGES + 1):
            theirs = f"crp{level}.0.{stage}_outvar_dimred.weight"
            yield f"params/decoder/pool{level}/pointwise{stage}/kernel", theirs
        if level > 1:
            yield f"params/decoder/adapt{level}/kernel", f"conv_adapt{level}.weight"
    yield "params/classifier/kernel", "segm.weight"
    yield "params/classifier/bias", "segm.bias"


def _resnet(encoder: str) -> Iterator[tuple[str, str]]:
    yield from _conv_norm("conv1", "conv1", "bn1")
    convolutions = (1, 2, 3) if resnet.has_bottlenecks(encoder) else (1, 2)
    for stage, num_blocks in enumerate(resnet.BLOCKS[encoder], start=1):
        for block in range(num_blocks):
            ours, theirs = f"layer{stage}_{block}", f"layer{stage}.{block}"
            for i in convolutions:
                yield from _conv_norm(f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or resnet.has_bottlenecks(encoder)):
                yield from _conv_norm(f"{ours}/downsample", f"{theirs}.downsample.0", f"{theirs}.downsample.1")


def _resnet_decoder() -> Iterator[tuple[str, str]]:
    for level in (4, 3, 2, 1):
        group = 5 - level  # counted from the coarsest
        yield f"params/decoder/reduce{level}/kernel", f"p_ims1d2_outl{group}_dimred.weight"
        if level < 4:
            yield f"params/decoder/adapt{level}/kernel", f"adapt_stage{group}_b2_joint_varout_dimred.weight"
        for stage in range(1, refinenet.POOL_STAGES + 1):
            theirs = f"mflow_conv_g{group}_pool.0.{stage}_outvar_dimred.weight"
            yield f"params/decoder/pool{level}/pointwise{stage}/kernel", theirs
        if level > 1:
            yield f"params/decoder/merge{level}/kernel", f"mflow_conv_g{group}_b3_joint_varout_dimred.weight"
    yield "params/classifier/kernel", "clf_conv.weight"
    yield "params/classifier/bias", "clf_conv.bias"
