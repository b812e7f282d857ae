"""What is scored beside a network and its cell and needs no training: the bar that a cell has to pass.

Propagate: `hold`, the static network's labels of the last key frame, key frames at the interval of the schedule.
Refine: `ema`, the running average of the static network's logits (`train.averaging`). And the commonest class.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from dvsnas_jax.core.files import workdir
from dvsnas_jax.infer import jitted, programs
from dvsnas_jax.train import averaging

NAMES = ("hold", "ema")
"""Of the baselines of the modes; at most one is of a run."""
OTHERS = ("joint_static", "static_longer")
"""Static networks that only some runs have: that of the cell (`train.joint`), and the control of it."""


class Controls(NamedTuple):
    """What to score beside a network and its cell; None: not that.

    Attributes:
      interval: of the key frames whose labels are held.
      share: of the current frame in the running average.
      commonest: the class that is always answered.
      networks: other static networks, each alone: `static`, that of the run, where the cell has one of its own, which
        then is `joint_static`; `static_longer`, trained on for as many steps.
    """

    interval: int | None = None
    share: float | None = None
    commonest: int | None = None
    networks: Mapping[str, jitted.Jitted] = types.MappingProxyType({})

    def settings(self) -> dict[str, dict[str, Any]]:
        """Of each baseline that is scored, what it depends on."""
        known: dict[str, dict[str, Any]] = {"hold": {"interval": self.interval}, "ema": {"share": self.share}}
        return {name: values for name, values in known.items() if None not in values.values()}

    def others(self) -> list[str]:
        """Those of `OTHERS` that are scored."""
        keys = {"joint_static": "static", "static_longer": "static_longer"}
        return [name for name in OTHERS if keys[name] in self.networks]


NOTHING = Controls()


def of_run(
    config: ml_collections.ConfigDict, model: programs.Model, folder: workdir.Workdir, *, is_other_data: bool = False
) -> Controls:
    """The baseline of the mode of a run, where the run has a cell that is not itself one.

    On other data than the run's the average has the share of the run, if that was chosen already.
    """
    if model.cell is None or not model.settings.has_output:
        return NOTHING
    if model.settings.is_propagating:
        return Controls(interval=model.settings.schedule.interval)
    if is_other_data:
        return Controls(share=averaging.known_share(folder))
    return Controls(share=averaging.share_of_run(config, model.variables, folder))


def hold(static: np.ndarray, interval: int) -> np.ndarray:
    """The labels of the last key frame, u8 [T, H, W] of the static network's; frames 0, interval, .. are key frames."""
    return static[np.arange(len(static)) // interval * interval]


def ages(key_share: np.ndarray) -> np.ndarray | None:
    """Frames since the last key frame, i32 [T], from the share of each frame that the static network computed, [T].

    None where a frame was computed in part (regions): it has no one age.
    """
    if not np.isin(key_share, (0.0, 1.0)).all():
        return None
    last = np.maximum.accumulate(np.where(key_share == 1.0, np.arange(len(key_share)), 0))
    return (np.arange(len(key_share)) - last).astype(np.int32)


def verdict(scores: Mapping[str, Any]) -> str:
    """Says that a cell does not beat the baseline of its mode in mIoU; "" where it does, or nothing is known.

    `scores` are those of an evaluation: name of the network -> its scores, or None.
    """
    cell = (scores.get("cell") or {}).get("miou")
    for name in NAMES:
        bar = (scores.get(name) or {}).get("miou")
        if cell is not None and bar is not None and cell <= bar:
            return f"does not beat {name}, which needs no training: mIoU {100 * cell:.2f}, {name} {100 * bar:.2f}"
    return ""
