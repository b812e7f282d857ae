"""The traced programs of run folders, kept on disk so that a later start neither traces nor reads checkpoints.

A start on a run folder imports Flax and Orbax, reads the checkpoints and traces the network and the cell before XLA's
compile cache can help. What is kept is an exported folder (`infer.artifact`) for the backend in use, under a name that
follows from all that it was made of: the files of the run, the code of the package, JAX's version.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core.files import json_text
from dvsnas_jax.infer import artifact, dispatch

MOST = 8
"""Run folders whose programs are kept; the ones used longest ago go."""
_EFFORT = "compile_effort"
_PACKAGE = pathlib.Path(__file__).parents[1]
_OF_A_RUN = ("config.json", "identity.json", "best_genotype.json")


def open_folder(path: pathlib.Path, keep_in: pathlib.Path) -> tuple[dict[str, Any], dispatch.Dispatch]:
    """What `artifact.open_folder` returns, of a run folder; its programs lie below `keep_in`, or do so afterwards.

    Raises:
      UserError: it is no run folder, or holds no trained network.
      OSError: `keep_in` cannot be written.
    """
    place = keep_in / f"{artifact.target()}-{_key(path)}"
    if artifact.is_artifact(place):
        with contextlib.suppress(OSError):  # they may be there to be read only
            os.utime(place)
        try:
            return _open(place)
        except (errors.UserError, OSError):  # damaged: made again
            shutil.rmtree(place, ignore_errors=True)
    _write(path, place)
    _remove_old(keep_in)
    return _open(place)


def _open(place: pathlib.Path) -> tuple[dict[str, Any], dispatch.Dispatch]:
    with compilation.effort((place / _EFFORT).read_text()):
        return artifact.open_folder(place)


def _write(path: pathlib.Path, place: pathlib.Path) -> None:
    """Traces the programs of a run folder, and writes them to a place that nothing is at."""
    from dvsnas_jax.core.files import workdir
    from dvsnas_jax.deploy import run_model, stablehlo
    from dvsnas_jax.train import claims

    folder = workdir.Workdir(path)
    config = claims.config_of(folder)
    model, genotype = run_model.read(config, folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch:
        made = pathlib.Path(scratch) / "made"
        made.mkdir()
        targets = {artifact.target(): artifact.TARGETS[artifact.target()]}
        manifest = run_model.describe(config, model, genotype) | stablehlo.write(made, model, targets=targets)
        (made / artifact.MANIFEST).write_text(json_text.dumps(manifest, indent=1) + "\n")
        (made / _EFFORT).write_text(config.compile_effort)
        if not place.exists():  # else another process was faster
            made.rename(place)


def _remove_old(keep_in: pathlib.Path) -> None:
    """All but the `MOST` places that were used last."""
    places = sorted((place for place in keep_in.iterdir() if artifact.is_artifact(place)), key=_used, reverse=True)
    for place in places[MOST:]:
        shutil.rmtree(place, ignore_errors=True)


def _used(place: pathlib.Path) -> float:
    return place.stat().st_mtime


def _key(path: pathlib.Path) -> str:
    """Follows from all that the programs of a run folder are made of, but for what is random."""
    digest = hashlib.sha256(f"{artifact.VERSION} {jax.__version__} {path.resolve()}".encode())
    for part in _parts(path):
        digest.update(part)
    return digest.hexdigest()[:32]


def _parts(path: pathlib.Path) -> Iterator[bytes]:
    for name in _OF_A_RUN:
        where = path / name
        yield where.read_bytes() if where.is_file() else b"none"
    for file in _files(path / "checkpoints"):
        about = file.stat()
        yield f"{file} {about.st_size} {about.st_mtime_ns}".encode()
    for file in _files(_PACKAGE):
        if file.suffix == ".py":
            yield file.read_bytes()


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """All files below a folder, sorted; none where there is no such folder."""
    return sorted(pathlib.Path(folder) / name for folder, _, names in os.walk(path) for name in names)
