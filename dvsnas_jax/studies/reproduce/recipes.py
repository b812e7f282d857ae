"""What `dvsnas reproduce NAME` runs on a budget: a recipe each, whose parts are files of `configs` and changes."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import ml_collections

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.space import zoo

MINUTES, PAPER = "minutes", "paper"
Changes = Mapping[str, str]
"""Dotted key -> value as text, as in `--config.search.steps=200`."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One mode of a reproduction.

    Attributes:
      mode: as `config.space.mode`, and the name of its folder.
      search: the file of `configs` for the static network and the searches on it.
      changes: of that.
      cells: the file for the trainings of cells, on a static network of its own; empty: that of the searches.
      cells_changes: of that.
    """

    mode: str
    search: str
    changes: Changes = dataclasses.field(default_factory=dict)
    cells: str = ""
    cells_changes: Changes = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A reproduction on a budget.

    Attributes:
      name: of the data, as the command takes it.
      budget: `MINUTES` or `PAPER`.
      parts: in their order.
      num_seeds: trainings of every cell.
      num_searches: of every strategy, on one static network.
      num_top: cells of each search that are trained from scratch; the best on meta-validation is the found one.
      num_correlated: genotypes behind the rank correlation of rewards; 0: none.
      strategies: the first is the one whose cells the result is about.
      members: what is compared with the found cells, as `compare --genotypes` takes it.
      limit: at most so many variants of the ablation; None: all.
      is_static_shared: the parts hold out the same clips, so they stand on the static network of the first.
    """

    name: str
    budget: str
    parts: tuple[Part, ...]
    num_seeds: int = 3
    num_searches: int = 1
    num_top: int = 1
    num_correlated: int = 0
    strategies: tuple[str, ...] = ("ppo", "random")
    members: tuple[str, ...] = (zoo.ALL,)
    limit: int | None = None
    is_static_shared: bool = True

    @property
    def key(self) -> str:
        """Names the recipe among the figures of record."""
        return f"{self.name}/{self.budget}"


class Configs(NamedTuple):
    """Of a part: that of the static network and the searches, and that of the trainings of cells."""

    search: ml_collections.ConfigDict
    cells: ml_collections.ConfigDict


def get(name: str, budget: str) -> Recipe:
    """The recipe of a name and a budget; a UserError that says what there is where there is none."""
    names = list(dict.fromkeys(recipe.name for recipe in TABLE))
    for flag, given, known in (("NAME", name, names), ("--budget", budget, [MINUTES, PAPER])):
        if given not in known:
            close = difflib.get_close_matches(given, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ","
            raise errors.UserError(f"reproduce: {flag}: unknown {given!r}{hint} allowed are {', '.join(known)}")
    return next(recipe for recipe in TABLE if (recipe.name, recipe.budget) == (name, budget))


def configs(part: Part, overrides: Changes) -> Configs:
    """The configurations of a part; `overrides` come last and hold for both."""
    search = config_lib.load(_file(part.search), {**part.changes, **overrides})
    if not part.cells:
        return Configs(search, search)
    return Configs(search, config_lib.load(_file(part.cells), {**part.cells_changes, **overrides}))


def _file(name: str) -> str:
    """A file of `configs`: that of the checkout that the program runs from, else of the current folder."""
    own = pathlib.Path(__file__).resolve().parents[3] / "configs" / f"{name}.py"
    return str(own) if own.is_file() else name


_SHORT = {"search.steps": "25", "search.num_random": "0", "search.warmup_steps": "60", "train.label_stride": "4"}
"""125 candidates after a short warm-up."""
_PROPAGATE = {
    "space.mode": "propagate",
    "space.inputs": "prev_state,prev_decoder,prev_logits,stage1,stage2,image_diff,prev_stage2",
    "schedule.interval": "5",
    "schedule.threshold": "0.2",
    "data.num_frames": "6",
    "search.cost": "0.1",
}
"""What makes a propagating run of a refining one; the price on cost needs a target beside it."""
_CAMVID = {
    **_SHORT,
    "search.cache_clips": "200",
    "search.reward_clips": "12",
    "train.steps": "120",
    "train.eval_every": "60",
}
_SMALL_CITYSCAPES = {
    **_SHORT,
    "data.height": "128", "data.width": "256", "data.crop_height": "128", "data.crop_width": "256",
    "net.width": "0.5", "net.decoder_channels": "64", "net.encoder": "mobilenet_v2",
    "pretrain.steps": "400", "pretrain.batch_size": "12", "pretrain.warmup_steps": "30", "pretrain.polyak": "0.98",
    "pretrain.eval_every": "100", "pretrain.checkpoint_every": "100",
    "space.channels": "24", "space.num_layers": "4", "controller.masked_operations": "deform_conv_3x3",
    "controller.buffer": "20", "search.genotypes_per_step": "5", "search.shared_steps": "6",
    "search.shared_genotypes": "1", "search.batch_size": "4", "search.cache_clips": "60",
    "search.meta_val_fraction": "0.2", "search.reward_clips": "16",
    "train.steps": "150", "train.batch_size": "4", "train.warmup_steps": "20", "train.polyak": "0.98",
    "train.checkpoint_every": "75",
}  # fmt: skip
"""A quarter of the height of the paper-scale runs, and networks for two cores."""

TABLE = (
    Recipe(
        "synthetic",
        MINUTES,
        (
            Part("refine", "synthetic", {**_SHORT, "train.steps": "240", "train.batch_size": "4"}),
            # The target of the longer search is below what any cell costs. PPO ends in one that holds all the same.
            Part("propagate", "propagate", {**_SHORT, "train.steps": "100", "train.batch_size": "4",
                                            "search.batch_size": "6", "search.cost_target": "20"}),
        ),
        num_seeds=2,
    ),
    Recipe(
        "synthetic",
        PAPER,
        (Part("refine", "synthetic"), Part("propagate", "propagate")),
        num_searches=3,
        num_top=5,
        num_correlated=30,
    ),
    Recipe(
        "camvid",
        MINUTES,
        (
            Part("refine", "camvid_lite", _CAMVID),
            # Strategies that are compared start from nothing, and 125 candidates are too many to train each alone.
            Part("propagate", "camvid_lite_propagate", {**_CAMVID, "search.batch_size": "2", "train.batch_size": "2",
                                                        "search.mode": "share", "search.genotypes_per_step": "5"}),
        ),
        num_seeds=2,
        limit=60,
    ),
    Recipe(
        "camvid",
        PAPER,
        (
            Part("refine", "camvid_search", cells="camvid_train"),
            # A quarter of the multiply-adds of the static network.
            Part("propagate", "camvid_search", {**_PROPAGATE, "search.cost_target": "1400"}, "camvid_train",
                 _PROPAGATE),
        ),
        num_searches=3,
        num_top=3,
    ),
    Recipe(
        "cityscapes",
        MINUTES,
        (
            Part("refine", "cityscapes_search", _SMALL_CITYSCAPES),
            Part("propagate", "cityscapes_propagate", {**_SMALL_CITYSCAPES, "search.batch_size": "2",
                                                       "train.batch_size": "2", "search.cost_target": "60"}),
        ),
        num_seeds=2,
        limit=60,
        is_static_shared=False,  # true histories of another length: other clips are held out
    ),
    Recipe(
        "cityscapes",
        PAPER,
        (
            Part("refine", "cityscapes_search", cells="cityscapes_train"),
            Part("propagate", "cityscapes_propagate"),
        ),
        num_searches=3,
        num_top=3,
        is_static_shared=False,
    ),
)  # fmt: skip
