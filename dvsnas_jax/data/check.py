"""`dvsnas data check`: what a dataset folder holds, and everything that is wrong with it."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterable

import numpy as np

from dvsnas_jax.core import errors, progress, types
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import coverage
from dvsnas_jax.data.datasets import folder_layout, frames, layouts, listing
from dvsnas_jax.data.loading import clip_index, decode

_SHOWN_SEQUENCES = 12
_SHOWN_IGNORED = 8
_ASPECT_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
      split: its name.
      source: its frames.
      sizes: (width, height) -> number of frames.
      labels: what its label images hold.
    """

    split: str
    source: frames.Source
    sizes: collections.Counter[tuple[int, int]]
    labels: coverage.Split

    @property
    def histogram(self) -> np.ndarray:
        """Pixels of each train id, i64 [256]."""
        return self.labels.histogram

    @property
    def num_labelled(self) -> int:
        """Frames that have labels."""
        return sum(frame.label is not None for frame in self.source.frames)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a dataset holds.

    Attributes:
      folder: of the dataset.
      layout: as `layouts.recognise` calls it.
      splits: those that are there.
      problems: a line each.
      notes: harmless, a line each.
    """

    folder: str
    layout: str
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _File:
    """What was seen of one frame: its size (width, height), a digest of its pixels, pixels of each label value."""

    size: tuple[int, int] | None = None
    digest: bytes = b""
    counts: dict[int, int] | None = None
    problems: tuple[str, ...] = ()


def run(folder: str, name: str, options: folder_layout.Options, *, workers: int = 0) -> Report:
    """Reads every file of a dataset.

    Args:
      folder: of the dataset.
      name: camvid, cityscapes, folder, or auto.
      options: of the folder layout.
      workers: threads; 0: as many as there are cores.

    Raises:
      UserError: no such folder, or options that make no sense.
    """
    layout = layouts.recognise(folder, name)
    problems: dict[str, None] = {}  # in order, each once: splits of one folder meet the same
    notes: dict[str, None] = {}
    found = []
    for split in layouts.present(folder, layout, options):
        scan = layouts.scan(folder, split, layout, options)
        problems.update((str(problem), None) for problem in scan.problems)
        notes.update((note, None) for note in scan.notes)
        found.append((split, _source(folder, split, layout, options, scan)))
    if not found:
        problems[f"{folder}: no split and no frames are here; {layouts.expected(layout)}"] = None
    reports, seen = [], []
    with progress.bar(sum(len(source.frames) for _, source in found), "check") as bar:
        for split, source in found:
            files = _inspect_all(source, workers or os.cpu_count() or 1, bar)
            problems.update((problem, None) for file in files for problem in file.problems)
            problems.update((problem, None) for problem in _odd_shapes(source, files))
            sizes = collections.Counter(file.size for file in files if file.size is not None)
            reports.append(SplitReport(split, source, sizes, _labels(split, source, files)))
            seen += list(zip(source.frames, files, strict=True))
    for wrong, harmless in (_duplicates(seen), _coverage([each.labels for each in reports], layout, options)):
        problems.update((problem, None) for problem in wrong)
        notes.update((note, None) for note in harmless)
    return Report(folder, layout, tuple(reports), tuple(problems), tuple(notes))


def _source(folder: str, split: str, layout: str, options: folder_layout.Options, scan: listing.Scan) -> frames.Source:
    """What was found; masks whose classes have no names yet are looked at, too, to say which ids they hold."""
    if layout != "folder" or not options.is_unnamed:
        return layouts.source(folder, split, layout, options, scan)
    ordered = tuple(scan.frames[key] for key in sorted(scan.frames))
    nothing = types.ClassTable(names=(), colors=np.zeros((0, 3), np.uint8))
    code = frames.code_of({}, is_color=options.labels == "colors", ignore_key="data.folder.ignore")
    return frames.Source(layout, ordered, nothing, code, options.frame_rate)


def _labels(split: str, source: frames.Source, files: list[_File]) -> coverage.Split:
    """Counts the label images that could be read."""
    found = coverage.Split(split, source.table, source.code, sum(file.counts is not None for file in files))
    for frame, file in zip(source.frames, files, strict=True):
        if file.counts is not None and frame.label is not None:
            found.add(frame.label, file.counts)
    return found


def _coverage(splits: list[coverage.Split], layout: str, options: folder_layout.Options) -> tuple[list[str], list[str]]:
    """Problems and notes of the classes."""
    if layout == "folder" and options.is_unnamed:
        values = sorted({value for split in splits for value in split.counts})
        what, key = ("colours", "colors") if options.labels == "colors" else ("ids", "ids")
        return [
            f"data.folder.classes: the masks hold the {what} {coverage.shares(splits)}; name a class for each of them, "
            f"in the order of data.folder.{key} ({','.join(map(splits[0].code.text, values[:12]))}), and in "
            "data.folder.ignore those that are none"
        ] if values else [], []  # fmt: skip
    problems, notes = coverage.judge(splits, is_own=layout == "folder", absent=options.absent)
    return problems, notes + (_ignored_notes(splits) if layout == "folder" else [])


def _ignored_notes(splits: list[coverage.Split]) -> list[str]:
    """What is ignored of the masks of one's own data, and the key that makes a class of it."""
    counts: collections.Counter[int] = collections.Counter()
    for split in splits:
        counts.update(split.values(types.IGNORE))
    total = sum(sum(split.counts.values()) for split in splits)
    return [
        f"{splits[0].code.text(value)} is ignored: {count:,} pixels, {100 * count / total:.1f} % of the masks; "
        f"data.folder.{'colors' if splits[0].code.is_color else 'ids'} makes a class of it"
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


def _inspect(frame: frames.Frame, code: frames.LabelCode) -> _File:
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
            labels = code.pack(decode.read_pixels(frame.label, code))
            counts = frames.count_values(labels)
            if size is not None and size != labels.shape[::-1]:
                problems.append(decode.size_problem(frame, size, labels.shape[::-1]))
        except errors.UserError as error:
            problems.append(str(error))
    return _File(size, digest, counts, tuple(problems))


def _odd_shapes(source: frames.Source, files: list[_File]) -> list[str]:
    """Frames whose shape is not that of most frames of their sequence: they would be distorted."""
    by_sequence: dict[str, collections.Counter[tuple[int, int]]] = {}
    for frame, file in zip(source.frames, files, strict=True):
        if file.size is not None:
            by_sequence.setdefault(frame.sequence, collections.Counter())[file.size] += 1
    problems = []
    for frame, file in zip(source.frames, files, strict=True):
        if file.size is None:
            continue
        width, height = by_sequence[frame.sequence].most_common(1)[0][0]
        if abs(file.size[0] * height / (file.size[1] * width) - 1) > _ASPECT_TOLERANCE:
            problems.append(
                f"{frame.image}: {file.size[0]}x{file.size[1]} pixels, but most frames of sequence {frame.sequence} "
                f"have {width}x{height}; crop or replace it"
            )
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
    lines = [f"{report.folder}: {report.layout}"]
    lines.append(f"{'split':<8}{'frames':>8}{'labelled':>10}{'sequences':>11}  sizes; gaps between frames")
    for each in report.splits:
        sizes = ", ".join(f"{w}x{h} ({count})" for (w, h), count in each.sizes.most_common(3))
        num_sequences = len({frame.sequence for frame in each.source.frames})
        lines.append(
            f"{each.split:<8}{len(each.source.frames):>8}{each.num_labelled:>10}{num_sequences:>11}  {sizes}; "
            f"{clip_index.gaps_text(each.source.frames)}"
        )
    lines += ["", *_sequence_lines(report), "", *_class_lines(report)]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _sequence_lines(report: Report) -> list[str]:
    lines = [f"{'sequence':<24}{'split':<8}{'frames':>8}{'labelled':>10}  numbers"]
    rows = []
    for each in report.splits:
        groups: dict[str, list[frames.Frame]] = {}
        for frame in each.source.frames:
            groups.setdefault(frame.sequence, []).append(frame)
        for name, group in groups.items():
            labelled = sum(frame.label is not None for frame in group)
            numbers = f"{group[0].number}..{group[-1].number}, gaps {clip_index.gaps_text(group)}"
            rows.append(f"{name:<24}{each.split:<8}{len(group):>8}{labelled:>10}  {numbers}")
    lines += rows[:_SHOWN_SEQUENCES]
    if len(rows) > _SHOWN_SEQUENCES:
        lines.append(f"... and {len(rows) - _SHOWN_SEQUENCES} more sequences")
    return lines


def _class_lines(report: Report) -> list[str]:
    """Share of the labelled pixels that each class has; of all pixels, for the ignored."""
    lines = [f"{'class':<24}" + "".join(f"{each.split:>9}" for each in report.splits)]
    table = report.splits[0].source.table
    for i, name in enumerate(table.names):
        counts = [(each.histogram[i], each.histogram[: types.IGNORE].sum()) for each in report.splits]
        lines.append(f"{name:<24}" + "".join(_share(*pair) for pair in counts))
    counts = [(each.histogram[types.IGNORE], each.histogram.sum()) for each in report.splits]
    lines.append(f"{'(ignored, of all)':<24}" + "".join(_share(*pair) for pair in counts))
    ignored = [each.labels.values(types.IGNORE) for each in report.splits]
    values = sorted({value for counts in ignored for value in counts})
    text = report.splits[0].source.code.text
    for value in values[:_SHOWN_IGNORED]:
        pairs = zip(ignored, report.splits, strict=True)
        shares = "".join(_share(counts.get(value, 0), each.histogram.sum()) for counts, each in pairs)
        lines.append(f"{f'  {text(value)} (ignored)':<24}{shares}")
    if len(values) > _SHOWN_IGNORED:
        lines.append(f"  ... and {len(values) - _SHOWN_IGNORED} more that are ignored")
    return lines


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:>8.2f}%" if total else f"{'-':>9}"
