"""Which clips of a training split are held out: contiguous blocks of its sequences, or clips drawn at random.

Neighbouring frames of a video show nearly the same. A held-out clip whose neighbours are trained on says how well they
were learned by heart; inside a block only the clips at its ends have such neighbours.
"""

from __future__ import annotations

import numpy as np

from dvsnas_jax.core import errors

BLOCKS, RANDOM = "blocks", "random"
KINDS = (BLOCKS, RANDOM)
"""What `config.search.meta_val` may be."""
Split = tuple[np.ndarray, np.ndarray]
"""Numbers of the clips to train on, and of those held out; disjoint."""
_SHORTEST, _MOST = 4, 24
"""A block has at least so many clips, and there are at most so many blocks."""
_TRIES = 20
"""How often the places of the blocks are drawn where nothing would be left to train on."""


def count(num_clips: int, fraction: float) -> int:
    """How many of the clips are held out: at least one, and one is left."""
    return min(max(int(round(num_clips * fraction)), 1), num_clips - 1)


def at_random(num_clips: int, num_held: int, seed: int) -> Split:
    """Clips drawn one by one, both parts sorted: honest where each clip is a sequence of its own."""
    order = np.random.default_rng((seed, 1)).permutation(num_clips)
    return np.sort(order[num_held:]), np.sort(order[:num_held])


def in_blocks(sequences: np.ndarray, numbers: np.ndarray, num_held: int, *, reach: int, seed: int) -> Split:
    """Contiguous blocks of clips, spread evenly over all of them.

    The clips are cut into as many stretches of equal length as there are to be blocks: two a sequence, fewer where
    they would be too short. Each has its block at a place drawn from those where it lies in the fewest sequences.

    Args:
      sequences: integers [N], of the clips' targets, in order; a sequence is contiguous.
      numbers: integers [N], of the target frames, rising within a sequence.
      num_held: how many clips are held out.
      reach: clips of one sequence with targets less than so many frame numbers apart share frames, or nearly do: those
        so near to a block are left out of training.
      seed: of the places, and of the order.

    Returns:
      Those to train on, sorted. Those held out in an order of which every beginning is spread over all blocks.

    Raises:
      UserError: no clip is left to train on.
    """
    rng, num_clips = np.random.default_rng((seed, 1)), len(sequences)
    num_blocks = min(2 * len(np.unique(sequences)), num_held // _SHORTEST, _MOST, (num_clips - num_held) // 2)
    if not num_held:
        return np.arange(num_clips), np.empty(0, np.int64)
    for _ in range(_TRIES):
        held = _place(sequences, num_held, max(num_blocks, 1), rng)
        is_taken = np.isin(np.arange(num_clips), held)
        for clip in held if reach else ():
            is_taken |= (sequences == sequences[clip]) & (np.abs(numbers - numbers[clip]) < reach)
        if not is_taken.all():
            return np.flatnonzero(~is_taken), held[_spread(sequences[held], held, rng)]
    raise errors.UserError(
        f"search.meta_val: beside {num_held} held-out clips of {num_clips} none is left that shares no frames with "
        "them; lower search.meta_val_fraction or data.num_frames, or set search.meta_val to 'random'"
    )


def in_folds(
    sequences: np.ndarray, numbers: np.ndarray, chosen: np.ndarray, num_folds: int, *, reach: int
) -> list[Split]:
    """Deals some clips out to folds; each fold holds out its clips and may train on the others of them.

    The clips of a fold are contiguous blocks, spread evenly: two a sequence, fewer where they would be too short.

    Args:
      sequences, numbers, reach: as those of `in_blocks`.
      chosen: numbers of the clips, rising.
      num_folds: at least 2.

    Returns:
      Of each fold, the clips to train on, that share no frame with those held out, and those held out; both sorted.

    Raises:
      UserError: a fold has no clip, or leaves none to train on.
    """
    num_blocks = min(2 * len(np.unique(sequences)), len(chosen) // (num_folds * _SHORTEST), _MOST)
    pieces = np.array_split(chosen, num_folds * max(num_blocks, 1))
    found = []
    for fold in range(num_folds):
        held = np.concatenate(pieces[fold::num_folds])
        is_taken = np.isin(np.arange(len(sequences)), held)
        for clip in held if reach else ():
            is_taken |= (sequences == sequences[clip]) & (np.abs(numbers - numbers[clip]) < reach)
        found.append((chosen[~is_taken[chosen]], held))
    if not all(len(part) for split in found for part in split):
        raise errors.UserError(
            f"features.folds: {num_folds} folds of the {len(chosen)} clips to train on leave one without a clip, or "
            "without any that shares no frames with its clips; lower features.folds or data.num_frames"
        )
    return found


def _place(sequences: np.ndarray, num_held: int, num_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """The clips of the blocks, i64 [n], sorted."""
    edges, ends = (np.linspace(0, total, num_blocks + 1).round().astype(int) for total in (len(sequences), num_held))
    number = np.cumsum(np.append(False, sequences[1:] != sequences[:-1]))
    held = []
    for low, high, length in zip(edges[:-1], edges[1:], np.diff(ends), strict=True):
        starts = np.arange(low, high - length + 1)
        crossed = number[starts + length - 1] - number[starts]
        held.append(rng.choice(starts[crossed == crossed.min()]) + np.arange(length))
    return np.concatenate(held)


def _spread(sequences: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of the held-out clips i64 [n] that takes from every contiguous piece in turn, in proportion."""
    begins = np.append(True, (np.diff(held) > 1) | (sequences[1:] != sequences[:-1]))
    pieces = np.cumsum(begins) - 1
    sizes = np.bincount(pieces)
    at = np.concatenate([(rng.permutation(size) + rng.random()) / size for size in sizes])
    return np.argsort(at, kind="stable")
