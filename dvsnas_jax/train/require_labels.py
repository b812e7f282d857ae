"""What has to be labelled before anything is trained: said in one line, before the run folder is claimed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import ml_collections
import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data import coverage, datasets
from dvsnas_jax.data.loading import mixture, store, whole_videos
from dvsnas_jax.train import clip_scores, features, pretrain, teachers


def check(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir | None = None,
    *,
    is_rewarded: bool = False,
    is_evaluated: bool = False,
    do_note: bool = True,
) -> int:
    """Looks whether there are labelled pixels where a run trains and measures; prints notes on standard error.

    Of a data set on disk some label images are read (`coverage.LIMIT` of a split, fewer where every class is met
    earlier), all where those look wrong. The clips that rewards are measured on are looked at one by one.

    Candidates that are rewarded are scored on meta-validation clips; a run that is evaluated, on
    `config.evaluate.split` in the end. `do_note` prints what is harmless, too. Where the static network in `folder` is
    trained and cells have a teacher, no training clip needs a label. Gives the number of clips of the train split.

    Raises:
      UserError: too few clips, or no labelled pixel where the run trains or measures, or masks that the config reads
        wrongly, or a reward that asks for stability, of which nothing is known.
    """
    data = config.data
    targets = store.index(data, "train", data.num_frames).places[:, -1]
    training, held_out = pretrain.split_clips(config)
    if not len(held_out):
        raise errors.UserError(
            "data: the train split has one clip; at least two are needed, one to train and one to measure on: add "
            "labelled frames, or lower data.num_frames or data.frame_gap"
        )
    mixture.check(config)
    teachers.make(config)  # says so where it is not there
    asking = _asking_for_pairs(config)
    if asking and data.num_frames < 2:
        raise errors.UserError(
            f"{asking}, which needs clips of two frames or more: raise data.num_frames (is {data.num_frames})"
        )
    if datasets.of(data).is_computed:
        return len(targets)
    if asking and (folder is None or not folder.is_begun()):  # an older run goes on without
        _require_pairs(config, held_out, asking)
    if is_evaluated:
        whole_videos.find(data, config.evaluate.split)  # says so where there are none
    names = dict.fromkeys(("train", *([config.evaluate.split] if is_evaluated else [])))
    notes = _require_classes(data, list(names))
    for note in notes if do_note and distributed.is_main() else ():
        print(f"note: {note}", file=sys.stderr, flush=True)
    if is_rewarded:
        num = min(config.search.reward_clips, len(held_out))
        what = f"the {num} meta-validation clips that rewards are measured on"
        keys = "search.meta_val_fraction, search.reward_clips or seed"
        _require_pixel(data, targets[held_out[:num]], what, keys)
    keys = "search.meta_val_fraction or seed"
    is_taught = config.train.teacher_weight > 0 and folder is not None and pretrain.is_trained(config, folder)
    if not is_taught:
        _require_pixel(data, targets[training], f"the {len(training)} clips to train on", keys)
    what = f"the {len(held_out)} training clips that are held out to choose the best weights"
    _require_pixel(data, targets[held_out], what, keys)
    return len(targets)


def is_scorable(config: ml_collections.ConfigDict) -> bool:
    """Whether a run that trains can be scored on `config.evaluate.split`, too; where not, a note says why.

    Raises:
      UserError: as `check`: there is nothing to train on.
    """
    try:
        check(config, is_evaluated=True, do_note=False)
        return True
    except errors.UserError as error:
        reason = str(error)
    check(config, do_note=False)
    if distributed.is_main():
        print(f"note: the network is trained, but not scored: {reason}", file=sys.stderr, flush=True)
    return False


def _require_classes(data: ml_collections.ConfigDict, names: list[str]) -> list[str]:
    """One rule for the classes of the splits that a run uses, see `coverage.judge`; what is harmless is returned."""
    splits = [coverage.read(data, name, limit=coverage.LIMIT) for name in names]
    bare = [split.name for split in splits if not split.num_masks]
    if bare:
        raise errors.UserError(
            f"split {bare[0]}: none of its frames has a label image, and the run is scored on it; add some, or name "
            "another split in evaluate.split"
        )
    rules = datasets.of(data), datasets.options(data)
    problems, notes = coverage.judge(splits, *rules)
    if problems and not all(split.is_whole for split in splits):
        splits = [split if split.is_whole else coverage.read(data, split.name) for split in splits]
        problems, notes = coverage.judge(splits, *rules)
    if problems:
        more = f" ({len(problems) - 1} more problems: run `dvsnas data check`)" if len(problems) > 1 else ""
        raise errors.UserError(f"{problems[0]}{more}")
    return notes


def _asking_for_pairs(config: ml_collections.ConfigDict) -> str:
    """Which key needs labels on consecutive frames, in words; empty: none does."""
    section = config.search
    if section.reward == clip_scores.GAIN:
        return "search.reward: must be plain here, as gain counts flicker and true changes"
    return "search.stability: must be 0 here, as it counts flicker" if section.stability > 0 else ""


def _require_pairs(config: ml_collections.ConfigDict, held_out: np.ndarray, asking: str) -> None:
    """Whether flicker can be seen on the meta-validation clips: two consecutive scored frames with labels."""
    data, ages = config.data, features.settings_of(config).num_ages
    if data.history == "stills":  # labels move with their frame
        return
    places = store.index(data, "train", data.num_frames).places[held_out]
    frames = store.source(data, "train").frames
    has_label = np.array([[frames[place].label is not None for place in row] for row in places])
    near = slice(0, ages + 1) if ages else slice(-2, None)
    if not (has_label[:, near][:, 1:] & has_label[:, near][:, :-1]).any():
        raise errors.UserError(
            f"{asking}, and no clip that rewards are measured on has labels on two consecutive frames: change the key, "
            "label those frames, or set data.history to 'stills'"
        )


def _require_pixel(data: ml_collections.ConfigDict, places: Sequence[int] | np.ndarray, what: str, keys: str) -> None:
    places = [int(place) for place in places]
    if coverage.has_labelled_pixel(data, "train", places):
        return
    source = store.source(data, "train")
    shown = ", ".join(str(source.frames[place].label) for place in places[:3]) + (", ..." if len(places) > 3 else "")
    raise errors.UserError(
        f"labels: no labelled pixel in {what} ({shown}), at {data.height}x{data.width} pixels; label them, take them "
        f"out, or change {keys}"
    )
