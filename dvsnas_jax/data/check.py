"""`dvsnas data check`: what a dataset folder holds, and everything that is wrong with it."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable

import numpy as np

from dvsnas_jax.core import errors, progress, types
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import coverage, datasets
from dvsnas_jax.data.datasets import frames, labels, record
from dvsnas_jax.data.loading import clip_index, decode

_SHOWN_SEQUENCES = 12
_SHOWN_IGNORED = 8
_ASPECT_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Report:
    """What a dataset holds: the splits that are there, problems and harmless notes, a line each."""

    folder: record.Folder
    splits: tuple[coverage.Split, ...]
    sizes: tuple[collections.Counter[tuple[int, int]], ...]  # of the frames of each split: (width, height) -> number
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _File:
    """What was seen of one frame: its size (width, height), a digest of its pixels, pixels of each label value."""

    size: tuple[int, int] | None = None
    digest: bytes = b""
    counts: dict[int, int] | None = None
    problems: tuple[str, ...] = ()


def run(folder: str, name: str, options: record.Options, *, workers: int = 0) -> Report:
    """Reads every file of a dataset.

    Args:
      folder: of the dataset.
      name: of the data set, or auto: whatever it looks like.
      options: of data.folder.
      workers: threads; 0: as many as there are cores.

    Raises:
      UserError: no such folder, or options that make no sense.
    """
    opened = datasets.recognise(folder, name, options)
    problems: dict[str, None] = {}  # in order, each once: splits of one folder meet the same
    notes: dict[str, None] = {}
    found = {}
    for split in opened.present():
        scan = opened.scan(split)
        problems.update(dict.fromkeys(map(str, scan.problems)))
        notes.update(dict.fromkeys(scan.notes))
        found[split] = _source(opened, scan)
    if not found:
        problems[f"{folder}: no split and no frames are here; {opened.dataset.on_disk.expected}"] = None
    splits, sizes, seen = [], [], []
    with progress.bar(sum(len(source.frames) for source in found.values()), "check") as bar:
        for split, source in found.items():
            files = _inspect_all(source, workers or os.cpu_count() or 1, bar)
            problems.update(dict.fromkeys(problem for file in files for problem in file.problems))
            problems.update(dict.fromkeys(_odd_shapes(source, files)))
            splits.append(_labels(split, source, files))
            sizes.append(collections.Counter(file.size for file in files if file.size is not None))
            seen += list(zip(source.frames, files, strict=True))
    for wrong, harmless in (_duplicates(seen), _coverage(splits, opened)):
        problems.update(dict.fromkeys(wrong))
        notes.update(dict.fromkeys(harmless))
    return Report(opened, tuple(splits), tuple(sizes), tuple(problems), tuple(notes))


def _is_unnamed(opened: record.Folder) -> bool:
    """Masks whose classes have no names yet are looked at, too, to say which ids they hold."""
    return opened.dataset.is_own and opened.options.is_unnamed


def _source(opened: record.Folder, scan: frames.Scan) -> frames.Source:
    if not _is_unnamed(opened):
        return opened.source(scan)
    nothing = types.ClassTable(names=(), colors=np.zeros((0, 3), np.uint8))
    code = labels.code_of({}, is_color=opened.options.labels == "colors", ignore_key="data.folder.ignore")
    return frames.Source(opened.layout, scan.ordered, nothing, code, opened.options.frame_rate)


def _labels(split: str, source: frames.Source, files: list[_File]) -> coverage.Split:
    """Counts the label images that could be read."""
    found = coverage.Split(split, source, sum(file.counts is not None for file in files))
    for frame, file in zip(source.frames, files, strict=True):
        if file.counts is not None and frame.label is not None:
            found.add(frame.label, file.counts)
    return found


def _coverage(splits: list[coverage.Split], opened: record.Folder) -> tuple[list[str], list[str]]:
    """Problems and notes of the classes."""
    if not _is_unnamed(opened):
        problems, notes = coverage.judge(splits, opened.dataset, opened.options)
        return problems, notes + (_ignored_notes(splits) if opened.dataset.is_own else [])
    values = sorted({value for split in splits for value in split.counts})
    if not values:
        return [], []
    what, key = ("colours", "colors") if opened.options.labels == "colors" else ("ids", "ids")
    return [
        f"data.folder.classes: the masks hold the {what} {coverage.shares(splits)}; name a class for each of them, "
        f"in the order of data.folder.{key} ({','.join(map(splits[0].source.code.text, values[:12]))}), and in "
        "data.folder.ignore those that are none"
    ], []


def _ignored_notes(splits: list[coverage.Split]) -> list[str]:
    """What is ignored of the masks of one's own data, and the key that makes a class of it."""
    counts: collections.Counter[int] = collections.Counter()
    for split in splits:
        counts.update(split.values(types.IGNORE))
    total = sum(sum(split.counts.values()) for split in splits)
    return [
        f"{splits[0].source.code.text(value)} is ignored: {count:,} pixels, {100 * count / total:.1f} % of the masks; "
        f"data.folder.{'colors' if splits[0].source.code.is_color else 'ids'} makes a class of it"
        for value, count in counts.most_common(_SHOWN_IGNORED)
    ]


def _inspect_all(source: frames.Source, workers: int, bar: progress.Bar) -> list[_File]:
    files = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for file in pool.map(lambda frame: _inspect(frame, source.code), source.frames):
                files.append(file)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return files


def _inspect(frame: frames.Frame, code: labels.LabelCode) -> _File:
    """Reads a frame and its labels; each may be wrong by itself."""
    problems, size, digest, counts = [], None, b"", None
    try:
        image = image_files.read_image(frame.image)
        size = (image.shape[1], image.shape[0])
        digest = hashlib.blake2b(image.tobytes() + repr(size).encode(), digest_size=16).digest()
    except errors.UserError as error:
        problems.append(str(error))
    if frame.label is not None:
        try:
            values = code.pack(decode.read_pixels(frame.label, code))
            counts = labels.count_values(values)
            if size is not None and size != values.shape[::-1]:
                problems.append(decode.size_problem(frame, size, values.shape[::-1]))
        except errors.UserError as error:
            problems.append(str(error))
    return _File(size, digest, counts, tuple(problems))


def _odd_shapes(source: frames.Source, files: list[_File]) -> list[str]:
    """Frames whose shape is not that of most frames of their sequence: they would be distorted."""
    sizes = [(frame, file.size) for frame, file in zip(source.frames, files, strict=True) if file.size is not None]
    problems = []
    for sequence, found in itertools.groupby(sizes, lambda pair: pair[0].sequence):
        group = list(found)
        width, height = collections.Counter(size for _, size in group).most_common(1)[0][0]
        problems += [
            f"{frame.image}: {w}x{h} pixels, but most frames of sequence {sequence} have {width}x{height}; crop or "
            "replace it"
            for frame, (w, h) in group
            if abs(w * height / (h * width) - 1) > _ASPECT_TOLERANCE
        ]
    return problems


def _duplicates(seen: Iterable[tuple[frames.Frame, _File]]) -> tuple[list[str], list[str]]:
    """Equal pictures, as problems; as a note where a video may merely stand still: one sequence, not both labelled."""
    first: dict[bytes, frames.Frame] = {}
    problems, still = [], collections.Counter[str]()
    for frame, file in seen:
        same = first.setdefault(file.digest, frame) if file.digest else frame
        if same.image == frame.image:
            continue
        if same.sequence == frame.sequence and (same.label is None or frame.label is None):
            still[frame.sequence] += 1
        else:
            problems.append(f"{frame.image}: the same picture as {same.image}; remove one of the two")
    return problems, [f"sequence {name}: {count} frames repeat an earlier picture" for name, count in still.items()]


def text(report: Report) -> str:
    """The report as tables for people."""
    lines = [f"{report.folder.path}: {report.folder.layout}"]
    lines.append(f"{'split':<8}{'frames':>8}{'labelled':>10}{'sequences':>11}  sizes; gaps between frames")
    for split, counter in zip(report.splits, report.sizes, strict=True):
        found = split.source.frames
        sizes = ", ".join(f"{w}x{h} ({count})" for (w, h), count in counter.most_common(3))
        counts = f"{len(found):>8}{frames.num_labelled(found):>10}{len({frame.sequence for frame in found}):>11}"
        lines.append(f"{split.name:<8}{counts}  {sizes}; {clip_index.gaps_text(found)}")
    lines += ["", *_sequence_lines(report), "", *_class_lines(report)]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _sequence_lines(report: Report) -> list[str]:
    lines = [f"{'sequence':<24}{'split':<8}{'frames':>8}{'labelled':>10}  numbers"]
    rows = []
    for split in report.splits:
        for name, found in itertools.groupby(split.source.frames, lambda frame: frame.sequence):
            group = list(found)
            numbers = f"{group[0].number}..{group[-1].number}, gaps {clip_index.gaps_text(group)}"
            rows.append(f"{name:<24}{split.name:<8}{len(group):>8}{frames.num_labelled(group):>10}  {numbers}")
    lines += rows[:_SHOWN_SEQUENCES]
    if len(rows) > _SHOWN_SEQUENCES:
        lines.append(f"... and {len(rows) - _SHOWN_SEQUENCES} more sequences")
    return lines


def _class_lines(report: Report) -> list[str]:
    """Share of the labelled pixels that each class has; of all pixels, for the ignored."""
    splits = report.splits
    totals = [split.histogram.sum() for split in splits]
    lines = [f"{'class':<24}" + "".join(f"{split.name:>9}" for split in splits)]
    for i, name in enumerate(splits[0].source.table.names):
        counts = [(split.histogram[i], split.histogram[: types.IGNORE].sum()) for split in splits]
        lines.append(f"{name:<24}" + "".join(_share(*pair) for pair in counts))
    counts = [(split.histogram[types.IGNORE], total) for split, total in zip(splits, totals, strict=True)]
    lines.append(f"{'(ignored, of all)':<24}" + "".join(_share(*pair) for pair in counts))
    ignored = [split.values(types.IGNORE) for split in splits]
    values = sorted({value for counts in ignored for value in counts})
    for value in values[:_SHOWN_IGNORED]:
        shares = (_share(counts.get(value, 0), total) for counts, total in zip(ignored, totals, strict=True))
        lines.append(f"{f'  {splits[0].source.code.text(value)} (ignored)':<24}{''.join(shares)}")
    if len(values) > _SHOWN_IGNORED:
        lines.append(f"  ... and {len(values) - _SHOWN_IGNORED} more that are ignored")
    return lines


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:>8.2f}%" if total else f"{'-':>9}"
