"""The work of a search, counted without running it: multiply-adds and bytes of the supernet's steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np

from dvsnas_jax.nets import static_net
from dvsnas_jax.search import estimate
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, cell_frame, cost
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operation_cost as counts
from dvsnas_jax.train import features

GRADIENT_PASSES = 3
"""Multiply-adds of a training step as multiples of a forward pass, without the recomputation in it."""
MOVED_PASSES = 4
"""The same for the bytes of its maps, with the recomputation: forward, again, and two for the gradient."""


@dataclasses.dataclass(frozen=True)
class Device:
    """What an estimate assumes of a device that is not at hand."""

    # of its matrix products, per second, at the precision that JAX takes for float32 there
    flops: float = 494e12  # H100, H200: TF32, dense, as published
    flops_share: float = 0.1  # of them that the steps reach
    bandwidth: float = 4.8e12  # of its memory, bytes per second: H200, as published; H100: 3.35e12
    bandwidth_share: float = 0.3  # of it that the steps reach


def supernet_cost(
    space: genotype_lib.Space, genotype: np.ndarray, settings: cell_frame.CellSettings, size: tuple[int, int]
) -> counts.Cost:
    """The cost of one frame of a genotype i32 [L, 5] in the supernet: all layers run, those that nothing reads too.

    `size`: height and width of the logits.
    """
    rows = genotype_lib.validate(space, genotype)
    sizes = cost.sizes_of(settings, size, is_sliced=False)
    projected = list(cell_lib.used_inputs(space, rows))
    if settings.is_propagating or ("prev_state" in projected and "decoder" not in projected):
        projected.append("decoder")  # it starts the state
    total = counts.conv(sizes, sizes.channels, sizes.channels)
    full = dataclasses.replace(sizes, height=size[0], width=size[1])
    total += cell_end.cost(settings.end, sizes, settings.num_classes, is_propagating=settings.is_propagating, full=full)
    for name in projected:
        total += counts.conv(sizes, settings.input_channels(name), sizes.channels)
    for row in rows:
        for part in cost.layer_parts(space, row, sizes):
            total += part
    return total


def image_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of the frames in training and in scoring, (height, width) each."""
    data, full = config.data, (config.data.height, config.data.width)
    return ((data.crop_height, data.crop_width) if config.search.cache_clips else full), full


def grid(size: tuple[int, int]) -> tuple[int, int]:
    """The grid of the logits of frames of that size."""
    return static_net.grid_size(size)


def of_genotypes(config: ml_collections.ConfigDict, genotypes: np.ndarray) -> dict[str, float]:
    """Multiply-adds and bytes of training on and of scoring some genotypes, i32 [N, L, 5], once each, summed over them.

    Returns:
      `train_macs`, `train_bytes`: of a gradient on a batch; `evaluate_macs`, `evaluate_bytes`: of all clips of a
        reward.
    """
    section, space, settings = config.search, features.space_of(config), features.settings_of(config)
    scored = -(-section.reward_clips // section.batch_size) * section.batch_size
    found = {}
    for name, size, clips, macs_passes, bytes_passes in zip(
        ("train", "evaluate"),
        image_sizes(config),
        (section.batch_size, scored),
        (GRADIENT_PASSES, 1),
        (MOVED_PASSES, 1),
        strict=True,
    ):
        costs = [supernet_cost(space, genotype, settings, grid(size)) for genotype in genotypes]
        frames = clips * config.data.num_frames
        found[f"{name}_macs"] = float(macs_passes * frames * sum(item.macs for item in costs))
        found[f"{name}_bytes"] = float(bytes_passes * frames * sum(item.bytes for item in costs))
    return found


def of_search(config: ml_collections.ConfigDict, num_candidates: int, num_genotypes: int = 200) -> dict[str, float]:
    """The work of a whole search, from the mean over `num_genotypes` uniformly drawn genotypes.

    Returns:
      Means of `of_genotypes` for one genotype, and `gradients`, `scorings`, `flops` (2 a multiply-add), `bytes` in all.
    """
    section, space = config.search, features.space_of(config)
    drawn = genotype_lib.random(space, np.random.default_rng(0), num_genotypes)
    mean = {key: value / num_genotypes for key, value in of_genotypes(config, drawn).items()}
    iterations = -(-num_candidates // section.genotypes_per_step)
    times = 2 if section.num_random else 1  # the random line has weights of its own
    gradients = (times * iterations * section.shared_steps + section.warmup_steps) * section.shared_genotypes
    scorings = num_candidates + section.num_random
    return {
        **mean,
        "gradients": gradients,
        "scorings": scorings,
        "flops": 2 * (gradients * mean["train_macs"] + scorings * mean["evaluate_macs"]),
        "bytes": gradients * mean["train_bytes"] + scorings * mean["evaluate_bytes"],
    }


def seconds(macs: float, num_bytes: float, device: Device) -> float:
    """Time of some work on an assumed device: its products, then its maps."""
    return 2 * macs / (device.flops * device.flops_share) + num_bytes / (device.bandwidth * device.bandwidth_share)


def assumed(
    config: ml_collections.ConfigDict, counted: Mapping[str, float], num_params: int, device: Device
) -> estimate.Measured:
    """What `estimate.scaling` wants, for an assumed device: counted work (from `of_search`) in place of measured
    seconds.

    `num_params`: of the supernet. One device runs all genotypes of a step.
    """
    section, classes = config.search, features.settings_of(config).num_classes
    train = section.shared_genotypes * seconds(counted["train_macs"], counted["train_bytes"], device)
    scoring = section.genotypes_per_step * seconds(counted["evaluate_macs"], counted["evaluate_bytes"], device)
    return estimate.Measured(
        train=(train,),
        evaluate=(scoring,),
        candidates=section.genotypes_per_step,
        shared_steps=section.shared_steps,
        warmup_steps=section.warmup_steps,
        num_random=section.num_random,
        train_bytes=4 * (num_params + 2),  # the gradient, the loss, and how many were finite
        evaluate_bytes=section.genotypes_per_step * (4 * classes**2 + 8 + 1),
    )


def text(counted: Mapping[str, float], num_candidates: int, device: Device) -> list[str]:
    """The arithmetic from `of_search` to hours on a device that is not at hand, a line a step."""
    compute = counted["flops"] / (device.flops * device.flops_share)
    moving = counted["bytes"] / (device.bandwidth * device.bandwidth_share)
    return [
        f"one gradient: {counted['train_macs'] / 1e12:.3f} TMAC, {counted['train_bytes'] / 1e9:.1f} GB of maps; "
        f"one scoring: {counted['evaluate_macs'] / 1e12:.3f} TMAC, {counted['evaluate_bytes'] / 1e9:.1f} GB",
        f"{num_candidates} candidates: {counted['gradients']:.0f} gradients and {counted['scorings']:.0f} scorings = "
        f"{counted['flops'] / 1e15:.1f} PFLOP and {counted['bytes'] / 1e15:.3f} PB of maps",
        f"at {100 * device.flops_share:g} % of {device.flops / 1e12:g} TFLOP/s: {compute / 3600:.2f} h; "
        f"at {100 * device.bandwidth_share:g} % of {device.bandwidth / 1e12:g} TB/s: {moving / 3600:.2f} h; "
        f"both after each other: {(compute + moving) / 3600:.2f} h on one device (assumed shares, not measured)",
    ]
