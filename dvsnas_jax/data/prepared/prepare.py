"""Writing a prepared dataset: estimated before, locked, all or nothing.

TFDS writes beside the final folder and renames at the end, so that a folder of records is whole or not there. A
lock on the output folder, which dies with its process, makes a second preparation wait and then find the first one's.
Where the file system knows no locks both write, each beside, and the slower one finds the other's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import tempfile
import threading

import ml_collections

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import locking
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.prepared import builders, plans, reading

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not become so large (ulimit -f)",
}
"""What the system says of a disk that takes no more, in words."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a preparation did."""

    path: pathlib.Path  # folder of the records
    is_new: bool  # written now; else it was there, with the same options
    counts: dict[str, int]  # examples by split
    num_bytes: int  # of the records
    left_out: tuple[str, ...] = ()  # splits of the folder that have no labels


def run(
    data: ml_collections.ConfigDict,
    output: str | os.PathLike[str],
    *,
    splits: tuple[str, ...] = (),
    height: int = 0,
    width: int = 0,
    num_workers: int = 0,
) -> Result:
    """The command `data prepare`: writes the clips of a dataset as TFDS records, into `<dataset>_clips/<version>`.

    `splits`, `height` and `width` are those of `plans.make`; `num_workers` threads, 0 = one a core, 16 at most.

    Raises:
      UserError: the dataset is not as it should be, other options are prepared there, or the disk is too small.
      Stopped: SIGTERM or SIGINT came; nothing is left behind.
    """
    root = pathlib.Path(os.path.abspath(os.path.expanduser(os.fspath(output))))
    plan = plans.make(data, splits, height=height, width=width)
    path = root / builders.folder_name(plan.dataset) / plans.VERSION
    with signals.stop_on_signal() as stop, locking.exclusive(root, stop) as is_locked:
        is_new = not path.exists()
        if is_new:
            for rest in path.parent.glob(f"incomplete.*_{path.name}") if is_locked else ():  # else another's work
                shutil.rmtree(rest, ignore_errors=True)  # what a killed preparation left
            _write(plan, path, stop, num_workers)
        return _finished(plan, path, is_new=is_new)


def _write(plan: plans.Plan | plans.Computed, path: pathlib.Path, stop: signals.StopFlag, num_workers: int) -> None:
    """Lets TFDS write into `path`. After an error nothing is left.

    Raises:
      UserError: the disk is, or gets, too full; or what the builder raises.
    """
    root = path.parents[1]
    num_bytes = plan.estimate()
    needed, free = sum(num_bytes.values()), shutil.disk_usage(root).free
    if needed > free:
        raise errors.UserError(_too_small(root, "not enough disk space", needed, free))
    tfds = builders.tensorflow_datasets()
    tfds.disable_progress_bar()
    lock = threading.Lock()
    with progress.bar(sum(plan.counts.values()), "prepare") as bar:

        def count() -> None:
            if stop.requested:
                raise errors.Stopped(f"{stop.name}, the preparation begins anew")
            with lock:
                bar.update()

        builder = builders.of(plan, root, on_example=count, num_bytes=num_bytes, num_workers=num_workers)
        settings = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            with tempfile.TemporaryDirectory() as unused:  # TFDS makes folders for downloads
                builder.download_and_prepare(download_dir=unused, download_config=settings)
        except Exception as error:
            is_there = path.exists()  # without locks: another process was faster
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            if reason := _why_full(error):
                raise errors.UserError(_too_small(root, reason, needed, free)) from error
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


def _finished(plan: plans.Plan | plans.Computed, path: pathlib.Path, *, is_new: bool) -> Result:
    """The result, from the folder that is there.

    Raises:
      UserError: it was prepared with other options, or is damaged.
    """
    about = reading.metadata(path)
    have = {**about, **about.get("options", {})}
    differing = {key: value for key, value in plan.identity.items() if have.get(key) != value}
    has_changed = differing.pop(plans.DIGEST, None) is not None
    texts = [f"{key} is {have.get(key)}, asked for is {value}" for key, value in differing.items()]
    if has_changed and not texts:
        texts = ["the files of the dataset have changed since"]
    if texts:
        raise errors.UserError(
            f"--output: {path} was prepared with other options: {'; '.join(texts)}; "
            "choose another --output, or delete that folder"
        )
    reading.open_media.cache_clear()  # a folder may have been deleted and written again
    for split in plan.counts if "options" in about else ():
        reading.open_media(str(path), split)
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    return Result(path, is_new, plan.counts, num_bytes, plan.left_out)
