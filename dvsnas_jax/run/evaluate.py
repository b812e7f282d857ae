"""Evaluation frame by frame over whole sequences: the static network and the cell on the same frames."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, progress, types, workdir
from dvsnas_jax.data import pipeline, store
from dvsnas_jax.nets import static_net
from dvsnas_jax.run import features as features_lib
from dvsnas_jax.run import metrics, pretrain, train
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import ports

RESULT = "evaluation.json"
STRIP = "figures/strip.npz"
STRIP_SEQUENCES = 6
COUNTED_FRAMES = 500


class Segmenter(NamedTuple):
    """A trained network and cell as functions over the frames of one sequence.

    Attributes:
      segment: `frames u8 [T, H, W, 3] -> (static u8 [T, H, W], cell u8 [T, H, W])`.
      static_step: `frame u8 [1, H, W, 3] -> labels u8 [1, H, W]`.
      cell_step: `(state, frame u8 [1, H, W, 3]) -> (state, labels u8 [1, H, W])`, network and cell.
      initial_state: `() -> state` of one sequence before its first frame.
    """

    segment: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    static_step: Callable[[np.ndarray], jax.Array]
    cell_step: Callable[[types.CellState, np.ndarray], tuple[types.CellState, jax.Array]]
    initial_state: Callable[[], types.CellState]


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
    size = config.data.height, config.data.width
    forward = features_lib.make_forward(config)
    net = static_net.make(config.net, pipeline.class_table(config.data).num_classes)
    frame = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)

    def static_step(variables: Any, frame: jax.Array) -> jax.Array:
        return static_net.predict(static_net.infer(net, variables, frame).logits, size)

    def cell_step(
        variables: Any, params: types.Params, state: types.CellState, frame: jax.Array
    ) -> tuple[types.CellState, jax.Array]:
        state, logits = cell.step(params, state, static_net.infer(net, variables, frame))
        return state, static_net.predict(logits, size)

    def follow_part(
        params: types.Params, state: types.CellState, found: types.Features
    ) -> tuple[types.CellState, jax.Array, jax.Array]:
        batch = jax.tree.map(lambda x: x[None], found)  # one clip, its frames along T
        state, logits = ports.unroll(lambda s, f: cell.step(params, s, f), state, batch)
        return state, static_net.predict(found.logits, size), static_net.predict(logits[:, 0], size)

    follow = compilation.jit(follow_part)

    def initial_state() -> types.CellState:
        return cell.initial_state(jax.eval_shape(functools.partial(static_net.infer, net), variables, frame))

    def segment(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state, static, corrected = initial_state(), [], []
        for found in forward(variables, frames):
            state, static_part, cell_part = follow(params, state, found)
            static.append(static_part)
            corrected.append(cell_part)
        joined = (np.concatenate(jax.device_get(parts))[: len(frames)] for parts in (static, corrected))
        return tuple(joined)  # type: ignore[return-value]

    static_fn, cell_fn = compilation.jit(static_step), compilation.jit(cell_step)
    return Segmenter(
        segment=segment,
        static_step=lambda frame: static_fn(variables, frame),
        cell_step=lambda state, frame: cell_fn(variables, params, state, frame),
        initial_state=initial_state,
    )


WatchFn = Callable[[int, types.Sequence, np.ndarray, np.ndarray], None]
"""Sees (number, sequence, predictions of the static network, of the cell) of each sequence."""


def run(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, *, watch_fn: WatchFn | None = None
) -> dict[str, Any]:
    """The command `evaluate`: scores of the run's network and cell on `config.evaluate.split`.

    Writes `evaluation.json` and the frames of the report's strip (`evaluation_SPLIT.json` alone for a split other than
    val, so that the report stays what it was).

    Raises:
      UserError: the run folder holds no trained network or cell, or is of another config.
    """
    train.require_winner(folder)
    folder.claim(config, ignore=("evaluate", "report"))
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(f"{folder.path}: holds no trained static network, run `dvsnas search` first")
    cell, params, _, _ = train.load_winner(config, folder)
    with compilation.effort(config.compile_effort):
        segmenter = make_segmenter(config, variables, cell, params)
    table = pipeline.class_table(config.data)
    sequences = pipeline.sequences(config.data, config.evaluate.split)
    strip = Strip(config.report.strip_frames)

    def watch(number: int, sequence: types.Sequence, static: np.ndarray, found: np.ndarray) -> None:
        strip.watch(number, sequence, static)
        if watch_fn is not None:
            watch_fn(number, sequence, static, found)

    result = score(
        segmenter, sequences, table, config.evaluate, commonest=commonest_class(config, table), watch_fn=watch
    )
    result["split"] = config.evaluate.split
    if config.evaluate.latency_frames:
        for name, value in latency(segmenter, sequences[0].frames, config.evaluate.latency_frames).items():
            result[name]["ms_per_frame"] = value
    if config.evaluate.split != "val":
        folder.write_json(f"evaluation_{config.evaluate.split}.json", result)
        return result
    folder.write_json(RESULT, result)
    strip.save(segmenter, sequences, table, folder)
    return result


def summary(result: dict[str, Any]) -> str:
    """A table of what `run` returned, for people: shares in percent, times in ms."""
    rows = {
        "static network": result["static"],
        "with the cell": result["cell"],
        "static, undegraded frames": result["static_clean"],
        "always the commonest class": result["commonest_class"],
    }
    lines = [f"{result['split']}, {result['num_frames']} frames"]
    lines.append(f"{'':28}{'mIoU':>7}{'fwIoU':>7}{'acc.':>7}{'VC_8':>7}{'flicker':>9}{'ms/frame':>10}")
    for name, scores in rows.items():
        if scores is not None:
            shares = [scores["miou"], scores["fwiou"], scores["accuracy"], scores["vc"].get("8"), scores["flicker"]]
            shown = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
            time_shown = f"{scores['ms_per_frame']:.1f}" if "ms_per_frame" in scores else "-"
            cells = [f"{text:>{width}}" for text, width in zip([*shown, time_shown], (7, 7, 7, 7, 9, 10), strict=True)]
            lines.append(f"{name:28}" + "".join(cells))
    return "\n".join(lines)


def score(
    segmenter: Segmenter,
    sequences: Sequence[types.Sequence],
    table: types.ClassTable,
    section: ml_collections.ConfigDict,
    *,
    commonest: int,
    watch_fn: WatchFn,
) -> dict[str, Any]:
    """Scores of the static network and the cell; of the static network on undegraded frames where they exist.

    Args:
      segmenter: network and cell.
      sequences: each is read once, and kept no longer than it is scored.
      table: the classes.
      section: `evaluate` of the configuration.
      commonest: a class; always answering it is scored, too.
      watch_fn: sees each.
    """
    names = ["static", "cell", "static_clean", "commonest_class"]
    totals = {name: metrics.SequenceScores(table.names, tuple(section.vc_frames)) for name in names}
    num_frames, has_clean = 0, True
    with progress.bar(len(sequences), "evaluate") as bar:
        for number, sequence in enumerate(sequences):
            static, cell = segmenter.segment(sequence.frames)
            watch_fn(number, sequence, static, cell)
            num_frames += len(sequence.frames)
            has_clean &= sequence.clean is not None
            totals["commonest_class"].add(sequence.labels, np.full_like(sequence.labels, commonest), sequence.flow)
            totals["static"].add(sequence.labels, static, sequence.flow)
            totals["cell"].add(sequence.labels, cell, sequence.flow)
            if sequence.clean is not None:
                clean, _ = segmenter.segment(sequence.clean)
                totals["static_clean"].add(sequence.labels, clean, sequence.flow)
            bar.update()
    return {
        "classes": list(table.names),
        "num_frames": num_frames,
        "static": totals["static"].result(),
        "cell": totals["cell"].result(),
        "static_clean": totals["static_clean"].result() if has_clean else None,
        "commonest_class": totals["commonest_class"].result(),
    }


def commonest_class(config: ml_collections.ConfigDict, table: types.ClassTable) -> int:
    """The class with most pixels in the train split: on disk, in at most `COUNTED_FRAMES` frames spread over it."""
    if config.data.name == "synthetic":
        clips = pipeline.load_clips(config.data, split="train", num_frames=config.data.num_frames)
        images = [np.asarray(clips.labels)[:, -1]]
    else:
        frames = store.videos(config.data, "train", is_split_up=True)
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), COUNTED_FRAMES)).round().astype(int))
        images = [frames[number].labels for number in chosen]
    counts = sum(np.bincount(image.ravel(), minlength=256)[: table.num_classes] for image in images)
    return int(np.argmax(counts))


def latency(segmenter: Segmenter, frames: np.ndarray, num_frames: int) -> dict[str, float]:
    """Median milliseconds per frame, one at a time, of the static network alone and with the cell.

    Args:
      segmenter: network and cell.
      frames: u8 [T, H, W, 3], repeated as often as needed.
      num_frames: how many are timed, after one to warm up.
    """
    state = segmenter.initial_state()
    times: dict[str, list[float]] = {"static": [], "cell": []}
    for index in range(num_frames + 1):
        frame = frames[index % len(frames)][None]
        started = time.perf_counter()
        jax.block_until_ready(segmenter.static_step(frame))
        between = time.perf_counter()
        state, labels = segmenter.cell_step(state, frame)
        jax.block_until_ready(labels)
        times["static"].append(between - started)
        times["cell"].append(time.perf_counter() - between)
    return {name: float(np.median(values[1:]) * 1e3) for name, values in times.items()}


class Strip:
    """Finds the consecutive frames where the static network loses most pixels, for the report.

    Args:
      num_frames: of the strip.
    """

    def __init__(self, num_frames: int):
        self._num_frames = num_frames
        self._best: tuple[float, int, int] = (-np.inf, 0, 0)

    def watch(self, number: int, sequence: types.Sequence, static: np.ndarray) -> None:
        """Looks at one sequence; only the first few count, since any of them will do."""
        if number >= STRIP_SEQUENCES:
            return
        wrong = ((static != sequence.labels) & (sequence.labels != types.IGNORE)).mean(axis=(1, 2))
        for start in range(max(len(wrong) // 4, 1), max(len(wrong) - self._num_frames, 2)):
            window = wrong[start : start + self._num_frames]
            # A degraded frame inside good ones shows best what history repairs.
            self._best = max(self._best, (float(window[1:-1].max(initial=0) - window[0]), number, start))

    def save(
        self,
        segmenter: Segmenter,
        sequences: Sequence[types.Sequence],
        table: types.ClassTable,
        folder: workdir.Workdir,
    ) -> None:
        """Writes frames, labels and predictions of the strip."""
        _, number, start = self._best
        rows = slice(start, start + self._num_frames)
        sequence = sequences[number]
        static, cell = segmenter.segment(sequence.frames)
        path = folder.path / STRIP
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            frames=sequence.frames[rows],
            labels=sequence.labels[rows],
            static=static[rows],
            cell=cell[rows],
            colors=table.colors,
        )
