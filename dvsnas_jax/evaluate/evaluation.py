"""Evaluation frame by frame over whole sequences: the static network and the cell on the same frames."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, progress, types
from dvsnas_jax.core.files import image_files, workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import pipeline, whole_videos
from dvsnas_jax.deploy import run_model
from dvsnas_jax.evaluate import baselines, metrics, timing
from dvsnas_jax.infer import artifact, dispatch, jitted, programs
from dvsnas_jax.train import claims, pretrain, winners

RESULT = "evaluation.json"
STRIP, CLIP = "figures/strip.npz", "figures/clip.npz"
STRIP_SEQUENCES = 6
CLIP_FRAMES = 24
COUNTED_FRAMES = 500
NETWORKS = ("static", "cell", *baselines.OTHERS, *baselines.NAMES, "static_clean", "commonest_class")
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
    """The command `evaluate`: scores of the run's network and cell (None without one) on `config.evaluate.split`.

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
        trained = run_model.read(config, folder)[0]
        model = run_model.jit(config, trained)
        split, strip = config.evaluate.split, Strip(config.report.strip_frames)
        is_file = config.evaluate.size == "file"
        sequences = whole_videos.open_split(config.data, split, has_file_labels=is_file)
        claims.claim(config, folder, ignore=ignore)
        file = _other_file(config) if is_other_data else RESULT if split == "val" else f"evaluation_{split}.json"
        if distributed.is_main():
            with compilation.effort(config.compile_effort):  # labels of another size are another program
                controls = _controls(config, trained, folder, is_other_data=is_other_data)
                if not is_other_data:
                    controls = controls._replace(commonest=commonest_class(config, table))
                result = _evaluate(config, model, sequences, controls=controls, watch_fns=(strip.watch, watch_fn))
            winner = winners.read(folder)
            folder.write_json(file, {**result, GENOTYPE: winner.digest if winner else None})
            if file == RESULT:
                strip.save(model, sequences, table, folder, controls.networks.get("static"))
        distributed.barrier("evaluation")  # written by one process, read by all
        return folder.read_json(file)


def _controls(
    config: ml_collections.ConfigDict, trained: programs.Model, folder: workdir.Workdir, *, is_other_data: bool
) -> baselines.Controls:
    """The other networks of a run, and the baseline of its mode, which is that of the static network of the run."""
    others = run_model.others(config, folder)
    original = dataclasses.replace(trained, variables=others.get("static", trained).variables)
    controls = baselines.of_run(config, original, folder, is_other_data=is_other_data)
    return controls._replace(networks={name: run_model.jit(config, each) for name, each in others.items()})


def run_exported(
    config: ml_collections.ConfigDict, path: str | os.PathLike[str], *, watch_fn: WatchFn | None = None
) -> dict[str, Any]:
    """The command `evaluate --model`: scores of an exported folder, frame by frame, on `config.evaluate.split`.

    Writes `evaluation_DATA_SPLIT.json` into it. Nothing but the sections `data` and `evaluate` of the config is used.

    Raises:
      UserError: no exported folder, its classes or size are not those of the data, or scores at the size of the label
        files are asked for, which need the logits of the static network: an exported folder gives labels alone.
    """
    folder = pathlib.Path(path)
    if not artifact.is_artifact(folder):
        raise errors.UserError(f"--model: {folder} is no exported folder, write one with `dvsnas export`")
    if config.evaluate.size != "frame":
        raise errors.UserError(
            f"evaluate.size: {folder} gives labels at the size of the frames; set it to 'frame', or score the run "
            "itself (--workdir)"
        )
    manifest, model = artifact.open_folder(folder)
    _check_classes(manifest["classes"], pipeline.class_table(config.data).names, folder)
    size = [config.data.height, config.data.width]
    if manifest["size"] != size:
        raise errors.UserError(
            f"--model: {folder} is for {manifest['size']} (height, width), the config's data.height and "
            f"data.width are {size}; set these to the same"
        )
    sequences = whole_videos.open_split(config.data, config.evaluate.split)
    result = _evaluate(config, model, sequences, watch_fns=(watch_fn,))
    workdir.Workdir(folder).write_json(_other_file(config), result)
    return result


def _other_file(config: ml_collections.ConfigDict) -> str:
    """Where the scores on data go that no run was trained on."""
    return f"evaluation_{config.data.name}_{config.evaluate.split}.json"


def check(config: ml_collections.ConfigDict) -> None:
    """A UserError where there are no proper videos of `config.evaluate.split`; the frames are not read."""
    if not datasets.of(config.data).is_computed:
        whole_videos.open_split(config.data, config.evaluate.split)


def _check_classes(trained: Sequence[str], given: Sequence[str], where: os.PathLike[str]) -> None:
    """A UserError where data has other classes than a network was trained for."""
    if list(trained) != list(given):
        raise errors.UserError(
            f"{os.fspath(where)}: was trained for the classes {', '.join(trained)}, the data has {', '.join(given)}; "
            "give data with the same classes in the same order (data.folder.classes)"
        )


def _evaluate(
    config: ml_collections.ConfigDict,
    model: dispatch.Dispatch,
    sequences: Sequence[types.Sequence],
    *,
    controls: baselines.Controls = baselines.NOTHING,
    watch_fns: Sequence[WatchFn | None],
) -> dict[str, Any]:
    """Scores and, where the config asks for them, times."""
    section, table = config.evaluate, pipeline.class_table(config.data)
    result = score(model, sequences, table, section, controls=controls, watch_fns=watch_fns)
    result |= {"split": section.split, "size": section.size}
    if section.latency_frames:
        for name, times in timing.measure(model, sequences[0].frames, section.latency_frames).items():
            if result[name] is not None:
                result[name] |= times
        _tell_time(model, result["static"], result["cell"])
    return result


def _tell_time(model: dispatch.Dispatch, static: dict[str, Any], cell: dict[str, Any] | None) -> None:
    """A propagating cell's scores get its time over the static network's as `time_share`; above 1 it is said."""
    if line := timing.slower(model.schedule, static, cell):
        print(line, file=sys.stderr)
    if cell is not None and model.is_propagating:
        cell["time_share"] = timing.share_of_static(static, cell)


def trained_time(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> float | None:
    """Mean time of a frame with the trained cell of a run over the static network's, on a held-out clip.

    The clip is followed to its end and back, `timing.FEW_FRAMES` frames. None where the mode has no key frames, or
    `evaluate.latency_frames` is 0.
    """
    if config.space.mode != "propagate" or not config.evaluate.latency_frames or not distributed.is_main():
        return None
    model = run_model.jit(config, run_model.read(config, folder)[0])
    training, held_out = pretrain.split_clips(config)
    first = np.concatenate([held_out, training])[:1]
    clip = pipeline.load_clips(config.data, split="train", num_frames=config.data.num_frames, indices=first)
    frames = np.asarray(clip.frames)[0]
    frames = np.concatenate([frames, frames[-2:0:-1]])
    times = timing.measure(model, frames, timing.FEW_FRAMES)
    _tell_time(model, times["static"], times["cell"])
    share: float = times["cell"]["time_share"]
    return share


def score(
    model: dispatch.Dispatch,
    sequences: Sequence[types.Sequence],
    table: types.ClassTable,
    section: ml_collections.ConfigDict,
    *,
    controls: baselines.Controls = baselines.NOTHING,
    watch_fns: Sequence[WatchFn | None] = (),
) -> dict[str, Any]:
    """Scores of the static network and of the cell, where there is one; of the former on undegraded frames, too.

    Each sequence is read once, and kept no longer than it is scored and seen by the `watch_fns`. What `controls` says
    is scored, too. Labels of another size than the frames: the predictions are made at theirs. `section` is `evaluate`
    of the configuration.
    """

    def no_scores() -> metrics.SequenceScores:
        return metrics.SequenceScores(table.names, tuple(section.vc_frames), int(section.follow_frames))

    totals = {name: no_scores() for name in NETWORKS}
    rows, num_clean, has_ages = [], 0, model.is_propagating
    with progress.bar(len(sequences), "evaluate") as bar:
        for number, sequence in enumerate(sequences):
            predictions, key_share = _predictions(model, sequence, controls)
            for watch_fn in filter(None, watch_fns):
                watch_fn(number, sequence, predictions["static"], predictions.get("cell", predictions["static"]))
            num_clean += sequence.clean is not None
            ages = baselines.ages(key_share) if has_ages else None
            has_ages = ages is not None
            own = {name: no_scores() for name in predictions}
            for name, found in predictions.items():
                known = ages if name in ("static", "cell", "hold") else None
                own[name].add(sequence.labels, found, sequence.flow, known)
                totals[name].merge(own[name])
            row: dict[str, Any] = {"name": sequence.name, "num_frames": len(sequence.frames)}
            row |= {name: own[name].result() for name in ("static", "cell") if name in own}
            if model.has_cell:
                row["cell"]["key_share"] = float(key_share.mean(dtype=np.float64))
            rows.append(row)
            bar.update()
    num_frames = sum(row["num_frames"] for row in rows)
    whole: dict[str, Any] = {name: {**totals[name].result(), **totals[name].pixel_counts()} for name in NETWORKS[:2]}
    if model.has_cell:
        whole["cell"]["key_share"] = sum(row["cell"]["key_share"] * row["num_frames"] for row in rows) / num_frames
    settings = controls.settings()
    whole |= {name: totals[name].result() | settings[name] for name in settings}
    if not has_ages:  # of some sequences alone they would say nothing
        whole = {name: {**scores, "by_age": None} for name, scores in whole.items()}
    return {
        "classes": list(table.names),
        "num_frames": num_frames,
        "static": whole["static"],
        "cell": whole["cell"] if model.has_cell else None,
        **{name: totals[name].result() for name in controls.others()},
        **{name: whole.get(name) for name in baselines.NAMES},
        "static_clean": totals["static_clean"].result() if num_clean == len(rows) else None,
        "commonest_class": None if controls.commonest is None else totals["commonest_class"].result(),
        "sequences": rows,
    }


def _predictions(
    model: dispatch.Dispatch, sequence: types.Sequence, controls: baselines.Controls
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Labels u8 [T, H, W] of a sequence by name of the network, at the size of its labels, and key shares f32 [T]."""
    size, averaged = (sequence.labels.shape[1], sequence.labels.shape[2]), None
    original = controls.networks.get("static")  # None: the model's own
    if isinstance(model, jitted.Jitted):
        model = model.at_label_size(size)
        share = controls.share if original is None else None
        labels, averaged = model.segment_averaged(sequence.frames, share)
    else:
        labels = model.segment(sequence.frames)
    found = {"static": labels.static}
    if model.has_cell:
        found["cell"] = labels.cell
    if original is not None:
        alone, averaged = original.at_label_size(size).segment_averaged(sequence.frames, controls.share)
        found |= {"static": alone.static, "joint_static": labels.static}
    if "static_longer" in controls.networks:
        longer = controls.networks["static_longer"].at_label_size(size)
        found["static_longer"] = longer.segment(sequence.frames).static
    if averaged is not None:
        found["ema"] = averaged
    if controls.interval is not None:
        found["hold"] = baselines.hold(found["static"], controls.interval)
    if sequence.clean is not None:
        clean = model if original is None else original.at_label_size(size)
        found["static_clean"] = clean.segment(sequence.clean).static
    if controls.commonest is not None:
        found["commonest_class"] = np.full_like(sequence.labels, controls.commonest)
    return found, labels.key_share


def commonest_class(config: ml_collections.ConfigDict, table: types.ClassTable) -> int:
    """The class with most pixels in the train split: on disk, in at most `COUNTED_FRAMES` frames spread over it."""
    if datasets.of(config.data).is_computed:
        clips = pipeline.load_clips(config.data, split="train", num_frames=config.data.num_frames)
        images = [np.asarray(clips.labels)[:, -1]]
    else:
        frames = whole_videos.find(config.data, "train", is_split_up=True)
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), COUNTED_FRAMES)).round().astype(int))
        images = [frames[number].labels for number in chosen]
    counts = sum(np.bincount(image.ravel(), minlength=256)[: table.num_classes] for image in images)
    return int(np.argmax(counts))


class Strip:
    """Finds so many consecutive frames where the static network loses most pixels, for the report."""

    def __init__(self, num_frames: int):
        self._num_frames = num_frames
        self._best: tuple[float, int, int] = (-np.inf, 0, 0)

    def watch(self, number: int, sequence: types.Sequence, static: np.ndarray, cell: np.ndarray) -> None:
        """Looks at one sequence; only the first few count, since any of them will do."""
        del cell
        if number >= STRIP_SEQUENCES:
            return
        wrong = ((static != sequence.labels) & (sequence.labels != types.IGNORE)).mean(axis=(1, 2))
        num = len(wrong)  # may be one
        for start in range(min(max(num // 4, 1), num - 1), min(max(num - self._num_frames, 2), num)):
            window = wrong[start : start + self._num_frames]
            # A degraded frame inside good ones shows best what history repairs.
            self._best = max(self._best, (float(window[1:-1].max(initial=0) - window[0]), number, start))

    def save(
        self,
        model: dispatch.Dispatch,
        sequences: Sequence[types.Sequence],
        table: types.ClassTable,
        folder: workdir.Workdir,
        original: dispatch.Dispatch | None = None,
    ) -> None:
        """Writes frames, labels and predictions of the strip, and of a longer stretch around it.

        `original`: the static network, where that of `model` is another one.
        """
        _, number, start = self._best
        sequence = sequences[number]
        static, cell, _ = model.segment(sequence.frames)
        if original is not None:
            static = original.segment(sequence.frames).static
        small = sequence.frames.shape[1:3]  # labels may be at the size of their files
        truth = np.stack([image_files.resized_nearest(labels, small) for labels in sequence.labels])
        arrays = {"frames": sequence.frames, "labels": truth, "static": static}
        arrays |= {"cell": cell} if model.has_cell else {}
        first = max(0, min(start - CLIP_FRAMES // 3, len(sequence.frames) - CLIP_FRAMES))
        for file, begin, count in ((STRIP, start, self._num_frames), (CLIP, first, CLIP_FRAMES)):
            path = folder.path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            parts: dict[str, Any] = {name: array[begin : begin + count] for name, array in arrays.items()}
            np.savez_compressed(path, **parts, colors=table.colors)
