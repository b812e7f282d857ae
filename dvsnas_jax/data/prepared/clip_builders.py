"""TFDS builders of real video clips: one example for each labelled frame, with the frames before it.

The files of the dataset lie in a folder of the user's; nothing is downloaded. Images and labels are kept
as the bytes of their files, so that a prepared clip is the clip of the folder. The records are ArrayRecord
(random access, a hash over every chunk); `builder.as_data_source` reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import defaults, errors
from dvsnas_jax.data.datasets import frames, layouts
from dvsnas_jax.data.prepared import builders, encoded, reading

NAMES = {"camvid": "camvid_clips", "cityscapes": "cityscapes_clips", "folder": "folder_clips"}
_SHARD_BYTES = (1 << 24, 1 << 28)
"""Smallest and largest shard wanted; between them a split has 16."""
_WRITER_OPTIONS = "group_size:1,uncompressed"

Shard = Callable[[], Iterator[tuple[int, dict[str, Any]]]]
"""Reads the examples of one file, each with its number in the split."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be prepared, the bytes aside.

    Attributes:
      dataset: camvid | cityscapes | folder.
      sources: by split; their order is that of the splits.
      clips: by split: i32 [N, 2], first and last place of each example in the source's frames; the last is labelled.
      options: JSON values that decide what is written.
      left_out: splits of the folder that have no labels.
    """

    dataset: str
    sources: Mapping[str, frames.Source]
    clips: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the prepared frames, None where they stay as they are."""
        height, width = self.options["height"], self.options["width"]
        return (height, width) if height else None

    @property
    def num_examples(self) -> int:
        """Of all splits."""
        return sum(len(clips) for clips in self.clips.values())


def windows(found: tuple[frames.Frame, ...], span: int) -> np.ndarray:
    """The clip of every labelled frame: the frames at most `span` frame numbers before it, and itself.

    Args:
      found: ordered by (sequence, number).
      span: in frame numbers.

    Returns:
      i32 [N, 2], first and last place.
    """
    clips, first = [], 0
    for last, frame in enumerate(found):
        while found[first].sequence != frame.sequence or found[first].number < frame.number - span:
            first += 1
        if frame.label is not None:
            clips.append((first, last))
    return np.array(clips, np.int32).reshape(-1, 2)


def plan(data: ml_collections.ConfigDict, splits: tuple[str, ...] = (), *, height: int = 0, width: int = 0) -> Plan:
    """Looks at the dataset's folder and decides what is to be prepared.

    Args:
      data: section of the configuration: the dataset, its folder, and how long a history is kept.
      splits: which; () = all that the folder has.
      height: of the prepared frames, pixels; 0 = unchanged.
      width: likewise.

    Raises:
      UserError: the folder is not as it should be, or only one of height and width is given.
    """
    if (height > 0) != (width > 0) or min(height, width) < 0:
        raise errors.UserError(f"--height {height} --width {width}: give both, above 0, or neither")
    if data.name not in NAMES:
        raise errors.UserError(f"data.name: there is no '{data.name}' on disk; use one of {', '.join(NAMES)}")
    is_still = data.history == "stills"
    num_frames = 1 if is_still else int(data.num_frames)
    gap, tolerance = (0, 0) if is_still else (int(data.frame_gap), int(data.frame_gap_tolerance))
    found = {split: layouts.find(data, split) for split in splits or _present(data)}
    span = (num_frames - 1) * (gap + tolerance)
    every = {split: windows(source.frames, span) for split, source in found.items()}
    clips = {split: each for split, each in every.items() if len(each) or split in splits}
    for split in splits or tuple(every)[: not clips]:
        if not len(every[split]):
            raise errors.UserError(
                f"{layouts.root(data)}: no frame of {split} has labels; add some, or name other --splits"
            )
    sources = {split: found[split] for split in clips}
    options = {
        "splits": sorted(sources),
        "num_frames": num_frames,
        "frame_gap": gap,
        "frame_gap_tolerance": tolerance,
        "height": height,
        "width": width,
        "layout": ", ".join(sorted({source.layout for source in sources.values()})),
    }
    left_out = tuple(split for split in found if split not in clips)
    return Plan(dataset=data.name, sources=sources, clips=clips, options=options, left_out=left_out)


def _present(data: ml_collections.ConfigDict) -> list[str]:
    """The splits that the folder has; of the official CamVid, whose splits are lists, those that are not empty."""
    options = layouts.options(data)
    root = layouts.root(data)
    layout = layouts.recognise(root, data.name)
    found = layouts.present(root, layout, options)
    if layout == "camvid_official":
        found = [split for split in found if layouts.scan(root, split, layout, options).frames] or found
    return found or ["train"]


def digest(planned: Plan) -> str:
    """A hash over names, numbers and file sizes of all frames: another one means another dataset."""
    found = hashlib.sha256()
    for split in sorted(planned.sources):
        for frame in planned.sources[split].frames:
            label = (frame.label.name, encoded.size_of(frame.label)) if frame.label else ()
            row = (split, frame.sequence, frame.number, frame.image.name, encoded.size_of(frame.image), *label)
            found.update(repr(row).encode())
    return found.hexdigest()


def num_shards(num_bytes: int, num_examples: int) -> int:
    """How many files the examples of a split are divided into."""
    wanted = min(max(num_bytes // 16, _SHARD_BYTES[0]), _SHARD_BYTES[1])
    return max(min(round(num_bytes / wanted), num_examples), 1)


def metadata(planned: Plan) -> dict[str, Any]:
    """What makes a prepared folder independent of the dataset's own, as JSON values: classes, label code, layout."""
    source = next(iter(planned.sources.values()))
    return {
        "dataset": planned.dataset,
        "options": dict(planned.options),
        "digest": digest(planned),
        "layouts": {split: each.layout for split, each in planned.sources.items()},
        "frame_rate": source.frame_rate,
        "class_names": list(source.table.names),
        "class_colors": source.table.colors.tolist(),
        "label_raw": source.code.raw.tolist(),
        "label_train": source.code.train.tolist(),
        "label_is_color": bool(source.code.is_color),
    }


def index_text(planned: Plan) -> str:
    """The content of `prepared.INDEX`: by split, the frames in use, and the first and last one of each example."""
    content = {}
    for split, source in planned.sources.items():
        clips = planned.clips[split]
        is_used = np.zeros(len(source.frames) + 1, bool)
        for first, last in clips:
            is_used[first : last + 1] = True
        place = np.cumsum(is_used) - 1
        content[split] = {
            "frames": [
                [frame.sequence, frame.number, frame.image.name, frame.label.name if frame.label else ""]
                for frame, used in zip(source.frames, is_used, strict=False)
                if used
            ],
            "clips": place[clips].tolist(),
        }
    return json.dumps(content, separators=(",", ":"))


def examples(source: frames.Source, clips: np.ndarray, size: tuple[int, int] | None) -> Iterator[dict[str, Any]]:
    """Reads the examples of some clips.

    Args:
      source: of the split.
      clips: i32 [n, 2].
      size: height and width, None = the bytes of the files.

    Raises:
      UserError: a file cannot be read or is no image.
    """
    longest = int((clips[:, 1] - clips[:, 0]).max(initial=0)) + 1
    read = functools.lru_cache(maxsize=2 * longest)(lambda frame: encoded.pair(frame, size))
    for first, last in clips:
        found = source.frames[first : last + 1]
        images, labels = zip(*(read(frame) for frame in found), strict=True)
        yield {
            "sequence": found[-1].sequence,
            "numbers": [frame.number for frame in found],
            "frame_rate": source.frame_rate,
            "images": list(images),
            "labels": list(labels),
        }


class _Clips:
    """What the builders have in common; `_class` joins it to the class of TFDS."""

    url_infos: dict[str, Any] = {}  # nothing is downloaded: no search for a file of checksums
    info: Any
    data_dir: Any
    _get_filename_template: Any

    def __init__(self, *, planned: Plan, **kwargs: Any):
        self._planned = planned
        self.num_workers = min(os.cpu_count() or 1, 16)
        self.shard_counts = dict.fromkeys(planned.sources, 1)
        self.on_example: Callable[[], None] = lambda: None
        super().__init__(**kwargs | {"file_format": "array_record"})

    def _info(self) -> Any:
        tfds = builders.tensorflow_datasets()
        text, sequence = tfds.features.Text, tfds.features.Sequence
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "sequence": text(doc="Name of the video."),
                    "numbers": sequence(np.int64, doc="Frame numbers, oldest first; the last one is the target."),
                    "frame_rate": tfds.features.Scalar(np.float32, doc="Hz, of consecutive frame numbers."),
                    "images": sequence(text(doc="Bytes of an image file.")),
                    "labels": sequence(text(doc="Bytes of a label file, empty where there is none.")),
                }
            ),
            metadata=tfds.core.MetadataDict(metadata(self._planned)),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Shard]]:
        del dl_manager  # nothing is downloaded
        return {split: self._shards(split) for split in self._planned.sources}

    def _shards(self, split: str) -> list[Shard]:
        clips = self._planned.clips[split]
        source, size = self._planned.sources[split], self._planned.size

        def make(rows: np.ndarray) -> Shard:
            return lambda: zip(map(int, rows), examples(source, clips[rows], size), strict=True)

        return [make(rows) for rows in np.array_split(np.arange(len(clips)), self.shard_counts[split])]

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """As in the base class, but several shards at a time, a thread each."""
        del download_config
        tfds = builders.tensorflow_datasets()
        shards = self._shard_iterators_per_split(dl_manager)
        jobs = [(split, number, shard) for split, each in shards.items() for number, shard in enumerate(each)]
        written = self._run(jobs)
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[written[split, number][0] for number in range(len(each))],
                num_bytes=sum(written[split, number][1] for number in range(len(each))),
                filename_template=self._get_filename_template(split),
            )
            for split, each in shards.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(infos))
        (pathlib.Path(self.data_dir) / reading.INDEX).write_text(index_text(self._planned))

    def _run(self, jobs: list[tuple[str, int, Shard]]) -> dict[tuple[str, int], tuple[int, int]]:
        """Writes the shards; (split, number) -> numbers of examples and bytes. After an error no thread is left."""
        stop = threading.Event()
        with futures.ThreadPoolExecutor(self.num_workers) as pool:
            running = {pool.submit(self._write_shard, *job, stop): job[:2] for job in jobs}
            try:
                return {running[each]: each.result() for each in futures.as_completed(running)}
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _write_shard(self, split: str, number: int, shard: Shard, stop: threading.Event) -> tuple[int, int]:
        from array_record.python import array_record_module

        template = self._get_filename_template(split)
        path = os.fspath(template.sharded_filepath(shard_index=number, num_shards=self.shard_counts[split]))
        writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
        count = 0
        try:
            for _, example in shard():
                if stop.is_set():
                    break
                writer.write(self.info.features.serialize_example(example))
                self.on_example()
                count += 1
        finally:
            writer.close()
        return count, os.path.getsize(path)

    def _log_download_bytes(self) -> None:
        """Says nothing: nothing is downloaded."""

    _log_download_done = _log_download_bytes


_DOCS = {
    "camvid": ("CamvidClips", "CamVid: clips that end in a labelled frame, 11 classes."),
    "cityscapes": ("CityscapesClips", "Cityscapes: clips that end in a labelled frame, 19 classes."),
    "folder": ("FolderClips", "A folder of the user's: clips that end in a labelled frame."),
}


@functools.cache
def _class(dataset: str) -> Any:
    """The builder class; made once, since TFDS registers its name."""
    tfds = builders.tensorflow_datasets()
    name, text = _DOCS[dataset]
    members = {
        "__doc__": text,
        "__module__": __name__,
        "VERSION": tfds.core.Version(reading.VERSION),
        "RELEASE_NOTES": {reading.VERSION: "First release."},
    }
    return type(name, (_Clips, tfds.core.ShardBasedBuilder), members)


def make(planned: Plan, data_dir: str | os.PathLike[str]) -> Any:
    """The builder that writes a plan; `prepare.write` calls it with lock, progress and checks around.

    Args:
      planned: from `plan`.
      data_dir: folder of the prepared dataset; one for each plan.

    Returns:
      A `tfds.core.ShardBasedBuilder` with the splits of the plan.

    Raises:
      UserError: TFDS is not installed.
    """
    return _class(planned.dataset)(planned=planned, data_dir=os.path.abspath(os.fspath(data_dir)))


def camvid_clips(*, data_dir: str | os.PathLike[str], manual_dir: str | os.PathLike[str], **options: Any) -> Any:
    """A TFDS builder of CamVid, in its official or its SegNet layout; `.download_and_prepare()` writes it.

    Args:
      data_dir: folder of the prepared dataset.
      manual_dir: folder of the dataset; nothing is downloaded.
      **options: `height`, `width`, `splits` as in `plan`; the rest are keys of the section `data`, as `num_frames`.

    Raises:
      UserError: the folder is not as it should be, or TFDS is not installed.
    """
    return _named("camvid", data_dir, manual_dir, options)


def cityscapes_clips(*, data_dir: str | os.PathLike[str], manual_dir: str | os.PathLike[str], **options: Any) -> Any:
    """A TFDS builder of Cityscapes, sequences or stills; see `camvid_clips`."""
    return _named("cityscapes", data_dir, manual_dir, options)


def folder_clips(*, data_dir: str | os.PathLike[str], manual_dir: str | os.PathLike[str], **options: Any) -> Any:
    """A TFDS builder of any folder of frames; see `camvid_clips`."""
    return _named("folder", data_dir, manual_dir, options)


def _named(name: str, data_dir: Any, manual_dir: Any, options: dict[str, Any]) -> Any:
    own = {key: options.pop(key) for key in ("splits", "height", "width") if key in options}
    data = defaults.make().data
    data.update({"name": name, "dir": os.fspath(manual_dir), **options})
    return make(plan(data, **own), data_dir)
