"""Training clips of a run's own data and, behind them, of further data (`data.extra`), each in its share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, extra_data
from dvsnas_jax.data.loading import extra


class Rows(NamedTuple):
    """Numbers of training clips: the first are of the run's own data, then comes each of the further data."""

    own: int
    further: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """All of them."""
        return self.own + sum(self.further)


def rows(config: ml_collections.ConfigDict, num_own: int) -> Rows:
    """How many clips features are made of, where they would be of `num_own` clips without further data.

    Augmented draws (`search.cache_clips`) stay as many as they are, and some are of further data. Where each clip is
    there as it is, further clips are added.
    """
    shares = np.array([entry.share for entry in extra_data.parse(config.data.extra)])
    total = num_own if config.search.cache_clips else num_own / (1 - shares.sum())
    further = tuple(int(number) for number in np.round(total * shares))
    return Rows(num_own - sum(further) if config.search.cache_clips else num_own, further)


def pieces(
    config: ml_collections.ConfigDict, rows: Rows, first: int, last: int
) -> Iterator[tuple[extra.Extra, int, int]]:
    """Of the clips `first` to before `last` those of further data: whose, and which of its own, from where to where."""
    starts = rows.own + np.cumsum([0, *rows.further])
    found = extra.find(config.data) if rows.further and last > rows.own else []
    for each, start, number in zip(found, starts[:-1].tolist(), rows.further, strict=bool(found)):
        low, high = max(first - start, 0), min(last - start, number)
        if low < high:
            yield each, low, high


def frame_weights(rows: Rows, first: int, last: int, num_frames: int) -> np.ndarray:
    """What each frame of these clips weighs, f32 [last - first, T]: the target of own stills, all of further data."""
    is_own = np.arange(first, last)[:, None] < rows.own
    return np.where(is_own, np.arange(num_frames) == num_frames - 1, True).astype(np.float32)


def describe(config: ml_collections.ConfigDict) -> list[Any]:
    """All that the clips of further data follow from, for JSON."""
    return [config.seed, [each.describe() for each in extra.find(config.data)]] if config.data.extra else []


def check(config: ml_collections.ConfigDict) -> None:
    """Whether the further data can be used.

    Raises:
      UserError: it cannot be read, has no clip of that many frames, or has no labels where there is no teacher.
    """
    for each in extra.find(config.data):
        each.places(config.data.num_frames)
        if not each.is_labelled and not config.train.teacher_weight:
            raise errors.UserError(
                f"data.extra {each.entry}: none of its frames has labels, and train.teacher_weight is 0: nothing says "
                "what is right there; set train.teacher_weight to 1"
            )
