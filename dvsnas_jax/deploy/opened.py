"""The network of a run folder as functions over frames: with its cell, or alone where no cell was trained."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.infer import stream
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import cell_training, features, pretrain


def segmenter(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> stream.Segmenter:
    """Reads what was trained in a run folder; without a cell, all labels are those of the static network.

    Args:
      config: of the run.
      folder: the run folder.

    Raises:
      UserError: it holds no trained network.
    """
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(
            f"{folder.path}: holds no trained static network, run `dvsnas search` or `dvsnas train` first"
        )
    with compilation.effort(config.compile_effort):
        if not cell_training.has_cell(folder):
            return _alone(config, variables)
        cell, params, _, _ = cell_training.load_winner(config, folder)
        return stream.make_segmenter(config, variables, cell, params)


def _alone(config: ml_collections.ConfigDict, variables: Any) -> stream.Segmenter:
    """The static network on every frame: every frame is a key frame, and nothing is carried along."""
    size = config.data.height, config.data.width
    net = static_net.make(config.net, features.settings_of(config).num_classes)
    forward = features.make_forward(config)
    folded = static_net.fold(variables)
    predict_fn = compilation.jit(lambda logits: static_net.predict(logits, size))
    step_fn = compilation.jit(
        lambda variables, frame: static_net.predict(static_net.infer(net, variables, frame).logits, size)
    )
    nothing = jax.numpy.zeros((1, 0, 0, 0))

    def segment(frames: np.ndarray) -> stream.Labels:
        parts = [jax.device_get(predict_fn(found.logits)) for found in forward(variables, frames)]
        labels = np.concatenate(parts)[: len(frames)]
        return stream.Labels(labels, labels, np.ones(len(frames), np.float32))

    def initial_state() -> types.CellState:
        return types.CellState(
            state=nothing, decoder=nothing, logits=nothing, image=nothing, is_first=np.ones((1,), bool)
        )

    return stream.Segmenter(
        segment=segment,
        static_step=lambda frame: step_fn(folded, frame),
        cell_step=lambda state, frame: (state, step_fn(folded, frame)),
        initial_state=initial_state,
    )
