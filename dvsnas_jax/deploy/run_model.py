"""The trained network and cell of a run folder."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

import dvsnas_jax
from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import pipeline
from dvsnas_jax.infer import artifact, jitted, programs
from dvsnas_jax.nets import encoders
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import claims, features, joint, pretrain, winners


def read(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> tuple[programs.Model, dict[str, Any]]:
    """The network with its cell, or alone where no cell was trained; and the genotype by name, {} without a cell.

    Of a cell that was trained jointly with a static network of its own (`train.joint`), that network.

    Raises:
      UserError: the folder holds no trained network.
    """
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(
            f"{folder.path}: holds no trained static network, run `dvsnas search` or `dvsnas train` first"
        )
    settings = features.settings_of(config)
    if not winners.has_cell(folder):
        return programs.model_of(config, settings, variables), {}
    cell, params, space, genotype = winners.load(config, folder)
    variables = joint.network_of(config, folder, genotype_lib.digest(space, genotype), variables)
    return programs.model_of(config, settings, variables, cell, params), genotype_lib.to_dict(space, genotype)


def others(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> dict[str, programs.Model]:
    """The other static networks of a run folder, each by itself: `static`, that of the run, where `read` gives the cell
    one of its own; `static_longer`, trained on for as many steps (`train.joint_control`)."""
    winner, settings, found = winners.read(folder), features.settings_of(config), dict[str, Any]()
    if winner is None:
        return {}
    if joint.restore(config, folder, winner.digest) is not None:
        found["static"] = pretrain.restore(config, folder)
    longer = joint.restore(config, folder, None)
    if longer is not None:
        found[joint.CONTROL] = longer
    return {name: programs.model_of(config, settings, variables) for name, variables in found.items()}


def describe(config: ml_collections.ConfigDict, model: programs.Model, genotype: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of an exported folder says of a run and of what `read` returns."""
    table, encoder = pipeline.class_table(config.data), encoders.TABLE[model.net.encoder]
    return {
        "format": artifact.FORMAT,
        "version": artifact.VERSION,
        "genotype": genotype,
        "mode": model.settings.mode,
        "classes": list(table.names),
        "colors": np.asarray(table.colors).tolist(),
        "normalisation": {"input": "u8 RGB / 255", "mean": encoder.mean, "std": encoder.std, "where": "inside"},
        "size": list(model.size),
        **programs.describe(model),
        "versions": {"dvsnas_jax": dvsnas_jax.__version__, "jax": jax.__version__},
        "net": config_lib.to_json_dict(config.net),
        "ids": datasets.written_ids(config.data).tolist(),
        "trained_on": datasets.title(config.data),
    }


def jit(config: ml_collections.ConfigDict, model: programs.Model) -> jitted.Jitted:
    """The model of a run, jitted with the effort that its config says."""
    with compilation.effort(config.compile_effort):
        return jitted.Jitted(model)


def open_folder(path: pathlib.Path) -> tuple[dict[str, Any], jitted.Jitted]:
    """What `artifact.open_folder` returns, of a run folder; nothing is written to it.

    Raises:
      UserError: it is none, or holds no trained network.
    """
    folder = workdir.Workdir(path)
    config = claims.config_of(folder)
    model, genotype = read(config, folder)
    return describe(config, model, genotype), jit(config, model)
