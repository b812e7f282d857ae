"""Which frames of a folder are train, val and test where their paths do not say it: the keys `splits` and `split_by`.

No frame is in two splits. A video is never in two, but where the user lists frames or asks for blocks: neighbouring
frames of one video are nearly equal, and a score on them would be one on the training data.
"""

from __future__ import annotations

import fnmatch
import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.data.datasets import frames, listing, record

Key = tuple[str, int]
"""Sequence and number of a frame."""
_KEY = "data.folder.splits"
_FORMS = "give shares (0.8,0.2), files of names (lists/{split}.txt) or videos (val:NAME,test:NAME)"


def owners(
    root: pathlib.Path,
    images: Mapping[Key, pathlib.Path],
    labelled: Collection[Key],
    options: record.Options,
    found: frames.Scan,
) -> dict[Key, str]:
    """The split of every frame, of which some are labelled; frames in none are left out.

    Raises:
      UserError: the keys make no sense, or there are too few videos.
    """
    parts = options.splits
    is_pattern = len(parts) == 1 and "{split}" in parts[0]
    if not parts or is_pattern:
        pattern = parts[0] if parts else "{split}.txt"
        paths = {name: root / pattern.replace("{split}", name) for name in frames.SPLITS}
        lists = {name: path for name, path in paths.items() if path.is_file()}
        if lists:
            return _listed(root, images, labelled, lists, found)
        if parts:
            raise errors.UserError(f"{_KEY}: {paths['train']}: no such file; correct the pattern of the lists")
        found.notes.append(f"{root}: all frames are train, there is nothing to score on; {_advice(images)}")
        return dict.fromkeys(images, "train")
    if all(":" in part for part in parts):
        return _named(images, parts, found)
    shares = _shares(parts)
    return _blocks(images, shares) if options.split_by == "blocks" else _shared(images, labelled, shares)


def why_empty(images: Mapping[Key, pathlib.Path], options: record.Options, split: str, owner: Mapping[Key, str]) -> str:
    """Why a split has no frames, and what to do."""
    if options.splits:
        return f"{_KEY}={','.join(options.splits)} gives it none; add a share, a video or a list of it"
    if split != "train" and set(owner.values()) == {"train"} and len(owner) == len(images):
        return (
            f"without {{split}} in data.folder.frames all frames are train, and a score on {split} would be one on the "
            f"same frames; {_advice(images)}"
        )
    return f"the lists of frames beside the data give it none; add {split}.txt, or set {_KEY}"


def _advice(images: Mapping[Key, pathlib.Path]) -> str:
    """What to set where nothing splits the frames."""
    num_videos = len({sequence for sequence, _ in images})
    if num_videos == 1:
        how = f"{_KEY}=0.8,0.2 with data.folder.split_by=blocks cuts this one video in two"
    else:
        how = f"{_KEY}=0.8,0.2 splits the {num_videos} videos"
    return f"{how} (other ways: val:NAME, or files of names as lists/{{split}}.txt, or {{split}} in the pattern)"


def _shares(parts: Sequence[str]) -> list[float]:
    """Share of each split, of sum 1."""
    try:
        values = [float(part) for part in parts]
    except ValueError:
        raise errors.UserError(f"{_KEY}: {','.join(parts)!r} is no way to split; {_FORMS}") from None
    is_fine = 2 <= len(values) <= len(frames.SPLITS) and all(np.isfinite(values)) and min(values) >= 0
    if not is_fine or not values[0] or sum(value > 0 for value in values) < 2:
        raise errors.UserError(
            f"{_KEY}: {','.join(parts)!r} are no shares of {', '.join(frames.SPLITS)}; give two or three numbers, as "
            "0.8,0.2"
        )
    return [value / sum(values) for value in values]


def _shared(images: Mapping[Key, pathlib.Path], labelled: Collection[Key], shares: Sequence[float]) -> dict[Key, str]:
    """By shares of the videos that have masks; the others are train."""
    every = sorted({sequence for sequence, _ in images})
    has_masks = {sequence for sequence, _ in labelled}
    videos = [name for name in every if name in has_masks or not labelled]
    wanted = [i for i, share in enumerate(shares) if share > 0]
    if len(videos) < len(wanted):
        names = ", ".join(frames.SPLITS[i] for i in wanted)
        raise errors.UserError(
            f"{_KEY}: {len(videos)} video{'s' * (len(videos) != 1)} with masks cannot be shared among {len(wanted)} "
            f"splits ({names}); set data.folder.split_by=blocks to cut each in pieces"
        )
    counts = np.array([max(round(share * len(videos)), 1) if share else 0 for share in shares])
    while counts.sum() != len(videos):  # rounding: what is too much or too little is that of the largest split
        counts[counts.argmax()] += np.sign(len(videos) - counts.sum())
    drawn = np.random.default_rng(0).permutation(len(videos))  # the same whatever the run's seed
    owner = dict.fromkeys(every, "train")
    for split, part in zip(frames.SPLITS, np.split(drawn, np.cumsum(counts)[:-1]), strict=False):
        owner.update((videos[i], split) for i in part)
    return {key: owner[key[0]] for key in images}


def _blocks(images: Mapping[Key, pathlib.Path], shares: Sequence[float]) -> dict[Key, str]:
    """Contiguous pieces of every video, train first."""
    found: dict[Key, str] = {}
    for _, group in itertools.groupby(sorted(images), lambda key: key[0]):
        keys = list(group)
        ends = np.rint(np.cumsum(shares) * len(keys)).astype(int)
        places = np.searchsorted(ends, np.arange(len(keys)), side="right")
        found.update((key, frames.SPLITS[place]) for key, place in zip(keys, places, strict=True))
    return found


def _named(images: Mapping[Key, pathlib.Path], parts: Sequence[str], found: frames.Scan) -> dict[Key, str]:
    """By names of videos, `split:NAME`, with `*` for anything; the others are train where no part names train."""
    videos = sorted({sequence for sequence, _ in images})
    owner: dict[str, str] = {}
    for part in parts:
        split, pattern = part.split(":", 1)
        if split not in frames.SPLITS:
            raise errors.UserError(f"{_KEY}: {part!r} names no split; use {', '.join(frames.SPLITS)}, as val:NAME")
        matches = fnmatch.filter(videos, pattern)
        if not matches:
            shown = ", ".join(videos[:6]) + (", ..." if len(videos) > 6 else "")
            raise errors.UserError(f"{_KEY}: {part!r} is no video of data.dir; there are {shown}")
        for video in matches:
            if owner.setdefault(video, split) != split:
                raise errors.UserError(f"{_KEY}: {video} is {owner[video]} and {split}; keep it in one of them")
    rest = [video for video in videos if video not in owner]
    if not any(part.startswith("train:") for part in parts):
        owner.update(dict.fromkeys(rest, "train"))
    elif rest:
        found.notes.append(f"{_KEY}: {', '.join(rest[:6])}{', ...' * (len(rest) > 6)}: videos in no split")
    return {key: owner[key[0]] for key in images if key[0] in owner}


def _listed(
    root: pathlib.Path,
    images: Mapping[Key, pathlib.Path],
    labelled: Collection[Key],
    lists: Mapping[str, pathlib.Path],
    found: frames.Scan,
) -> dict[Key, str]:
    """By files that hold a video or a frame a line; frames by the end of their path, with or without suffix."""
    names: dict[str, list[Key]] = {}
    for key, path in images.items():
        parts = path.relative_to(root).with_suffix("").parts
        for name in {key[0], *("/".join(parts[start:]) for start in range(len(parts)))}:
            names.setdefault(name, []).append(key)
    owner: dict[Key, str] = {}
    has_frames = False
    for split, path in lists.items():
        for line in listing.lines(path):
            keys = _lookup(names, line)
            if keys is None:
                hint = "correct or remove it, or split by data.folder.splits"
                found.fail(path, f"lists {line}, which is no video and no frame that is there; {hint}")
                continue
            has_frames |= len(keys) == 1
            for key in keys:
                if owner.setdefault(key, split) != split:
                    other = lists[owner[key]].name
                    found.fail(path, f"lists {line}, which {other} lists too; keep it in one of them")
                    break
    if has_frames:
        owner_fn = frames.history_owner(owner)
        missing = [key for key in images if key not in owner and key not in labelled]
        owner.update((key, split) for key in missing if (split := owner_fn(*key)))
    rest = sorted(set(images) - set(owner))
    if rest:
        shown = ", ".join(path.name for path in lists.values())
        found.notes.append(f"{len(rest)} frames are in no list ({shown}), as {images[rest[0]]}")
    return owner


def _lookup(names: Mapping[str, list[Key]], line: str) -> list[Key] | None:
    """The frames that a line names, the whole of it or its first word (lists of pairs); None: nothing that is there."""
    for text in (line, *line.split()[:1]):
        path = pathlib.PurePosixPath(text.replace("\\", "/"))
        for name in (path, path.with_suffix("") if path.suffix else path):
            keys = names.get("/".join(part for part in name.parts if part not in ("/", ".")))
            if keys is not None:
                return keys
    return None
