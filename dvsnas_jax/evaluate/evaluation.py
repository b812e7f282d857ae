"""Evaluation frame by frame over whole sequences: the static network and the cell on the same frames."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, progress, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data.loading import pipeline, whole_videos
from dvsnas_jax.deploy import opened
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.infer import artifact, programs, stream
from dvsnas_jax.train import cell_training, claims, winners

RESULT = "evaluation.json"
STRIP, CLIP = "figures/strip.npz", "figures/clip.npz"
STRIP_SEQUENCES = 6
CLIP_FRAMES = 24
COUNTED_FRAMES = 500
NETWORKS = ("static", "cell", "static_clean", "commonest_class")
GENOTYPE = "genotype"
"""Of `RESULT`: the digest of the cell that was scored."""
_FREE_KEYS = ("data.loader", "data.workers")
"""Of a run, may differ when it is evaluated: they change how frames are read, not which."""

WatchFn = Callable[[int, types.Sequence, np.ndarray, np.ndarray], None]
"""Sees (number, sequence, predictions of the static network, of the cell) of each sequence."""


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    *,
    watch_fn: WatchFn | None = None,
    is_other_data: bool = False,
) -> dict[str, Any]:
    """The command `evaluate`: scores of the run's network and cell on `config.evaluate.split`.

    Where no cell was trained, of the static network alone; `cell` is then None in the result.

    Writes `evaluation.json` and the frames that the report shows. For a split other than val, or other data than the
    run's, a file of its own alone (`evaluation_SPLIT.json`, `evaluation_DATA_SPLIT.json`): the report stays as it is.
    Of several processes all read the weights, the first one alone segments, and the others wait for it.

    Args:
      config: of the run; `data.loader` and `data.workers` may differ, and all of `data` where `is_other_data`.
      folder: the run folder.
      watch_fn: sees what was segmented.
      is_other_data: the config's data is not what the run was trained on, but has the same classes.

    Raises:
      UserError: the run folder holds no trained network, or is of another config.
    """
    ignore = ("evaluate", "report", *(("data",) if is_other_data else _FREE_KEYS))
    folder.config()  # a folder that is no run does not become one
    with folder.hold():
        config = claims.check(config, folder, ignore=ignore)
        table = pipeline.class_table(config.data)
        if is_other_data:
            _check_classes(pipeline.class_table(claims.config_of(folder).data).names, table.names, folder.path)
        segmenter, has_cell = opened.segmenter(config, folder), cell_training.has_cell(folder)
        sequences, strip = sequences_of(config), Strip(config.report.strip_frames)
        claims.claim(config, folder, ignore=ignore)

        def watch(number: int, sequence: types.Sequence, static: np.ndarray, found: np.ndarray) -> None:
            strip.watch(number, sequence, static)
            if watch_fn is not None:
                watch_fn(number, sequence, static, found)

        file = RESULT if config.evaluate.split == "val" else f"evaluation_{config.evaluate.split}.json"
        if is_other_data:
            file = f"evaluation_{config.data.name}_{config.evaluate.split}.json"
        if distributed.is_main():
            commonest = None if is_other_data else commonest_class(config, table)
            result = _evaluate(
                config, segmenter, sequences, table, commonest=commonest, watch_fn=watch, has_cell=has_cell
            )
            winner = winners.read(folder)
            folder.write_json(file, {**result, GENOTYPE: winner.digest if winner else None})
            if file == RESULT:
                strip.save(segmenter, sequences, table, folder, has_cell=has_cell)
        distributed.barrier("evaluation")  # written by one process, read by all
        return folder.read_json(file)


def run_exported(
    config: ml_collections.ConfigDict, path: str | os.PathLike[str], *, watch_fn: WatchFn | None = None
) -> dict[str, Any]:
    """The command `evaluate --model`: scores of an exported folder, frame by frame, on `config.evaluate.split`.

    Writes `evaluation_DATA_SPLIT.json` into it. Nothing but the sections `data` and `evaluate` of the config is used.

    Raises:
      UserError: no exported folder, or its classes or size are not those of the data.
    """
    folder = pathlib.Path(path)
    if not artifact.is_artifact(folder):
        raise errors.UserError(f"--model: {folder} is no exported folder, write one with `dvsnas export`")
    model, table = artifact.open_folder(folder), pipeline.class_table(config.data)
    _check_classes(model.manifest["classes"], table.names, folder)
    size = [config.data.height, config.data.width]
    if model.manifest["size"] != size:
        raise errors.UserError(
            f"--model: {folder} is for {model.manifest['size']} (height, width), the config's data.height and "
            f"data.width are {size}; set these to the same"
        )
    result = _evaluate(
        config,
        segmenter_of(model),
        sequences_of(config),
        table,
        commonest=None,
        watch_fn=watch_fn or (lambda number, sequence, static, found: None),
        has_cell=bool(model.manifest["genotype"]),
    )
    workdir.Workdir(folder).write_json(f"evaluation_{config.data.name}_{config.evaluate.split}.json", result)
    return result


def segmenter_of(model: artifact.Model) -> stream.Segmenter:
    """The programs of an exported folder as those of a run are used."""

    # Without a cell a program carries nothing; a state of no such fields keeps its place.
    has_cell, nothing = bool(model.manifest["genotype"]), jax.numpy.zeros((1, 0, 0, 0))
    blank = types.CellState(
        state=nothing, decoder=nothing, logits=nothing, image=nothing, is_first=jax.numpy.ones((1,), bool)
    )

    def initial_state() -> types.CellState:
        return types.CellState.from_dict(model.initial_state()) if has_cell else blank

    def cell_step(state: types.CellState, frame: np.ndarray) -> tuple[types.CellState, jax.Array]:
        after, labels = model.step(programs.to_dict(state) if has_cell else {}, frame)
        return types.CellState.from_dict(after) if has_cell else blank, labels

    def segment(frames: np.ndarray) -> stream.Labels:
        state, static, cell, shares = model.initial_state(), [], [], []
        for frame in frames:
            static.append(np.asarray(model.static_step(frame[None]))[0])
            state, labels = model.step(state, frame[None])
            cell.append(np.asarray(labels)[0])
            shares.append(model.key_share(state))
        return stream.Labels(np.stack(static), np.stack(cell), np.array(shares, np.float32))

    return stream.Segmenter(
        segment=segment, static_step=model.static_step, cell_step=cell_step, initial_state=initial_state
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Whether there are videos of `config.evaluate.split`; the frames are not read.

    Raises:
      UserError: there are none, or their files are not as they should be.
    """
    if config.data.name != "synthetic":
        sequences_of(config)


def sequences_of(config: ml_collections.ConfigDict) -> Sequence[types.Sequence]:
    """The videos of `config.evaluate.split`; decoded by tf.data where `data.loader` is "tf", else by Pillow."""
    return whole_videos.open_split(config.data, config.evaluate.split)


def _check_classes(trained: Sequence[str], given: Sequence[str], where: os.PathLike[str]) -> None:
    """Whether data has the classes that a network was trained for.

    Raises:
      UserError: it has others.
    """
    if list(trained) != list(given):
        raise errors.UserError(
            f"{os.fspath(where)}: was trained for the classes {', '.join(trained)}, the data has {', '.join(given)}; "
            "give data with the same classes in the same order (data.folder.classes)"
        )


def _evaluate(
    config: ml_collections.ConfigDict,
    segmenter: stream.Segmenter,
    sequences: Sequence[types.Sequence],
    table: types.ClassTable,
    *,
    commonest: int | None,
    watch_fn: WatchFn,
    has_cell: bool,
) -> dict[str, Any]:
    """Scores and, where the config asks for them, times."""
    result = score(
        segmenter, sequences, table, config.evaluate, commonest=commonest, watch_fn=watch_fn, has_cell=has_cell
    )
    result["split"] = config.evaluate.split
    if config.evaluate.latency_frames:
        for name, times in stream.latency(segmenter, sequences[0].frames, config.evaluate.latency_frames).items():
            if result[name] is not None:
                result[name] |= times
    return result


def score(
    segmenter: stream.Segmenter,
    sequences: Sequence[types.Sequence],
    table: types.ClassTable,
    section: ml_collections.ConfigDict,
    *,
    commonest: int | None,
    watch_fn: WatchFn,
    has_cell: bool = True,
) -> dict[str, Any]:
    """Scores of the static network and the cell; of the static network on undegraded frames where they exist.

    Args:
      segmenter: network and cell.
      sequences: each is read once, and kept no longer than it is scored.
      table: the classes.
      section: `evaluate` of the configuration.
      commonest: a class; always answering it is scored, too. None: nothing of the kind.
      watch_fn: sees each.
      has_cell: False: the segmenter's network is used alone; there are no scores of a cell.
    """

    def no_scores() -> metrics.SequenceScores:
        return metrics.SequenceScores(table.names, tuple(section.vc_frames))

    totals = {name: no_scores() for name in NETWORKS}
    rows, num_clean = [], 0
    with progress.bar(len(sequences), "evaluate") as bar:
        for number, sequence in enumerate(sequences):
            static, cell, key_share = segmenter.segment(sequence.frames)
            watch_fn(number, sequence, static, cell)
            predictions = {"static": static, "cell": cell} if has_cell else {"static": static}
            if sequence.clean is not None:
                predictions["static_clean"] = segmenter.segment(sequence.clean).static
                num_clean += 1
            if commonest is not None:
                predictions["commonest_class"] = np.full_like(sequence.labels, commonest)
            own = {name: no_scores() for name in predictions}
            for name, found in predictions.items():
                own[name].add(sequence.labels, found, sequence.flow)
                totals[name].merge(own[name])
            row: dict[str, Any] = {"name": sequence.name, "num_frames": len(sequence.frames)}
            row |= {name: own[name].result() for name in ("static", "cell") if name in own}
            if has_cell:
                row["cell"]["key_share"] = float(key_share.mean(dtype=np.float64))
            rows.append(row)
            bar.update()
    return {
        "classes": list(table.names),
        "num_frames": sum(row["num_frames"] for row in rows),
        "static": {**totals["static"].result(), **totals["static"].pixel_counts()},
        "cell": {**totals["cell"].result(), **totals["cell"].pixel_counts(), "key_share": _mean_share(rows)}
        if has_cell
        else None,
        "static_clean": totals["static_clean"].result() if num_clean == len(rows) else None,
        "commonest_class": None if commonest is None else totals["commonest_class"].result(),
        "sequences": rows,
    }


def _mean_share(rows: Sequence[dict[str, Any]]) -> float:
    """Mean share of a frame that the static network computed, over all frames."""
    return sum(row["cell"]["key_share"] * row["num_frames"] for row in rows) / sum(row["num_frames"] for row in rows)


def commonest_class(config: ml_collections.ConfigDict, table: types.ClassTable) -> int:
    """The class with most pixels in the train split: on disk, in at most `COUNTED_FRAMES` frames spread over it."""
    if config.data.name == "synthetic":
        clips = pipeline.load_clips(config.data, split="train", num_frames=config.data.num_frames)
        images = [np.asarray(clips.labels)[:, -1]]
    else:
        frames = whole_videos.find(config.data, "train", is_split_up=True)
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
        *,
        has_cell: bool = True,
    ) -> None:
        """Writes frames, labels and predictions of the strip, and of a longer stretch around it."""
        _, number, start = self._best
        sequence = sequences[number]
        static, cell, _ = segmenter.segment(sequence.frames)
        arrays = {"frames": sequence.frames, "labels": sequence.labels, "static": static}
        arrays |= {"cell": cell} if has_cell else {}
        first = max(0, min(start - CLIP_FRAMES // 3, len(sequence.frames) - CLIP_FRAMES))
        for file, begin, count in ((STRIP, start, self._num_frames), (CLIP, first, CLIP_FRAMES)):
            path = folder.path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            parts: dict[str, Any] = {name: array[begin : begin + count] for name, array in arrays.items()}
            np.savez_compressed(path, **parts, colors=table.colors)
