"""The settings of a cell that a config describes, and how far into the encoder such a cell reads."""

from __future__ import annotations

from collections.abc import Iterable

import ml_collections

from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell_frame, projections
from dvsnas_jax.space import schedule as schedule_lib


def of(config: ml_collections.ConfigDict, num_classes: int) -> cell_frame.CellSettings:
    """The sizes of the cell that a config describes, for data of K classes.

    Raises:
      UserError: a value is out of range.
    """
    schedule = config.schedule
    names = (
        "channels",
        "max_offset",
        "mode",
        "cut",
        "attention_window",
        "attention_heads",
        "correlation_window",
        "end",
    )
    return cell_frame.CellSettings(
        feature_channels=static_net.feature_channels(config.net, num_classes),
        reduction=config.net.grid_stride // static_net.LOGITS_STRIDE,
        schedule=schedule_lib.Schedule(**{**schedule, "grid": tuple(schedule.grid)}),
        **{name: config.space[name] for name in names},
    )


def depth(inputs: Iterable[str], settings: cell_frame.CellSettings) -> str:
    """How far a frame passes the encoder where a cell with these inputs segments it (mode propagate).

    The deepest stage that is read, of this frame or by the next one, else `image`.
    """
    if settings.schedule.is_learned:
        return settings.cut
    return max((name for name in map(projections.weights_of, inputs) if name in cell_frame.STAGES), default="image")
