"""TensorFlow Datasets builders. `tensorflow_datasets` is imported when one is made, not before.

Of a data set on disk, images and labels are kept as the bytes of their files, so that a prepared clip is the clip of
the folder; nothing is downloaded. The records are ArrayRecord (random access, a hash over every chunk).
"""

from __future__ import annotations

import functools
import os
import pathlib
import threading
import types as pytypes
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

from dvsnas_jax.core import defaults, errors
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.prepared import file_bytes, plans

_WRITER_OPTIONS = "group_size:1,uncompressed"


def tensorflow_datasets() -> pytypes.ModuleType:
    """TensorFlow Datasets.

    Raises:
      UserError: it, or the package of the files it writes, is not installed.
    """
    try:
        import array_record  # noqa: F401 - TFDS asks for it late, with a stack of other errors
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise errors.UserError(
            f"data.prepared: needs tensorflow_datasets and array_record ({error}); run: pip install "
            "tensorflow-datasets array-record, or leave data.prepared empty and set data.dir"
        ) from error
    return tfds


def folder_name(name: str) -> str:
    """Of the records of a data set."""
    return f"{name}_clips"


class _Computed:
    """Clips that are computed, as arrays; `_class` joins it to the class of TFDS."""

    info: Any

    def __init__(self, *, plan: plans.Computed, on_example: Callable[[], None], **kwargs: Any):
        self._plan, self._on_example = plan, on_example
        super().__init__(**kwargs)

    def _info(self) -> Any:
        tfds = tensorflow_datasets()
        options = self._plan.identity
        shape = (options["num_frames"], options["height"], options["width"])
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{datasets.TABLE[self._plan.dataset].title}.",
            features=tfds.features.FeaturesDict(
                {
                    "name": tfds.features.Text(),
                    "frames": tfds.features.Video(shape=(*shape, 3)),
                    "labels": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib"),
                }
            ),
            metadata=tfds.core.MetadataDict({"classes": list(datasets.class_table(self._plan.data).names), **options}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._plan.counts}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        world = datasets.world(self._plan.data, split)
        for index in range(self._plan.counts[split]):
            video = world.clip(index, int(self._plan.data.num_frames), with_flow=False)
            yield index, {"name": video.name, "frames": video.frames, "labels": video.labels}
            self._on_example()


class _Recorded:
    """Clips of files; `_class` joins it to the class of TFDS."""

    info: Any
    data_dir: Any
    _get_filename_template: Any

    def __init__(
        self,
        *,
        plan: plans.Plan,
        on_example: Callable[[], None],
        num_bytes: dict[str, int],
        num_workers: int,
        **kwargs: Any,
    ):
        self._plan, self._on_example = plan, on_example
        self._num_workers = num_workers or min(os.cpu_count() or 1, 16)
        self.shard_counts = {
            split: plans.num_shards(num_bytes.get(split, 0), count) for split, count in plan.counts.items()
        }
        super().__init__(**kwargs | {"file_format": "array_record"})

    def _info(self) -> Any:
        tfds = tensorflow_datasets()
        text, sequence = tfds.features.Text, tfds.features.Sequence
        about, dataset = plans.metadata(self._plan), datasets.TABLE[self._plan.dataset]
        classes = "" if dataset.is_own else f", {len(about['class_names'])} classes"
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{dataset.title}: clips that end in a labelled frame{classes}.",
            features=tfds.features.FeaturesDict(
                {
                    "sequence": text(doc="Name of the video."),
                    "numbers": sequence(np.int64, doc="Frame numbers, oldest first; the last one is the target."),
                    "frame_rate": tfds.features.Scalar(np.float32, doc="Hz, of consecutive frame numbers."),
                    "images": sequence(text(doc="Bytes of an image file.")),
                    "labels": sequence(text(doc="Bytes of a label file, empty where there is none.")),
                }
            ),
            metadata=tfds.core.MetadataDict(about),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Iterator[dict[str, Any]]]]:
        """By split, a reader of the examples of each file."""
        del dl_manager  # nothing is downloaded
        return {
            split: [
                _examples(self._plan.sources[split], clips, self._plan.size)
                for clips in np.array_split(self._plan.clips[split], count)
            ]
            for split, count in self.shard_counts.items()
        }

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """As in the base class, but several shards at a time, a thread each."""
        del download_config
        tfds = tensorflow_datasets()
        shards = self._shard_iterators_per_split(dl_manager)
        written = self._write_all([(split, i, shard) for split, each in shards.items() for i, shard in enumerate(each)])
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[written[split, number][0] for number in range(count)],
                num_bytes=sum(written[split, number][1] for number in range(count)),
                filename_template=self._get_filename_template(split),
            )
            for split, count in self.shard_counts.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(infos))
        (pathlib.Path(self.data_dir) / plans.INDEX).write_text(plans.index_text(self._plan))

    def _write_all(self, jobs: list[tuple[str, int, Iterator[dict[str, Any]]]]) -> dict[tuple[str, int], Any]:
        """Writes the shards; (split, number) -> numbers of examples and bytes. After an error no thread is left."""
        stop = threading.Event()
        with futures.ThreadPoolExecutor(self._num_workers) as pool:
            running = {pool.submit(self._write_shard, *job, stop): job[:2] for job in jobs}
            try:
                return {running[each]: each.result() for each in futures.as_completed(running)}
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _write_shard(
        self, split: str, number: int, examples: Iterator[dict[str, Any]], stop: threading.Event
    ) -> tuple[int, int]:
        from array_record.python import array_record_module

        template = self._get_filename_template(split)
        path = os.fspath(template.sharded_filepath(shard_index=number, num_shards=self.shard_counts[split]))
        writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
        count = 0
        try:
            for example in examples:
                if stop.is_set():
                    break
                writer.write(self.info.features.serialize_example(example))
                self._on_example()
                count += 1
        finally:
            writer.close()
        return count, os.path.getsize(path)

    def _log_download_bytes(self) -> None:
        """Says nothing: nothing is downloaded."""

    _log_download_done = _log_download_bytes


def _examples(source: frames.Source, clips: np.ndarray, size: tuple[int, int] | None) -> Iterator[dict[str, Any]]:
    """Reads the examples of some clips i32 [n, 2]; size: height and width, None = the bytes of the files."""
    longest = int((clips[:, 1] - clips[:, 0]).max(initial=0)) + 1
    read = functools.lru_cache(maxsize=2 * longest)(lambda frame: file_bytes.pair(frame, size))
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


@functools.cache
def _class(name: str) -> Any:
    """The builder class of a data set, as `CamvidClips`; made once, since TFDS registers its name."""
    tfds = tensorflow_datasets()
    is_computed = datasets.TABLE[name].is_computed
    base = tfds.core.GeneratorBasedBuilder if is_computed else tfds.core.ShardBasedBuilder
    members = {
        "__module__": __name__,
        "VERSION": tfds.core.Version(plans.VERSION),
        "RELEASE_NOTES": {plans.VERSION: "First release."},
        "url_infos": {},  # nothing is downloaded: no search for a file of checksums
    }
    title = "".join(part.capitalize() for part in folder_name(name).split("_"))
    return type(title, (_Computed if is_computed else _Recorded, base), members)


def of(
    plan: plans.Plan | plans.Computed,
    data_dir: str | os.PathLike[str],
    *,
    on_example: Callable[[], None] = lambda: None,
    num_bytes: dict[str, int] | None = None,
    num_workers: int = 0,
) -> Any:
    """The builder that writes a plan into a folder of its own; `prepare.run` puts lock, progress and checks around.

    Args:
      plan: from `plans.make`.
      data_dir: the folder.
      on_example: called after every example that was written.
      num_bytes: of each split, about; decides how many files it is divided into.
      num_workers: threads; 0 = one a core, 16 at most. (Computed: one.)

    Returns:
      A `tfds.core.DatasetBuilder` with the splits of the plan. Computed examples have `name`, `frames` u8 [T, H, W, 3]
      and `labels` u8 [T, H, W].

    Raises:
      UserError: TFDS is not installed.
    """
    more = {} if isinstance(plan, plans.Computed) else {"num_bytes": num_bytes or {}, "num_workers": num_workers}
    folder = os.path.abspath(os.fspath(data_dir))
    return _class(plan.dataset)(plan=plan, data_dir=folder, on_example=on_example, **more)


def clips(name: str, *, data_dir: str | os.PathLike[str], splits: tuple[str, ...] = (), **options: Any) -> Any:
    """A TFDS builder of a data set, as synthetic, or camvid; `.download_and_prepare()` writes it into `data_dir`.

    `options` are keys of the section `data`, as `num_frames`, or `dir`, where the data set lies: nothing is downloaded.

    Raises:
      UserError: the folder is not as it should be, or TFDS is not installed.
    """
    data = defaults.make().data
    data.update({"name": name, **options})
    return of(plans.make(data, splits), data_dir)
