"""Which example comes when, and on which host: a function of (seed, number of the example) alone.

Examples are counted through all epochs; an epoch is a permutation of the clips keyed by (seed, epoch). Global batch i
holds the examples i B to (i + 1) B - 1, of which host h of n takes every n-th. So the union over the hosts, and the
content of every example, is the same for any number of hosts and workers, and any step can be the first one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.data.loading import augment

_STREAM_ORDER, _STREAM_AUGMENT, _STREAM_STILL = 101, 102, 103


@dataclasses.dataclass(frozen=True)
class Part:
    """What one host gets of an endless stream: from batch `start` on, every n-th example of each batch."""

    start: int = 0
    host: int = 0
    num_hosts: int = 1

    def size(self, batch_size: int) -> int:
        """Examples of a global batch that are this host's; raises UserError where the batch does not divide."""
        if not 0 <= self.host < self.num_hosts:
            raise errors.UserError(f"shard: host {self.host} of {self.num_hosts} does not exist; use 0 or more, below")
        if batch_size < 1 or batch_size % self.num_hosts:
            raise errors.UserError(
                f"pretrain.batch_size: {batch_size} clips do not divide among {self.num_hosts} hosts; "
                "use a multiple of them"
            )
        return batch_size // self.num_hosts


WHOLE = Part()
"""Everything, on every host."""


@dataclasses.dataclass(frozen=True)
class Example:
    """All that chance decides about one example."""

    clip: int  # its number in the order of `pipeline.load_clips`; among the chosen clips where some are chosen
    places: np.ndarray  # i32 [T] of its frames, oldest first; [1] for stills
    uniforms: np.ndarray  # f32 [augment.num_uniforms], in 0..1
    key: np.uint32  # of the noise


@dataclasses.dataclass(frozen=True)
class History:
    """Where the frames before a target may be: drawn anew for every example."""

    sequences: np.ndarray  # i32 [M], number of the sequence of each frame
    numbers: np.ndarray  # i32 [M], of the frames, rising within a sequence
    gap: int  # wanted distance of two frames of a clip
    jitter: int  # how far a distance may be off

    def draw(self, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A clip with the target of another: each earlier frame is any that exists `gap` +- `jitter` before the next.

        `places` i32 [T], a clip with the exact gaps, is kept where the drawn frames lead nowhere.
        """
        drawn, parts = [int(places[-1])], rng.random(len(places) - 1)
        for part in parts:
            last = drawn[-1]
            start = int(np.searchsorted(self.sequences, self.sequences[last]))
            before = self.numbers[start:last]
            low = start + int(np.searchsorted(before, self.numbers[last] - self.gap - self.jitter))
            nearest = max(self.gap - self.jitter, 1)
            high = start + int(np.searchsorted(before, self.numbers[last] - nearest, side="right"))
            if low >= high:
                return places
            drawn.append(low + int(part * (high - low)))
        return np.array(drawn[::-1], np.int32)


@dataclasses.dataclass(frozen=True)
class Stream:
    """The endless examples of training."""

    places: np.ndarray  # i32 [N, T] of the clips
    spare: int  # a clip may start up to so many frames earlier
    rules: augment.Rules
    num_frames: int  # T
    seed: int
    history: History | None = None  # where the gap varies

    def batches(self, batch_size: int, part: Part = WHOLE) -> Iterator[list[Example]]:
        """A part of the global batches of B examples."""
        size = part.size(batch_size)
        examples = self._examples(part.start * batch_size + part.host, part.num_hosts)
        while True:
            yield [next(examples) for _ in range(size)]

    def _examples(self, counter: int, step: int) -> Iterator[Example]:
        """Every `step`-th example from the number `counter` on."""
        known, order = -1, np.empty(0, np.int64)
        while True:
            epoch, at = divmod(counter, len(self.places))
            if epoch != known:
                known, order = epoch, order_of(self.seed, epoch, len(self.places))
            yield self._example(int(order[at]), counter)
            counter += step

    def _example(self, clip: int, counter: int) -> Example:
        rng = np.random.default_rng((self.seed, _STREAM_AUGMENT, counter))
        uniforms, key = augment.draw(rng, self.num_frames, self.rules.num_tries)
        places = self.places[clip]
        if self.spare:
            places = places - rng.integers(self.spare + 1)
        if self.history is not None:
            places = self.history.draw(places, rng)
        return Example(clip, places.astype(np.int32), uniforms, key)


def order_of(seed: int, epoch: int, num_clips: int) -> np.ndarray:
    """The order i64 [N] in which an epoch takes the clips."""
    return np.random.default_rng((seed, _STREAM_ORDER, epoch)).permutation(num_clips)


def unaugmented(places: np.ndarray, num_frames: int, seed: int, clips: Iterable[int]) -> Iterator[Example]:
    """Examples of some clips of places i32 [N, T]; the random numbers are those of a history made from stills."""
    for clip in clips:
        uniforms, key = augment.draw(np.random.default_rng((seed, _STREAM_STILL, clip)), num_frames)
        yield Example(clip, places[clip].astype(np.int32), augment.neutral(uniforms), key)
