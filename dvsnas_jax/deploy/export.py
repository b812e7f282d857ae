"""The command `export`: a trained network and cell as a folder that runs with JAX alone, see `infer.artifact`."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import Any

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_text, output_files, workdir
from dvsnas_jax.deploy import onnx_files, run_model, savedmodel, stablehlo
from dvsnas_jax.infer import artifact
from dvsnas_jax.train import claims

SAVEDMODEL, TFLITE = "savedmodel", "model.tflite"


def run(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    is_baked: bool = False,
    has_savedmodel: bool = False,
    has_tflite: bool = False,
    has_onnx: bool = False,
) -> dict[str, Any]:
    """The command `export`; returns what was written, for people.

    All is written beside the output first: a failure leaves an earlier export as it was, and no new one.

    Args:
      path: a run folder with a trained cell, or a static network alone.
      output: the folder to write; its manifest comes last, so that a folder with one is complete.
      is_baked: the weights are constants of each program, in place of a file beside them.
      has_savedmodel: a TensorFlow SavedModel of the same programs is written into the folder, too.
      has_tflite: a TensorFlow Lite file with the signatures of the SavedModel, too.
      has_onnx: the folder `onnx` with a file for each program, too.

    Raises:
      UserError: nothing trained in the run folder, or the output cannot be written.
    """
    folder, target = workdir.Workdir(path), pathlib.Path(output)
    config = claims.config_of(folder)
    model, genotype = run_model.read(config, folder)
    if has_onnx:
        onnx_files.require()
    try:
        _check(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made = pathlib.Path(scratch)
            manifest = run_model.describe(config, model, genotype)
            manifest |= stablehlo.write(made, model, is_baked=is_baked)
            if has_savedmodel:
                savedmodel.write(made / SAVEDMODEL, model)
            if has_tflite:
                (made / TFLITE).write_bytes(savedmodel.lite(savedmodel.lite_signatures(model)))
            if has_onnx:
                manifest["onnx"] = onnx_files.write(made / onnx_files.FOLDER, model)
            (made / artifact.MANIFEST).write_text(json_text.dumps(manifest, indent=1) + "\n")
            _replace(made, target)
    except OSError as error:
        raise output_files.refusal(target, error) from None
    size = sum((target / name).stat().st_size for name in manifest["files"])
    return {
        "written": str(target),
        "programs": ", ".join(manifest["programs"]),
        "platforms": ", ".join(platform for names in artifact.TARGETS.values() for platform in names),
        "size": f"{manifest['size'][1]}x{manifest['size'][0]}",
        "megabytes": size / 1e6,
    }


def _check(target: pathlib.Path) -> None:
    """A UserError unless a folder is none yet, empty, or an earlier export, one that was interrupted, too."""
    if target.exists() and any(target.iterdir()) and not _written(target):
        raise errors.UserError(f"--output: {target} is no exported folder and not empty; choose another --output")


def _written(target: pathlib.Path) -> list[pathlib.Path]:
    """What an earlier export wrote, the manifest first."""
    names = (artifact.MANIFEST, artifact.TENSORS, SAVEDMODEL, TFLITE, onnx_files.FOLDER)
    found = [path for path in target.iterdir() if path.name in names or path.suffix == ".jax"]
    return sorted(found, key=lambda path: path.name != artifact.MANIFEST)


def _replace(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves what was made into the folder, in place of an earlier export; the manifest goes first and comes last."""
    target.mkdir(exist_ok=True)
    for path in _written(target):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in reversed(_written(made)):
        path.rename(target / path.name)
