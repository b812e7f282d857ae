"""Evaluation frame by frame over whole sequences: the static network and the cell on the same frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, progress, types, workdir
from dvsnas_jax.data import pipeline, store
from dvsnas_jax.run import metrics, pretrain, stream, train

RESULT = "evaluation.json"
STRIP = "figures/strip.npz"
STRIP_SEQUENCES = 6
COUNTED_FRAMES = 500


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
        segmenter = stream.make_segmenter(config, variables, cell, params)
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
        for name, times in stream.latency(segmenter, sequences[0].frames, config.evaluate.latency_frames).items():
            result[name] |= times
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
    segmenter: stream.Segmenter,
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
    shares = []
    with progress.bar(len(sequences), "evaluate") as bar:
        for number, sequence in enumerate(sequences):
            static, cell, key_share = segmenter.segment(sequence.frames)
            watch_fn(number, sequence, static, cell)
            shares.append(key_share)
            num_frames += len(sequence.frames)
            has_clean &= sequence.clean is not None
            totals["commonest_class"].add(sequence.labels, np.full_like(sequence.labels, commonest), sequence.flow)
            totals["static"].add(sequence.labels, static, sequence.flow)
            totals["cell"].add(sequence.labels, cell, sequence.flow)
            if sequence.clean is not None:
                clean = segmenter.segment(sequence.clean).static
                totals["static_clean"].add(sequence.labels, clean, sequence.flow)
            bar.update()
    return {
        "classes": list(table.names),
        "num_frames": num_frames,
        "static": totals["static"].result(),
        "cell": {**totals["cell"].result(), "key_share": float(np.concatenate(shares).mean())},
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
        segmenter: stream.Segmenter,
        sequences: Sequence[types.Sequence],
        table: types.ClassTable,
        folder: workdir.Workdir,
    ) -> None:
        """Writes frames, labels and predictions of the strip."""
        _, number, start = self._best
        rows = slice(start, start + self._num_frames)
        sequence = sequences[number]
        static, cell, _ = segmenter.segment(sequence.frames)
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
