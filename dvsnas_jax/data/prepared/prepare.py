"""Writing a prepared dataset: estimated before, locked, all or nothing.

TFDS writes beside the final folder and renames at the end, so that a folder of records is whole or not there. A
lock on the output folder, which dies with its process, makes a second preparation wait and then find the first one's.
Where the file system knows no locks both write, each beside, and the slower one finds the other's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import locking
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data import datasets
from dvsnas_jax.data.prepared import builders, plans, reading

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not become so large (ulimit -f)",
}
"""What the system says of a disk that takes no more, in words."""
_DIGEST = "digest"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a preparation did.

    Attributes:
      path: folder of the records.
      is_new: written now; else it was there, with the same options.
      counts: examples by split.
      num_bytes: of the records.
      left_out: splits of the folder that have no labels.
    """

    path: pathlib.Path
    is_new: bool
    counts: dict[str, int]
    num_bytes: int
    left_out: tuple[str, ...] = ()


def run(
    data: ml_collections.ConfigDict,
    output: str | os.PathLike[str],
    *,
    splits: tuple[str, ...] = (),
    height: int = 0,
    width: int = 0,
    num_workers: int = 0,
) -> Result:
    """The command `data prepare`: writes the clips of a dataset as TFDS records.

    Args:
      data: section of the configuration.
      output: folder; the records come into `<dataset>_clips/<version>` in it.
      splits: which; () = all that have labels.
      height: of the frames, pixels; 0 = the bytes of the files, unchanged. (Computed: data.height and data.width.)
      width: likewise.
      num_workers: threads; 0 = one a core, 16 at most.

    Raises:
      UserError: the dataset is not as it should be, other options are prepared there, or the disk is too small.
      Stopped: SIGTERM or SIGINT came; nothing is left behind.
    """
    root = pathlib.Path(os.path.abspath(os.path.expanduser(os.fspath(output))))
    if not datasets.of(data).is_computed:
        job = _clips_job(plans.make(data, splits, height=height, width=width), root, num_workers)
    elif splits or height or width:
        raise errors.UserError(
            f"--splits, --height, --width: not for {data.name} clips; set data.height and data.width"
        )
    else:
        job = _computed_job(data, root)
    with signals.stop_on_signal() as stop, locking.exclusive(root, stop) as is_locked:
        if job.path.exists():
            return _finished(job, is_new=False)
        if is_locked:
            _remove_rests(job.path)
        _write(job, root, stop)
        return _finished(job, is_new=True)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What to write where.

    Attributes:
      path: folder of the records.
      options: what has to be the same for a folder that is there already.
      counts: examples by split.
      estimate_fn: bytes by split, and of all as `all`.
      make_fn: `(bytes by split, function to call after every example) -> builder`.
      left_out: splits of the folder that have no labels.
    """

    path: pathlib.Path
    options: Mapping[str, Any]
    counts: Mapping[str, int]
    estimate_fn: Callable[[], dict[str, int]]
    make_fn: Callable[[dict[str, int], Callable[[], None]], Any]
    left_out: tuple[str, ...] = ()


def _clips_job(plan: plans.Plan, root: pathlib.Path, num_workers: int) -> _Job:
    """The job of a dataset on disk."""

    def make(needed: dict[str, int], count_fn: Callable[[], None]) -> Any:
        builder = builders.of_plan(plan, root)
        builder.num_workers = num_workers or builder.num_workers
        builder.on_example = count_fn
        builder.shard_counts = {split: plans.num_shards(needed[split], len(each)) for split, each in plan.clips.items()}
        return builder

    return _Job(
        path=root / builders.folder_name(plan.dataset) / plans.VERSION,
        options={**plan.options, _DIGEST: plans.digest(plan)},
        counts={split: len(clips) for split, clips in plan.clips.items()},
        estimate_fn=functools.partial(plans.estimate, plan),
        make_fn=make,
        left_out=plan.left_out,
    )


def _computed_job(data: ml_collections.ConfigDict, root: pathlib.Path) -> _Job:
    """The job of clips that are computed: frames as arrays, not as files."""
    options, counts = builders.computed_options(data), builders.computed_counts(data)
    clip_bytes = 4 * options["num_frames"] * options["height"] * options["width"]
    needed = {split: clip_bytes * count for split, count in counts.items()}
    return _Job(
        path=root / builders.folder_name(data.name) / plans.VERSION,
        options=options,
        counts=counts,
        estimate_fn=lambda: {**needed, "all": sum(needed.values())},
        make_fn=lambda needed, count_fn: builders.of_computed(data, root, count_fn),
    )


def _write(job: _Job, root: pathlib.Path, stop: signals.StopFlag) -> None:
    """Lets TFDS write. After an error nothing is left.

    Raises:
      UserError: the disk is, or gets, too full; or what the builder raises.
    """
    needed = job.estimate_fn()
    free = shutil.disk_usage(root).free
    if needed["all"] > free:
        raise errors.UserError(_too_small(root, "not enough disk space", needed["all"], free))
    tfds = builders.tensorflow_datasets()
    tfds.disable_progress_bar()
    lock = threading.Lock()
    with progress.bar(sum(job.counts.values()), "prepare") as bar:

        def count() -> None:
            if stop.requested:
                raise errors.Stopped(f"{stop.name}, the preparation begins anew")
            with lock:
                bar.update()

        builder = job.make_fn(needed, count)
        settings = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            with tempfile.TemporaryDirectory() as unused:  # TFDS makes folders for downloads
                builder.download_and_prepare(download_dir=unused, download_config=settings)
        except Exception as error:
            is_there = job.path.exists()  # without locks: another process was faster
            with contextlib.suppress(OSError):
                job.path.parent.rmdir()
            reason = _why_full(error)
            if reason:
                raise errors.UserError(_too_small(root, reason, needed["all"], free)) from error
            if not is_there:
                raise


def _why_full(error: BaseException) -> str:
    """What the system said of a disk that takes no more; empty where the error is another one."""
    cause: BaseException | None = error
    while cause is not None:
        for number, text in _FULL.items():
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                return text
        cause = cause.__cause__ or cause.__context__
    return ""


def _too_small(root: pathlib.Path, reason: str, needed: int, free: int) -> str:
    return (
        f"--output: {root}: {reason}: about {size_text(needed)} are needed, {size_text(free)} are free; "
        "free some space, choose another --output, or less: fewer --splits, a smaller --height and --width, "
        "a shorter data.num_frames"
    )


def size_text(num_bytes: int) -> str:
    """Bytes for people."""
    amount = float(num_bytes)
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        del units[0]
    return f"{amount:.3g} {units[0]}"


def _remove_rests(path: pathlib.Path) -> None:
    """Removes what a killed preparation left; only with the lock, as it may be another's work."""
    for rest in path.parent.glob(f"incomplete.*_{path.name}"):
        shutil.rmtree(rest, ignore_errors=True)


def _finished(job: _Job, *, is_new: bool) -> Result:
    """The result, from the folder that is there.

    Raises:
      UserError: it was prepared with other options, or is damaged.
    """
    about = reading.metadata(job.path)
    have = {**about, **about.get("options", {})}
    differing = [key for key, value in job.options.items() if have.get(key) != value]
    texts = [f"{key} is {have.get(key)}, asked for is {job.options[key]}" for key in differing if key != _DIGEST]
    if _DIGEST in differing and not texts:
        texts = ["the files of the dataset have changed since"]
    if texts:
        raise errors.UserError(
            f"--output: {job.path} was prepared with other options: {'; '.join(texts)}; "
            "choose another --output, or delete that folder"
        )
    reading.open_media.cache_clear()  # a folder may have been deleted and written again
    if "options" in about:
        for split in job.counts:
            reading.open_media(str(job.path), split)
    num_bytes = sum(path.stat().st_size for path in job.path.iterdir())
    return Result(job.path, is_new, dict(job.counts), num_bytes, job.left_out)
