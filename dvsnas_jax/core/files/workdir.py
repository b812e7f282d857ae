"""The run folder: configuration, environment, lock, JSONL logs, TensorBoard events and checkpoints."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import checkpoint, json_files, json_text, locking
from dvsnas_jax.core.processes import distributed

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_LOGGER = logging.getLogger(__name__)
CONFIG, ENVIRONMENT, IDENTITY = "config.json", "environment.json", "identity.json"
"""What a claim writes: the configuration, where it was started, and what the configuration leaves open."""


class Workdir:
    """All that one run keeps on disk, in the folder `path`. Nothing is written before `claim` or the first write.

    Of several processes all see the same folder, and only the main one writes; checkpoints are written by all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._repaired: set[str] = set()
        self._writers: dict[str, Any] = {}
        self._locks: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps every other process out of the folder: from now on where it holds a run, else from `claim` on.

        Of several processes of one run the first one does so for all. A UserError where another process is at work in
        it, or it cannot be written.
        """
        outer = self._locks
        with contextlib.ExitStack() as self._locks:
            try:
                self._lock(is_new_too=False)
                yield
            finally:
                self._locks = outer

    def _lock(self, *, is_new_too: bool) -> None:
        """Takes the lock until the end of `hold`; without one it is given back at once, and nobody else had it."""
        problem = ""
        if distributed.is_main() and (is_new_too or self.is_claimed):
            try:
                if is_new_too:
                    self.path.mkdir(parents=True, exist_ok=True)
                give_back = locking.take(self.path, command())
                if self._locks is None:
                    give_back()
                else:
                    self._locks.callback(give_back)
            except errors.UserError as error:
                problem = str(error)
            except OSError as error:
                problem = self._unwritable(error)
        problem = json.loads(distributed.tell(json.dumps(problem)))
        if problem:
            raise errors.UserError(problem)

    def _unwritable(self, error: OSError) -> str:
        return f"--workdir: cannot write the folder {self.path}: {error.strerror or error}; choose another --workdir"

    @property
    def is_claimed(self) -> bool:
        """Whether it has a configuration."""
        return os.path.isfile(self.path / CONFIG)

    def check(
        self,
        config: ml_collections.ConfigDict,
        *,
        ignore: Sequence[str] = (),
        stored: ml_collections.ConfigDict | None = None,
    ) -> bool:
        """Whether the folder is this configuration's; nothing is written.

        Args:
          config: of the run.
          ignore: dotted keys or sections that may differ, for example `("evaluate",)`.
          stored: its configuration, where that is put in other words than its file; keys that it lacks have their
            defaults.

        Returns:
          False: it is nobody's yet, or another configuration's that computed nothing; if that computed something: a
            UserError.
        """
        if not self.is_claimed:
            return False
        found = config_lib.differences(stored or self.config(), config)
        keys = [key for key in found if not any(f"{key}.".startswith(f"{name}.") for name in ignore)]
        if keys and not self.is_begun():
            return False
        if keys:
            shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
            raise errors.UserError(
                f"--workdir: {self.path} holds a run of another config, these keys differ: {shown}; "
                "use another --workdir or the same config (that of the run, where --config is left out)"
            )
        return True

    def is_begun(self) -> bool:
        """Whether something was computed: there is more than what a claim writes, and empty files."""
        start = {CONFIG, ENVIRONMENT, IDENTITY, locking.FILE}
        files = (path for path in self.path.rglob("*") if path.is_file() and path.suffix != ".tmp")
        return any(str(path.relative_to(self.path)) not in start and path.stat().st_size for path in files)

    def claim(
        self,
        config: ml_collections.ConfigDict,
        *,
        ignore: Sequence[str] = (),
        stored: ml_collections.ConfigDict | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the folder this configuration's, or checks that it is; the arguments are those of `check`.

        Writes `config.json`, paths in it absolute, `environment.json` and `identity` as `identity.json` at the first
        start; a later start in another environment is added to `environment.json` under `resumed_with`. A UserError
        where the folder belongs to another run, cannot be written, or another process is at work in it.
        """
        self._lock(is_new_too=True)
        try:
            if self.check(config, ignore=ignore, stored=stored):
                self._note_environment()
                return
            self.write_json(ENVIRONMENT, {**environment(), "command": command()})
            if identity is not None:
                self.write_json(IDENTITY, identity)
            self.write_json(CONFIG, config_lib.with_absolute_paths(config_lib.to_json_dict(config)))
        except OSError as error:
            raise errors.UserError(self._unwritable(error)) from None

    def config(self) -> ml_collections.ConfigDict:
        """The configuration of the run in this folder; a UserError where it holds none, or one that this version cannot
        read.
        """
        if not self.is_claimed:
            raise errors.UserError(f"{self.path}: holds no run (no {CONFIG}); give the --workdir of one")
        return config_lib.from_json_dict(self.read_json(CONFIG), str(self.path / CONFIG))

    def _note_environment(self) -> None:
        """Adds the environment of a resumed run where it is another than before."""
        now = environment()
        try:
            known = self.read_json(ENVIRONMENT)
        except errors.UserError:  # it is missing or torn: it tells of the run, but decides nothing
            known = {}
        known = known if isinstance(known, dict) else {}
        others = known.get("resumed_with", [])
        first = {key: value for key, value in known.items() if key not in ("resumed_with", "command")}
        if not first:
            self.write_json(ENVIRONMENT, {**now, "command": command()})
        elif now != (others or [first])[-1]:
            self.write_json(ENVIRONMENT, {**known, "resumed_with": [*others, now]})

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Appends one line to a JSONL file. What is appended survives the death of the process."""
        if not distributed.is_main():
            return
        if file not in self._repaired:
            self._repair(file)
        line = json_text.dumps(record) + "\n"
        with (self.path / file).open("ab", buffering=0) as out:
            out.write(line.encode())

    def read(self, file: str) -> list[dict[str, Any]]:
        """Reads a JSONL file; a torn last line is cut off on disk; [] where there is no file.

        A line before that is no JSON is a UserError.
        """
        self._repair(file)
        path = self.path / file
        if not path.exists():
            return []
        records: list[dict[str, Any]] = []
        for line in path.read_bytes().splitlines():
            record = _parse(line)
            if record is None:
                where = f"{path}, line {len(records) + 1}"
                raise errors.UserError(f"{where}: not a JSON object; delete the line or use another --workdir")
            records.append(record)
        return records

    def _repair(self, file: str) -> None:
        """Cuts off a last line that a crash left incomplete."""
        if not distributed.is_main():
            return
        self._repaired.add(file)
        path = self.path / file
        if not path.exists():
            return
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        start = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
        if end and _parse(data[start : end - 1]) is None:
            end = start
        if end < len(data):
            os.truncate(path, end)

    def truncate(self, file: str, keep_fn: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrites a JSONL file, in one atomic step, with the records for which `keep_fn` is true.

        At resume it drops what was written after the checkpoint, as the run will write it again.
        """
        if not distributed.is_main():
            return
        records = self.read(file)
        kept = [record for record in records if keep_fn(record)]
        if len(kept) < len(records):
            text = "".join(json_text.dumps(record) + "\n" for record in kept)
            self._replace(file, text)

    def write_json(self, file: str, value: Any) -> None:
        """Writes a JSON file in one atomic step."""
        self._replace(file, json_text.dumps(value, indent=1) + "\n")

    def read_json(self, file: str) -> Any:
        """Reads a JSON file; a UserError where there is none, or it is no JSON."""
        advice = "put the file of this run back, or use another --workdir"
        return json_files.read(self.path / file, name="--workdir", advice=advice)

    def _replace(self, file: str, text: str) -> None:
        """Puts a file in place of another, never half of it."""
        if not distributed.is_main():
            return
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text)
        os.replace(temporary, path)

    def scalars(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Logs numbers to `metrics.jsonl` and, where tensorboardX is installed, to TensorBoard.

        `stage` is the part of the run, for example "pretrain", and `step` is of that.
        """
        numbers = {name: float(value) for name, value in values.items()}
        if not distributed.is_main():
            return
        self.append("metrics.jsonl", {"stage": stage, "step": int(step), **numbers})
        writer = self._writer(stage, int(step))
        if writer is not None:
            for name, number in numbers.items():
                writer.add_scalar(name, number, int(step))
            writer.flush()

    def _writer(self, stage: str, step: int) -> Any:
        """The stage's event writer; what an interrupted run wrote from `step` on is hidden by TensorBoard."""
        if stage not in self._writers:
            try:
                import tensorboardX

                folder = str(self.path / "tensorboard" / stage)
                self._writers[stage] = tensorboardX.SummaryWriter(folder, purge_step=step, flush_secs=10)
            except ImportError:
                _LOGGER.warning("tensorboardX is not installed: no TensorBoard events, numbers are in metrics.jsonl")
                self._writers[stage] = None
        return self._writers[stage]

    def checkpointer(self, stage: str, keep: int = 2) -> checkpoint.Checkpointer:
        """Checkpoints of one stage under `checkpoints/<stage>`, the last `keep` of them."""
        return checkpoint.Checkpointer(self.path / "checkpoints" / stage, keep)

    def close(self) -> None:
        """Closes the TensorBoard writers."""
        for writer in self._writers.values():
            if writer is not None:
                writer.close()
        self._writers.clear()


def environment() -> dict[str, Any]:
    """Versions, devices and, in a git checkout, the commit of the program."""
    import jax

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "num_processes": jax.process_count(),
        "git_commit": _git_commit(),
    }


def command() -> str:
    """The words that started the process, the program by its name alone (`dvsnas`, too, where it runs as a module)."""
    program, *words = sys.argv or [""]
    name = pathlib.Path(program).name
    return shlex.join(["dvsnas" if name == "__main__.py" else name, *words])


def _git_commit() -> str | None:
    """The commit of the checkout that the program runs from, with `+` where files are changed."""
    folder = pathlib.Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.check_output(["git", *words], cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes.strip() else "")


def _parse(line: bytes) -> dict[str, Any] | None:
    """One JSONL line, None where it is no JSON object."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        return record if isinstance(record, dict) else None
    return None
