"""Evaluation frame by frame over whole sequences: the static network and the cell on the same frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, progress, types, workdir
from dvsnas_jax.data import pipeline
from dvsnas_jax.nets import static_net
from dvsnas_jax.run import features as features_lib
from dvsnas_jax.run import metrics, pretrain, train
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import ports

RESULT = "evaluation.json"
STRIP = "figures/strip.npz"
TIMED_FRAMES = 30


class Segmenter(NamedTuple):
    """A trained network and cell as functions over consecutive frames.

    Attributes:
      initial_state: `frame u8 [B, H, W, 3] -> state`.
      chunk: `(state, frames u8 [n, H, W, 3]) -> (state, static u8 [n, H, W], cell u8 [n, H, W])`.
      static_chunk: `frames u8 [n, H, W, 3] -> u8 [n, H, W]`.
    """

    initial_state: Callable[[jax.Array], types.CellState]
    chunk: Callable[[types.CellState, jax.Array], tuple[types.CellState, jax.Array, jax.Array]]
    static_chunk: Callable[[jax.Array], jax.Array]


def make_segmenter(
    config: ml_collections.ConfigDict, variables: Any, cell: cell_lib.Cell, params: types.Params
) -> Segmenter:
    """Jits the network and the cell.

    Args:
      config: of the run.
      variables: of the static network.
      cell: the static graph.
      params: its weights, with running statistics.
    """
    names = tuple(sorted(features_lib.settings_of(config).feature_channels.keys() - {"logits"}))
    forward = features_lib.make_forward(config, names)
    net = static_net.make(config.net, pipeline.class_table(config.data).num_classes)

    def chunk(
        variables: Any, params: types.Params, state: types.CellState, frames: jax.Array
    ) -> tuple[types.CellState, jax.Array, jax.Array]:
        size = frames.shape[1:3]
        found = forward(variables, frames)
        state, logits = ports.unroll(
            lambda s, f: cell.step(params, s, f), state, jax.tree.map(lambda x: x[None], found)
        )
        return state, static_net.predict(found.logits, size), static_net.predict(logits[:, 0], size)

    def static_chunk(variables: Any, frames: jax.Array) -> jax.Array:
        logits = net.apply(variables, static_net.normalise(frames), train=False).logits
        return static_net.predict(logits, frames.shape[1:3])

    initial = jax.jit(lambda variables, frame: cell.initial_state(forward(variables, frame)))
    chunk_fn, static_fn = jax.jit(chunk), jax.jit(static_chunk)
    return Segmenter(
        initial_state=lambda frame: initial(variables, frame),
        chunk=lambda state, frames: chunk_fn(variables, params, state, frames),
        static_chunk=lambda frames: static_fn(variables, frames),
    )


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> dict[str, Any]:
    """The command `evaluate`: scores of the run's network and cell on `config.evaluate.split`.

    Writes `evaluation.json` and the frames of the report's strip.

    Raises:
      UserError: the run folder holds no trained network or cell.
    """
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(f"{folder.path}: holds no trained static network, run `dvsnas search` first")
    cell, params, _, _ = train.load_winner(config, folder)
    segmenter = make_segmenter(config, variables, cell, params)
    table = pipeline.class_table(config.data)
    sequences = pipeline.sequences(config.data, config.evaluate.split)
    result = score(segmenter, sequences, table, config.evaluate)
    result["split"] = config.evaluate.split
    result["commonest_class"] = commonest_class(config, sequences, table)
    for name, value in latency(segmenter, sequences[0].frames).items():
        result[name]["ms_per_frame"] = value
    folder.write_json(RESULT, result)
    save_strip(segmenter, sequences, table, folder, config.report.strip_frames)
    return result


def segment(
    segmenter: Segmenter, frames: np.ndarray, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a sequence by the static network and by the cell, both u8 [T, H, W].

    The frames pass in chunks of one size (the last one padded), the cell's state goes along.
    """
    state = segmenter.initial_state(frames[:1])
    static, cell = [], []
    for start in range(0, len(frames), chunk):
        part = frames[start : start + chunk]
        padded = np.concatenate([part, np.repeat(part[-1:], chunk - len(part), axis=0)])
        state, static_part, cell_part = segmenter.chunk(state, padded)
        static.append(np.asarray(static_part)[: len(part)])
        cell.append(np.asarray(cell_part)[: len(part)])
    return np.concatenate(static), np.concatenate(cell)


def score(
    segmenter: Segmenter,
    sequences: list[types.Sequence],
    table: types.ClassTable,
    section: ml_collections.ConfigDict,
) -> dict[str, Any]:
    """Scores of the static network and the cell; of the static network on undegraded frames where they exist."""
    names = ["static", "cell", "static_clean"]
    totals = {name: metrics.SequenceScores(table.names, tuple(section.vc_frames)) for name in names}
    with progress.bar(len(sequences), "evaluate") as bar:
        for sequence in sequences:
            static, cell = segment(segmenter, sequence.frames, section.chunk)
            totals["static"].add(sequence.labels, static, sequence.flow)
            totals["cell"].add(sequence.labels, cell, sequence.flow)
            if sequence.clean is not None:
                clean, _ = segment(segmenter, sequence.clean, section.chunk)
                totals["static_clean"].add(sequence.labels, clean, sequence.flow)
            bar.update()
    has_clean = all(sequence.clean is not None for sequence in sequences)
    return {
        "classes": list(table.names),
        "num_frames": sum(len(sequence.frames) for sequence in sequences),
        "static": totals["static"].result(),
        "cell": totals["cell"].result(),
        "static_clean": totals["static_clean"].result() if has_clean else None,
    }


def commonest_class(
    config: ml_collections.ConfigDict, sequences: list[types.Sequence], table: types.ClassTable
) -> dict[str, Any]:
    """Scores of always answering the class that is commonest in the train split."""
    labels = pipeline.load_clips(config.data, split="train", num_frames=config.data.num_frames).labels[:, -1]
    best = np.bincount(np.asarray(labels).ravel(), minlength=256)[: table.num_classes].argmax()
    total = metrics.SequenceScores(table.names, tuple(config.evaluate.vc_frames))
    for sequence in sequences:
        total.add(sequence.labels, np.full_like(sequence.labels, best), sequence.flow)
    return total.result()


def latency(segmenter: Segmenter, frames: np.ndarray) -> dict[str, float]:
    """Median milliseconds per frame, one frame at a time, of the static network alone and with the cell."""
    state = segmenter.initial_state(frames[:1])
    state = segmenter.chunk(state, frames[:1])[0]
    jax.block_until_ready(segmenter.static_chunk(frames[:1]))
    times: dict[str, list[float]] = {"static": [], "cell": []}
    for index in range(TIMED_FRAMES):
        frame = frames[index % len(frames)][None]
        started = time.perf_counter()
        jax.block_until_ready(segmenter.static_chunk(frame))
        between = time.perf_counter()
        state, _, labels = segmenter.chunk(state, frame)
        jax.block_until_ready(labels)
        times["static"].append(between - started)
        times["cell"].append(time.perf_counter() - between)
    return {name: float(np.median(values) * 1e3) for name, values in times.items()}


def save_strip(
    segmenter: Segmenter,
    sequences: list[types.Sequence],
    table: types.ClassTable,
    folder: workdir.Workdir,
    num_frames: int,
) -> None:
    """Keeps the consecutive frames where the static network loses most pixels, for the report."""
    best: tuple[float, int, int] = (-np.inf, 0, 0)
    predictions = [segment(segmenter, sequence.frames, 16) for sequence in sequences[:6]]
    for index, (static, _) in enumerate(predictions):
        labels = sequences[index].labels
        valid = labels != types.IGNORE
        wrong = ((static != labels) & valid).mean(axis=(1, 2))
        for start in range(max(len(wrong) // 4, 1), max(len(wrong) - num_frames, 2)):
            window = wrong[start : start + num_frames]
            # A degraded frame inside good ones shows best what history repairs.
            best = max(best, (float(window[1:-1].max(initial=0) - window[0]), index, start))
    _, index, start = best
    rows = slice(start, start + num_frames)
    path = folder.path / STRIP
    path.parent.mkdir(parents=True, exist_ok=True)
    static, cell = predictions[index]
    np.savez_compressed(
        path,
        frames=sequences[index].frames[rows],
        labels=sequences[index].labels[rows],
        static=static[rows],
        cell=cell[rows],
        colors=table.colors,
    )
