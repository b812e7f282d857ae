"""The stages of a reproduction in their order, and how long each will take: known before any of them starts.

A time is that of the run of record where there is one, in proportion to the number of its pieces, else counted
multiply-adds over an assumed speed, and a while for each program that is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import ml_collections

from dvsnas_jax.core import cores, errors
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import pipeline, store
from dvsnas_jax.nets import static_net
from dvsnas_jax.search import search_cost
from dvsnas_jax.space import zoo
from dvsnas_jax.studies import study_report
from dvsnas_jax.studies.reproduce import recipes
from dvsnas_jax.train import features

STATIC, SEARCH, CELLS_STATIC, COMPARE, WITHOUT, STATIC_ON, FOUND, ABLATE = KINDS = (
    "static", "search", "static_of_cells", "compare", "without_history", "static_on", "found", "ablate",
)  # fmt: skip
"""Of stages, in their order."""
Seconds = Mapping[str, Mapping[str, float]]
"""Key of a stage -> `seconds` and `count` of a run that was measured."""


class Machine(NamedTuple):
    """How fast stages are assumed to run: what trainings reach a second, and seconds to compile one program."""

    name: str
    macs: float
    bytes: float
    compile_seconds: float


_DEVICE = search_cost.Device()
GPU = Machine(
    "one H200, assumed", _DEVICE.flops * _DEVICE.flops_share / 2, _DEVICE.bandwidth * _DEVICE.bandwidth_share, 30.0
)
_CPU_MACS = 5e9
"""Of a core, the bytes of its maps included: what cells of 24 channels and static networks of 240x320 reach."""


@dataclasses.dataclass(frozen=True)
class Load:
    """Work: multiply-adds, and bytes of the maps of cells."""

    macs: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.macs + other.macs, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Load:
        return Load(self.macs * times, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One resumable piece of a reproduction.

    Attributes:
      mode: of its part.
      kind: one of `KINDS`.
      what: in words.
      count: equal pieces in it.
      load: of all.
      programs: that are compiled.
    """

    mode: str
    kind: str
    what: str
    count: int
    load: Load
    programs: int

    @property
    def key(self) -> str:
        """Names the stage."""
        return f"{self.mode}/{self.kind}"


def here() -> Machine:
    """The machine that the program runs on."""
    if jax.default_backend() == "cpu":
        return Machine(f"{cores.count()} CPU cores, assumed", _CPU_MACS * cores.count(), float("inf"), 12.0)
    return GPU._replace(name=f"one {jax.devices()[0].device_kind}, at the speed of an H200")


def seconds(stage: Stage, machine: Machine, known: Seconds) -> float:
    """How long a stage takes: as measured where it is known, else as counted."""
    measured = known.get(stage.key)
    if measured:
        return measured["seconds"] / max(measured["count"], 1) * stage.count
    counted = stage.load.macs / machine.macs + stage.load.bytes / machine.bytes
    return counted + stage.programs * machine.compile_seconds


def text(stages: Sequence[Stage], took: Mapping[str, float], known: Seconds, notes: Sequence[str] = ()) -> str:
    """The plan as a table: each stage with its time, and, of those that are `took` already, what it took."""
    machine = here()
    rows, left = [], 0.0
    for stage in stages:
        estimated = seconds(stage, machine, known)
        left += 0.0 if stage.key in took else estimated
        done = _shown(took[stage.key]) if stage.key in took else ""
        rows.append([stage.key, stage.what, _shown(estimated), "record" if stage.key in known else "counted", done])
    lines = study_report.markdown(["stage", "what", "estimate", "from", "took"], rows)
    on_gpu = sum(seconds(stage, GPU, {}) for stage in stages if stage.key not in took)
    lines += ["", f"left: {_shown(left)} (counted ones: on {machine.name})"]
    if machine.macs < GPU.macs:
        lines[-1] += f"; counted on {GPU.name}: {_shown(on_gpu)}"
    return "\n".join([*lines, *notes])


def _shown(value: float) -> str:
    """A time for people."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if value >= 1.5 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} s"


def of(recipe: recipes.Recipe, found: Sequence[recipes.Configs]) -> tuple[list[Stage], list[str]]:
    """The stages of a recipe, `found` the configurations of its parts; and what is not in the estimates."""
    stages: list[Stage] = []
    notes = []
    for number, (part, configs) in enumerate(zip(recipe.parts, found, strict=True)):
        counted = {"search": _Counted(configs.search), "cells": _Counted(configs.cells)}
        is_given = recipe.is_static_shared and number > 0
        stages += _of_part(recipe, part, counted, is_given)
        if not counted["cells"].is_there:
            notes.append(f"{part.mode}: the data is not there, so reading and scoring it is not in the estimates")
    return stages, notes


def _of_part(
    recipe: recipes.Recipe, part: recipes.Part, counted: Mapping[str, _Counted], is_given: bool
) -> list[Stage]:
    """The stages of a part; `is_given`: its static networks are those of another part."""
    searches, cells = counted["search"], counted["cells"]
    mode, steps = part.mode, cells.config.train.steps
    num_strategies, num_searches, num_seeds = len(recipe.strategies), recipe.num_searches, recipe.num_seeds
    total = num_strategies * num_searches
    members = [member for member in zoo.of_mode(mode) if {member.title, zoo.ALL} & set(recipe.members)]
    trained = sum(not member.is_baseline for member in members) + total
    section = searches.config.search
    what = (
        f"{', '.join(recipe.strategies)}: {num_searches} search(es) each of "
        f"{section.steps * section.genotypes_per_step} candidates, {recipe.num_top} retrained; rewards in mode "
        f"{section.mode}"
    )
    load = (searches.search + searches.job * recipe.num_top) * total + searches.job * recipe.num_correlated
    stages = [
        _static(mode, STATIC, None if is_given else searches),
        Stage(mode, SEARCH, what, total, searches.features + load, 4),
    ]
    if part.cells:
        stages.append(_static(mode, CELLS_STATIC, None if is_given else cells))
    num = len(members) + total
    what = f"{len(members)} of the zoo and {total} found cells x {num_seeds} seeds, {steps} steps"
    load = (cells.job * trained + cells.evaluation * num) * num_seeds
    stages.append(Stage(mode, COMPARE, what, num * num_seeds, cells.features + load, 2 * num))
    if mode == zoo.REFINE:
        num = num_searches * num_seeds
        what = f"{num_searches} found cell(s) without history x {num_seeds} seeds"
        load = cells.features + (cells.job + cells.evaluation) * num
        stages.append(Stage(mode, WITHOUT, what, num, load, 2 * num_searches))
        what = f"the static network for {steps} steps more"
        stages.append(Stage(mode, STATIC_ON, what, 1, cells.static(steps) + cells.evaluation, 3))
    load = cells.features + cells.job + cells.evaluation
    stages.append(Stage(mode, FOUND, "a run folder of the found cell, scored and drawn", 1, load, 3))
    what = f"each token of the found cell replaced, {recipe.limit or 'all'} variants"
    return [*stages, Stage(mode, ABLATE, what, 1, searches.features + searches.ablation(recipe.limit), 2)]


def _static(mode: str, kind: str, counted: _Counted | None) -> Stage:
    """The training of a static network; None: it is that of the part before."""
    if counted is None:
        return Stage(mode, kind, "that of the part before", 1, Load(), 0)
    steps = counted.config.pretrain.steps
    return Stage(mode, kind, f"the static network, {steps} steps", 1, counted.static(steps), 2)


class _Counted:
    """The load of the pieces of a configuration, from the mean of some random cells."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.config = config
        data, section = config.data, config.search
        train_size, full_size = search_cost.image_sizes(config)
        net = static_net.make(config.net, features.settings_of(config).num_classes)
        self._crop = static_net.num_macs(net, (data.crop_height, data.crop_width))
        self._train, self._full = (static_net.num_macs(net, size) for size in (train_size, full_size))
        counted = search_cost.of_search(config, section.steps * section.genotypes_per_step, num_genotypes=20)
        self.search = Load(counted["flops"] / 2, counted["bytes"])
        self._scoring = Load(counted["evaluate_macs"], counted["evaluate_bytes"])
        per_frame = 1 / (section.batch_size * data.num_frames)  # of a gradient on the mean cell
        self._gradient = Load(counted["train_macs"], counted["train_bytes"]) * per_frame
        num_train, self._num_frames = _sizes(data, config.evaluate.split)
        self.is_there = self._num_frames > 0
        held_out = num_train * section.meta_val_fraction
        drawn = section.cache_clips or num_train - held_out
        self.features = Load(data.num_frames * (drawn * self._train + held_out * self._full))

    @property
    def job(self) -> Load:
        """A cell trained from scratch."""
        train = self.config.train
        return self._gradient * (train.steps * train.batch_size * self.config.data.num_frames)

    @property
    def evaluation(self) -> Load:
        """A network and its cell on all videos of the split, the network alone beside it."""
        cell = self._gradient.macs / search_cost.GRADIENT_PASSES * self._full / self._train
        return Load(self._num_frames * (2 * self._full + cell))

    def static(self, steps: int) -> Load:
        """So many steps of the static network."""
        return Load(search_cost.GRADIENT_PASSES * steps * self.config.pretrain.batch_size * self._crop)

    def ablation(self, limit: int | None) -> Load:
        """Variants scored once on all meta-validation clips, about twice as many as those of a reward."""
        space = features.space_of(self.config)
        tokens = 2 * len(space.operations) + len(space.aggregations) + 2 * space.num_inputs
        return self._scoring * (2 * (limit or space.num_layers * tokens))


def _sizes(data: ml_collections.ConfigDict, split: str) -> tuple[int, int]:
    """Clips to train on, and frames of the split that is evaluated; (0, 0) where the data is not there."""
    try:
        num_clips = pipeline.num_clips(data, "train", data.num_frames)
        if not datasets.of(data).is_computed:
            return num_clips, len(store.source(data, split).frames)
        num_videos, num_frames = store.computed_counts(data, split)
        return num_clips, num_videos * num_frames
    except errors.UserError:
        return 0, 0
