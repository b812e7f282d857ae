"""Writes a trained network and cell as a folder that runs with JAX alone, see `infer.artifact` for what is in it.

The batch size is symbolic: a program takes any number of videos at a time (but the ones for single regions). The image
size is not: interpolation weights, the borders of regions and the grid are computed from it when a program is traced
(`nets.kernels.layers`), and a symbolic size has no numbers to compute with. Export once for each size.

There is a program for CPUs and one for accelerators (CUDA, ROCm, TPU), since they have other variants of the layers.
With `lax.platform_dependent` at every layer one program could hold both, at twice the size and slower to compile; a
file each keeps the choice out of the layers, and a device reads only its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import ml_collections
import numpy as np
import safetensors.numpy

import dvsnas_jax
from dvsnas_jax.core import compilation, errors, progress
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import json_text, output_files, workdir
from dvsnas_jax.data.datasets import layouts, written_ids
from dvsnas_jax.data.loading import pipeline
from dvsnas_jax.deploy import onnx_files, savedmodel
from dvsnas_jax.infer import artifact, programs
from dvsnas_jax.nets import encoders, static_net
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, claims, features, pretrain

SAVEDMODEL, TFLITE = "savedmodel", "model.tflite"
SERVING = "serving_default"
"""The signature that segments the next frame."""
_BACKENDS = {"cpu": "cpu", "accelerator": "gpu"}
"""The backend whose layers a target gets."""


def run(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    is_baked: bool = False,
    has_savedmodel: bool = False,
    has_tflite: bool = False,
    has_onnx: bool = False,
) -> dict[str, Any]:
    """The command `export`.

    All is written beside the output first: a failure leaves an earlier export as it was, and no new one.

    Args:
      path: a run folder with a trained cell, or a static network alone.
      output: the folder to write; its manifest comes last, so that a folder with one is complete.
      is_baked: the weights are constants of each program, in place of a file beside them.
      has_savedmodel: a TensorFlow SavedModel of the same programs is written into the folder, too.
      has_tflite: a TensorFlow Lite file with the signatures of the SavedModel, too.
      has_onnx: the folder `onnx` with a file for each program, too.

    Returns:
      What was written, for people.

    Raises:
      UserError: nothing trained in the run folder, or the output cannot be written.
    """
    folder = workdir.Workdir(path)
    config = claims.config_of(folder)
    model, genotype = open_run(config, folder)
    target = pathlib.Path(output)
    if has_onnx:
        onnx_files.require()
    try:
        _check(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made = pathlib.Path(scratch)
            manifest = write(made, model, genotype, pipeline.class_table(config.data), is_baked=is_baked)
            manifest |= _about(config)
            if has_savedmodel:
                write_savedmodel(made / SAVEDMODEL, model)
            if has_tflite:
                (made / TFLITE).write_bytes(tflite(model))
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


def _about(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the manifest says of the run."""
    return {
        "net": config_lib.to_json_dict(config.net),
        "ids": written_ids.of(config.data).tolist(),
        "trained_on": layouts.title(config.data),
    }


def _check(target: pathlib.Path) -> None:
    """Whether a folder can be written: it is none yet, empty, or an earlier export, one that was interrupted, too.

    Raises:
      UserError: it holds something else.
    """
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


def open_run(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> tuple[programs.Model, dict[str, Any]]:
    """The trained network and cell of a run folder, and the genotype by name; {} of a static network alone.

    Raises:
      UserError: it holds none.
    """
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(
            f"{folder.path}: holds no trained static network, run `dvsnas search` or `dvsnas train` first"
        )
    settings, cell, params, named = features.settings_of(config), None, None, {}
    if cell_training.has_cell(folder):
        cell, params, space, genotype = cell_training.load_winner(config, folder)
        named = genotype_lib.to_dict(space, genotype)
    else:  # every frame passes the static network, whatever the mode of a cell would be
        settings = dataclasses.replace(settings, mode="refine")
    model = programs.Model(
        net=static_net.make(config.net, settings.num_classes),
        variables=static_net.fold(variables),
        cell=cell,
        params=params,
        settings=settings,
        size=(config.data.height, config.data.width),
    )
    return model, named


def write(
    path: pathlib.Path,
    model: programs.Model,
    genotype: dict[str, Any],
    table: Any,
    *,
    is_baked: bool = False,
) -> dict[str, Any]:
    """Writes all files of an exported folder but its manifest.

    Args:
      path: of the folder, which exists.
      model: the network and cell.
      genotype: by name.
      table: the classes.
      is_baked: see `run`.

    Returns:
      The manifest.
    """
    made = programs.make(model)
    tensors: dict[str, np.ndarray] = {}
    entries, files = {}, {}
    with progress.bar(len(made) * len(artifact.TARGETS), "export") as bar:
        for name, program in made.items():
            named = flatten(program.weights)
            tensors |= named
            entries[name] = {"weights": None if is_baked else list(named), "is_batched": program.is_batched}
            for target, platforms in artifact.TARGETS.items():
                data = bytes(exported(program, target, platforms, is_baked=is_baked).serialize())
                files[artifact.program_file(name, target)] = data
                bar.update()
    if not is_baked:
        files[artifact.TENSORS] = safetensors.numpy.save(tensors)
    encoder = encoders.TABLE[model.net.encoder]
    for file, data in files.items():
        (path / file).write_bytes(data)
    return {
        "format": artifact.FORMAT,
        "version": artifact.VERSION,
        "genotype": genotype,
        "mode": model.settings.mode,
        "schedule": _schedule(model) if model.settings.is_propagating else None,
        "classes": list(table.names),
        "colors": np.asarray(table.colors).tolist(),
        "normalisation": {"input": "u8 RGB / 255", "mean": encoder.mean, "std": encoder.std, "where": "inside"},
        "size": list(model.size),
        "state": {name: _constant(value) for name, value in programs.initial_state(model).items()},
        "programs": entries,
        "regions": [[region._asdict() for region in row] for row in programs.regions(model)],
        "platforms": artifact.TARGETS,
        "versions": {"dvsnas_jax": dvsnas_jax.__version__, "jax": jax.__version__},
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
    }


def exported(
    program: programs.Program, target: str, platforms: Sequence[str], *, is_baked: bool = False
) -> jax.export.Exported:
    """One program, traced for a target.

    Its first argument is the list of the weights in the order of their names, unless they are baked in.

    Args:
      program: of `programs.make`.
      target: of `artifact.TARGETS`.
      platforms: that it has to run on.
      is_baked: whether the weights are constants.
    """
    named, tree = flatten(program.weights), jax.tree.structure(program.weights)

    def fn(weights: list[Any], *args: Any) -> Any:  # a function of its own: JAX keeps what it traced by function
        return program.fn(jax.tree.unflatten(tree, weights), *args)

    def baked_fn(*args: Any) -> Any:
        return program.fn(program.weights, *args)

    args = program.args
    if program.is_batched:
        (batch,) = jax.export.symbolic_shape("b")
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), args)
    if not is_baked:
        args = ([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in named.values()], *args)
    with compilation.target(_BACKENDS[target]):
        return jax.export.export(compilation.jit(baked_fn if is_baked else fn), platforms=platforms)(*args)


def write_savedmodel(path: pathlib.Path, model: programs.Model) -> None:
    """Writes the programs of a model as a TensorFlow SavedModel, see `deploy.savedmodel`.

    Its programs have the layers of a CPU, which run on all platforms. Each has a serving signature of its name, for one
    video; `serving_default` segments the next frame of a video and decides itself whether it is a key frame. A
    TensorFlow Lite file that is converted from it has them all, but in propagate mode `serving_default` does not run
    there: see `tflite`.

    Raises:
      UserError: TensorFlow is not installed.
    """
    functions, signatures, weights = {}, {}, dict[str, np.ndarray]()
    for name, program in {**programs.make(model), SERVING: programs.next_frame(model)}.items():
        weights |= flatten(program.weights)
        signatures[name] = _function(program, _unflattened(program))
        if name != SERVING:
            functions[name] = _function(program, exported(program, "cpu", savedmodel.PLATFORMS).call)
    with compilation.target(_BACKENDS["cpu"]):
        savedmodel.write(path, functions, weights, programs.initial_state(model), signatures=signatures)


def tflite(model: programs.Model) -> bytes:
    """A TensorFlow Lite file with the signatures of `write_savedmodel`; its layers are plain convolutions.

    In propagate mode it has no `serving_default`: where a branch leaves an argument unused, the converter (2.21) writes
    the branch's first argument in its place, and no interpreter takes the file's choice between key frames and others.
    The host chooses: `key` or `other` (learned schedules: `look` first), as `artifact.Model.step` does.

    Raises:
      UserError: TensorFlow is not installed, or its converter does not take a program.
    """
    made = programs.make(model)
    if "step" in made:
        made[SERVING] = made["step"]
    weights = functools.reduce(lambda a, b: a | b, (flatten(program.weights) for program in made.values()))
    with compilation.target(_BACKENDS["accelerator"]):
        return savedmodel.lite({name: _function(p, _unflattened(p)) for name, p in made.items()}, weights)


def _unflattened(program: programs.Program) -> Callable[..., Any]:
    """The function of a program with its weights as a list."""
    tree = jax.tree.structure(program.weights)
    return lambda weights, *args: program.fn(jax.tree.unflatten(tree, weights), *args)


def _function(program: programs.Program, fn: Callable[..., Any]) -> savedmodel.Function:
    return savedmodel.Function(
        fn=fn,
        weights=tuple(flatten(program.weights)),
        args=program.args,
        is_batched=program.is_batched,
        inputs=program.input_names(),
        outputs=program.result_names(),
    )


def flatten(weights: Any) -> dict[str, np.ndarray]:
    """A tree of dictionaries as {"static/params/encoder/...": array}, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    return {"/".join(str(entry.key) for entry in path): np.asarray(leaf) for path, leaf in leaves}


def _schedule(model: programs.Model) -> dict[str, Any]:
    schedule = model.settings.schedule
    return {
        "kind": schedule.kind,
        "interval": schedule.interval,
        "threshold": schedule.threshold,
        "grid": list(schedule.grid),
        "is_learned": schedule.is_learned,
    }


def _constant(value: jax.Array) -> dict[str, Any]:
    """How an entry of the initial state is made: it has one value everywhere."""
    (fill,) = np.unique(np.asarray(value)).tolist()
    return {"shape": list(value.shape[1:]), "dtype": str(value.dtype), "fill": fill}
