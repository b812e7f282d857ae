"""The trained network and cell of a run folder."""

from __future__ import annotations

from typing import Any

import ml_collections

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.infer import jitted, programs
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, features, pretrain


def read(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> tuple[programs.Model, dict[str, Any]]:
    """The network with its cell, or alone where no cell was trained; and the genotype by name, {} without a cell.

    Raises:
      UserError: the folder holds no trained network.
    """
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(
            f"{folder.path}: holds no trained static network, run `dvsnas search` or `dvsnas train` first"
        )
    settings = features.settings_of(config)
    if not cell_training.has_cell(folder):
        return programs.model_of(config, settings, variables), {}
    cell, params, space, genotype = cell_training.load_winner(config, folder)
    return programs.model_of(config, settings, variables, cell, params), genotype_lib.to_dict(space, genotype)


def jit(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> jitted.Jitted:
    """What `read` returns, jitted with the effort that the config says."""
    with compilation.effort(config.compile_effort):
        return jitted.Jitted(read(config, folder)[0])
