"""The split into clips to train on and clips to measure on: blocks, distances, order; old run folders keep theirs."""

import json

import numpy as np
import pytest
import trees

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import held_out, store
from dvsnas_jax.train import features, pretrain


def _videos(*sizes: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Sequence and number of the targets of clips: one clip every `step` frames of videos of so many clips."""
    return np.repeat(np.arange(len(sizes)), sizes), np.concatenate([step * np.arange(size) for size in sizes])


def _pieces(sequences: np.ndarray, held: np.ndarray) -> list[list[int]]:
    """The contiguous pieces of the held-out clips."""
    held = np.sort(held)
    cuts = np.flatnonzero((np.diff(held) > 1) | (np.diff(sequences[held]) != 0)) + 1
    return [piece.tolist() for piece in np.split(held, cuts)]


def test_one_video_by_hand() -> None:
    """12 clips of 2 consecutive frames, 3 held out: one block, and beside it one clip that shares a frame."""
    sequences, numbers = _videos(12)
    firsts = set()
    for seed in range(40):
        training, held = held_out.in_blocks(sequences, numbers, 3, reach=2, seed=seed)
        first = int(held.min())
        firsts.add(first)
        assert sorted(held) == [first, first + 1, first + 2]
        assert training.tolist() == [clip for clip in range(12) if clip < first - 1 or clip > first + 3]
    assert firsts == set(range(10))  # any place


def test_every_stretch_has_a_block_and_no_block_is_broken_where_it_fits() -> None:
    sequences, numbers = _videos(62, 101, 204, step=30)  # CamVid's training sequences
    for seed in range(20):
        training, held = held_out.in_blocks(sequences, numbers, 37, reach=0, seed=seed)
        assert len(held) == 37 and np.array_equal(np.sort([*training, *held]), np.arange(367))
        assert set(sequences[held]) == {0, 1, 2}
        pieces = _pieces(sequences, held)
        assert len(pieces) <= 6 and min(map(len, pieces)) >= 6  # adjacent blocks may make one piece
        edges = np.linspace(0, 367, 7).round()
        assert (np.histogram(held, edges)[0] >= 6).all()


@pytest.mark.parametrize("seed", range(30))
def test_laws_of_the_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, rng.integers(1, 9))
    step, reach = int(rng.integers(1, 4)), int(rng.integers(0, 7))
    sequences, numbers = _videos(*sizes, step=step)
    num = held_out.count(len(numbers), rng.uniform(0.02, 0.4))
    if not num:
        return
    try:
        training, held = held_out.in_blocks(sequences, numbers, num, reach=reach, seed=seed)
    except errors.UserError as error:
        assert "set search.meta_val to 'random'" in str(error)
        return
    again = held_out.in_blocks(sequences, numbers, num, reach=reach, seed=seed)
    np.testing.assert_array_equal(training, again[0])
    np.testing.assert_array_equal(held, again[1])
    assert len(set(held.tolist())) == len(held) == num and not set(training) & set(held)
    assert (np.diff(training) > 0).all()
    near = np.abs(numbers[:, None] - numbers[held]) < reach
    is_near = (near & (sequences[:, None] == sequences[held])).any(axis=1)
    is_held = np.isin(np.arange(len(numbers)), held)
    np.testing.assert_array_equal(np.isin(np.arange(len(numbers)), training), ~is_held & ~is_near)
    # Every beginning of the order is spread over all pieces, in proportion to their sizes.
    pieces = _pieces(sequences, held)
    for length in range(1, num + 1):
        for piece in pieces:
            seen = np.isin(held[:length], piece).sum()
            assert abs(seen - length * len(piece) / num) <= len(pieces)


def test_short_videos_are_held_out_whole() -> None:
    sequences, numbers = _videos(*[5] * 20)
    _, held = held_out.in_blocks(sequences, numbers, 10, reach=3, seed=1)
    assert [len(piece) for piece in _pieces(sequences, held)] == [5, 5]


def test_no_clip_to_train_on_is_one_line() -> None:
    with pytest.raises(errors.UserError, match="beside 1 held-out clips of 3 none is left"):
        held_out.in_blocks(*_videos(3), 1, reach=9, seed=0)
    for seed in range(20):  # at an end of the video one is left
        training, held = held_out.in_blocks(*_videos(3), 1, reach=2, seed=seed)
        assert (training.tolist(), held.tolist()) in (([2], [0]), ([0], [2]))


# --- what a configuration means -----------------------------------------------------------------------------------


def _folder(root, num_frames: int, **changes: str):
    for video in range(3):
        for number in range(20):
            trees.save(root / f"images/train/v{video}/{number:03d}.png", np.zeros((8, 8, 3), np.uint8))
            trees.save(root / f"masks/train/v{video}/{number:03d}.png", np.zeros((8, 8), np.uint8))
    patterns = {kind: f"{kind}/{{split}}/{{sequence}}/{{number}}.png" for kind in ("images", "masks")}
    return config_lib.load(
        None,
        {
            "data.name": "folder", "data.dir": str(root), "data.folder.frames": patterns["images"],
            "data.folder.masks": patterns["masks"], "data.folder.classes": "a,b", "data.num_frames": str(num_frames),
            "search.meta_val_fraction": "0.2", **changes,
        },
    )  # fmt: skip


@pytest.mark.parametrize("gap, jitter", [(1, 0), (2, 1)])
def test_no_frame_of_a_held_out_clip_is_trained_on(tmp_path, gap: int, jitter: int) -> None:
    own = {"data.frame_gap": str(gap), "data.gap_jitter": str(jitter)}
    config = _folder(tmp_path, 3, **own)
    places = store.index(config.data, "train", 3).places
    training, held = pretrain.split_clips(config)
    assert len(held) == round(0.2 * len(places)) and len(training)
    found = datasets.find(config.data, "train").frames
    for one in held:
        for other in training:
            a, b = found[places[one, -1]], found[places[other, -1]]
            if a.sequence == b.sequence:
                assert abs(a.number - b.number) >= 3 * (gap + jitter)
    # Stills are single frames: all others are trained on, and the split is another one for every seed.
    stills = _folder(tmp_path, 3, **own, **{"data.history": "stills"})
    training, held = pretrain.split_clips(stills)
    assert sorted([*training, *held]) == list(range(60))
    assert set(held) != set(pretrain.split_clips(config_lib.changed(stills, {"seed": "1"}))[1])


def test_computed_clips_are_drawn_as_they_always_were() -> None:
    config = config_lib.load(None, {"data.num_train_clips": "50", "seed": "3"})
    order = np.random.default_rng((3, 1)).permutation(50)
    for changed in (config, config_lib.changed(config, {"search.meta_val": "random"})):
        training, held = pretrain.split_clips(changed)
        np.testing.assert_array_equal(held, np.sort(order[:5]))
        np.testing.assert_array_equal(training, np.sort(order[5:]))


def test_an_older_run_keeps_its_split_and_its_stills(tmp_path) -> None:
    config = _folder(tmp_path / "data", 1)
    values = config_lib.to_json_dict(config)
    assert config_lib.differences(config_lib.from_json_dict(values, "x"), config) == []
    for key in config_lib.BEFORE:
        section, leaf = key.split(".")
        del values[section][leaf]
    (tmp_path / "config.json").write_text(json.dumps(values))
    for old in (config_lib.from_json_dict(values, "x"), config_lib.load(str(tmp_path / "config.json"))):
        assert (old.search.meta_val, old.data.still_motion, old.data.still_noise) == ("random", "shake", "history")
        order = np.random.default_rng((0, 1)).permutation(60)
        np.testing.assert_array_equal(pretrain.split_clips(old)[1], np.sort(order[:12]))


# --- key frames -------------------------------------------------------------------------------------------------


def test_labels_of_the_last_frame_alone_get_every_age() -> None:
    """Frames are numbered 0 to 3, the last is labelled: with 3 ages it becomes frame 0, 1, 2, 0, ... of a clip."""
    frames = np.broadcast_to(np.arange(4, dtype=np.uint8)[None, :, None, None, None], (5, 4, 2, 2, 3))
    labels = np.full((5, 4, 2, 2), types.IGNORE, np.uint8)
    labels[:, -1] = 7
    labels[4, 0] = 1  # labels on another frame, too: stays
    clip = types.Clip(frames=frames, labels=labels)
    found = features.spread_ages(clip, np.array([0, 1, 2, 3, 4]), 3)
    assert found.frames[:, :, 0, 0, 0].tolist() == [
        [3, 2, 1, 0], [2, 3, 2, 1], [1, 2, 3, 2], [3, 2, 1, 0], [0, 1, 2, 3],
    ]  # fmt: skip
    at = [(row.argmin(), row.min()) for row in found.labels[:4, :, 0, 0]]
    assert at == [(0, 7), (1, 7), (2, 7), (0, 7)] and (found.labels[:4] == 7).sum() == 4 * 4
    np.testing.assert_array_equal(found.labels[4], labels[4])
    assert features.spread_ages(clip, np.arange(5), 0) is clip


@pytest.mark.parametrize(
    "mode, num_frames, is_refused", [("propagate", 5, True), ("propagate", 6, False), ("refine", 1, False)]
)
def test_clips_have_to_reach_the_next_key_frame(mode: str, num_frames: int, is_refused: bool) -> None:
    words = {"space.mode": mode, "space.inputs": "prev_state,stage1", "data.num_frames": str(num_frames)}
    config = config_lib.load(None, words)  # which evaluates an older run, too
    if not is_refused:
        return features.require_ages(config)
    with pytest.raises(errors.UserError, match="schedule.interval = 5 frames later; set data.num_frames to 6 or more"):
        features.require_ages(config)
