"""Learned schedules that pay: of how many frames they may find something due.

A frame of which all is due takes longer than the static network by itself, as it was looked at first. The threshold of
a schedule is a share of labels, so how often it is exceeded follows from the data and from how well the cell learned.
Here the trained head is made to predict less, by one number, until no more frames are due than a config allows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.train import feature_store

_LARGEST = 30.0
"""Log-odds by which predictions may be lowered: of nothing more than that anything is left."""
_HALVINGS = 24


def limited(
    calibrate_fn: Callable[[types.Params], types.Params],
    cell: cell_lib.Cell,
    schedule: schedule_lib.Schedule,
    store: feature_store.AnyStore,
    batch_size: int,
) -> Callable[[types.Params], types.Params]:
    """`weights -> weights`: after `calibrate_fn`, which gives them running statistics, their head is made to find
    something due in at most the share `schedule.most_due` of the frames of a store that are no key frames by the
    interval. Nothing is changed where it does so already, or where there is no head.

    Key frames come at the interval alone here. Once they come when they are due, the next frames are closer to one, so
    fewer are due than that.
    """
    if not schedule.is_learned or schedule.most_due == 1:
        return calibrate_fn
    numbers = np.arange(store.num_clips, dtype=np.int32)

    @compilation.jit
    def look(params: types.Params, rows: types.FeatureStore, clips: jax.Array) -> jax.Array:
        log_odds = cell.predicted_errors(params, feature_store.take(rows, clips)[0])
        return log_odds.reshape(-1, *log_odds.shape[2:])

    def limit(weights: types.Params) -> types.Params:
        params, found = calibrate_fn(weights), []
        for start in range(0, len(numbers), batch_size):
            clips = numbers[np.minimum(np.arange(start, start + batch_size), len(numbers) - 1)]
            seen = np.asarray(look(params, *feature_store.anywhere(store, clips)))
            num_frames = len(seen) // batch_size
            own = seen.reshape(num_frames, batch_size, *seen.shape[1:])[:, : len(numbers) - start]
            found.append(own.reshape(-1, *seen.shape[1:]))
        log_odds = np.concatenate(found)
        lowered = by_how_much(schedule, log_odds[np.isfinite(log_odds).all(axis=(1, 2))])
        if not lowered:
            return params
        ports = params["ports"]
        return {**params, "ports": {**ports, "schedule": schedule_lib.less_often(ports["schedule"], lowered)}}

    return limit


def by_how_much(schedule: schedule_lib.Schedule, log_odds: np.ndarray) -> float:
    """The least number to be taken from log-odds f32 [N, h, w], of N frames, for the schedule to find something due in
    at most `schedule.most_due` of them; 0 where it does so already."""
    if not len(log_odds):
        return 0.0
    share = functools.partial(_due_share, schedule, jnp.asarray(log_odds))
    if share(0.0) <= schedule.most_due:
        return 0.0
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) <= schedule.most_due else (middle, high)
    return high


def _due_share(schedule: schedule_lib.Schedule, log_odds: jax.Array, lowered: float) -> float:
    """Of how many of the frames something is due."""
    return float(_exceeds(schedule, log_odds, jnp.float32(lowered)).mean())


@functools.partial(jax.jit, static_argnums=0)
def _exceeds(schedule: schedule_lib.Schedule, log_odds: jax.Array, lowered: jax.Array) -> jax.Array:
    return (schedule.scores(log_odds - lowered) > schedule.threshold).any(axis=(1, 2))
