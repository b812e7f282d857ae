"""The configuration: defaults, a Python file on top of them, overrides on top of that, checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from dvsnas_jax.core import errors
from dvsnas_jax.core import overrides as overrides_lib


def defaults() -> ml_collections.ConfigDict:
    """Every key there is, with its default. A config file changes some of them.

    Sizes are in pixels, rates per step, `*_steps` in optimizer steps.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = _data()
    config.net = _net()
    config.pretrain = _pretrain()
    config.space = _space()
    config.controller = _controller()
    config.search = _search()
    config.derive = _derive()
    config.train = _train()
    config.evaluate = ml_collections.ConfigDict({"split": "val", "vc_frames": (8, 16), "latency_frames": 30})
    config.report = ml_collections.ConfigDict({"strip_frames": 5})
    return config


def _data() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "synthetic",  # synthetic | camvid
            "dir": "",  # dataset folder; camvid: empty = environment variable DVSNAS_CAMVID
            "loader": "auto",  # auto | tf | numpy; auto: numpy for arrays in memory (synthetic), else tf
            "height": 96,  # frames are resized to height x width (labels: nearest)
            "width": 128,
            "num_frames": 4,  # T
            "history": "frames",  # frames: earlier frames of the video; stills: small camera motions of one frame
            "frame_gap": 1,  # training clips: distance in frame numbers between consecutive frames of a clip
            "frame_gap_tolerance": 0,  # how far a real distance may be from frame_gap
            "eval_gap": 1,  # the same for evaluation sequences
            "seed": 0,  # of the synthetic world
            "num_train_clips": 384,  # synthetic: clips of the train split
            "num_val_clips": 12,  # synthetic: sequences of val and of test
            "val_frames": 24,  # synthetic: frames of one val/test sequence
            "degrade": 1.0,  # synthetic: strength of the per-frame degradations, 0 = none
            "flip": True,  # augmentation: horizontal flip, the same over a clip
            "scale": (0.8, 1.5),  # augmentation: random scale, the same over a clip
            "jitter": 0.2,  # augmentation: brightness/contrast/saturation, the same over a clip
            "crop_height": 96,  # augmentation: crop after scaling (padded with ignore where too small)
            "crop_width": 128,
        }
    )


def _net() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "width": 0.5,  # MobileNetV2 width multiplier
            "decoder_channels": 64,  # light-weight RefineNet; 256 as published
            "dtype": "float32",  # compute: float32 | bfloat16
        }
    )


def _pretrain() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "steps": 600,
            "batch_size": 12,
            "learning_rate": 3e-3,
            "schedule": "cosine",  # cosine | polynomial (power 0.9)
            "warmup_steps": 30,
            "weight_decay": 1e-4,
            "clip_norm": 3.0,
            "polyak": 0.98,  # decay of the averaged weights, 0 = off
            "eval_every": 150,  # steps between validations on held-out training clips; the best is kept
            "checkpoint_every": 150,
        }
    )


def _space() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "inputs": (
                "prev_state",
                "prev_decoder",
                "prev_logits",
                "decoder",
                "logits",
                "stage1",
                "stage2",
                "image_diff",
            ),
            "num_layers": 4,
            "operations": (),  # empty = all of the vocabulary
            "aggregations": (),  # empty = all of the vocabulary
            "channels": 24,
            "max_offset": 4.0,  # warp: largest displacement, in grid cells
        }
    )


def _controller() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "hidden": 100,
            "lstm_layers": 2,
            "init_scale": 0.1,  # weights uniform in +-init_scale
            "learning_rate": 1e-4,
            "clip_norm": 2.0,
            "ppo_clip": 0.1,
            "buffer": 100,  # rollouts per update
            "minibatch": 1,  # rollouts per gradient step of an update
            "epochs": 1,
            "entropy": 0.0,
            "baseline_decay": 0.95,
            "normalize_advantage": False,
            "masked_operations": (),  # names of operations that the policy must not choose
        }
    )


def _search() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "strategy": "ppo",  # ppo | random
            "steps": 50,  # iterations: sample, train shared weights, score, update the policy
            "genotypes_per_step": 4,  # N, scored per iteration
            "shared_steps": 8,  # optimizer steps on the shared weights per iteration
            "shared_genotypes": 1,  # genotypes whose gradients are averaged in one optimizer step
            "warmup_steps": 100,  # optimizer steps on uniformly drawn genotypes before the first iteration
            "batch_size": 8,
            "learning_rate": 3e-3,
            "weight_decay": 1e-5,
            "clip_norm": 3.0,
            "label_stride": 4,  # pixels between the labels of the training loss, per axis
            "cache_clips": 0,  # augmented clips whose features are kept; 0 = every clip once, as it is
            "meta_val_fraction": 0.1,
            "reward_clips": 32,  # meta-validation clips behind one reward
            "num_random": 40,  # uniformly drawn genotypes scored on the final shared weights: the random line
            "stability": 0.0,  # exponent of the stability factor (1 - flicker); 0 = off
            "checkpoint_every": 10,
        }
    )


def _derive() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "num_rewarded": 6,  # most rewarded genotypes re-scored on the whole meta-validation split
            "num_probable": 2,  # most probable of the final policy's samples, likewise
            "num_retrain": 1,  # best of those, retrained from scratch as static graphs
        }
    )


def _train() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "steps": 600,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup_steps": 20,
            "weight_decay": 1e-4,
            "clip_norm": 3.0,
            "polyak": 0.98,
            "label_stride": 2,  # pixels between the labels of the loss, per axis
            "norm_batches": 16,  # batches that estimate the running statistics of the final weights
            "checkpoint_every": 200,
        }
    )


def load(path: str | None, overrides: Mapping[str, str] | None = None) -> ml_collections.ConfigDict:
    """The defaults, changed by a file, changed by overrides, checked.

    Args:
      path: of a Python file with `get_config()`, or the name of one in `configs`; None: the defaults.
      overrides: dotted key -> value as text, as in `--config.search.steps=200`.

    Returns:
      A locked configuration.

    Raises:
      UserError: no or a broken file, an unknown key, a value of the wrong type or out of its range.
    """
    config = defaults()
    if path is not None:
        overrides_lib.apply_file(config, path)
    overrides_lib.apply_texts(config, overrides or {})
    validate(config)
    return config.lock()


def to_json_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON keeps it: plain dictionaries, tuples as lists."""
    is_section = (ml_collections.ConfigDict, dict)
    return {
        key: to_json_dict(config[key])
        if isinstance(config[key], is_section)
        else list(config[key])
        if isinstance(config[key], tuple)
        else config[key]
        for key in config
    }


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted keys that only one of two configurations has or whose values differ, sorted.

    Each may be a ConfigDict or what `to_json_dict` makes of one.
    """
    left, right = (dict(overrides_lib.leaves(to_json_dict(config))) for config in (a, b))
    missing = object()
    return sorted(key for key in {*left, *right} if left.get(key, missing) != right.get(key, missing))


_CHOICES = {
    "data.name": ("synthetic", "camvid"),
    "data.loader": ("auto", "tf", "numpy"),
    "data.history": ("frames", "stills"),
    "net.dtype": ("float32", "bfloat16"),
    "pretrain.schedule": ("cosine", "polynomial"),
    "train.schedule": ("cosine", "polynomial"),
    "search.strategy": ("ppo", "random"),
    "evaluate.split": ("train", "val", "test"),
}
_MAY_BE_ZERO = (
    "data.degrade",
    "data.jitter",
    "pretrain.warmup_steps",
    "pretrain.weight_decay",
    "train.warmup_steps",
    "train.weight_decay",
    "search.warmup_steps",
    "search.weight_decay",
    "search.num_random",
    "evaluate.latency_frames",
    "derive.num_rewarded",
    "derive.num_probable",
)  # beside the keys whose default is 0
_OPEN_FRACTION = ("search.meta_val_fraction", "controller.ppo_clip")
_HALF_OPEN_FRACTION = ("pretrain.polyak", "train.polyak", "controller.baseline_decay")


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks the ranges. A number that no other rule names must be positive, or at least 0 where its default is 0.

    Raises:
      UserError: naming the key, what is allowed and what was given.
    """
    base = dict(overrides_lib.leaves(defaults()))
    for key, value in overrides_lib.leaves(config):
        problem = _problem(key, value, may_be_zero=key in _MAY_BE_ZERO or base.get(key) == 0)
        if problem:
            raise errors.UserError(f"config key {key!r}: must be {problem}, got {value!r}")
    if config.data.scale[0] > config.data.scale[1]:
        raise errors.UserError(f"config key 'data.scale': must be (smallest, largest), got {config.data.scale!r}")
    if config.derive.num_rewarded + config.derive.num_probable < config.derive.num_retrain:
        raise errors.UserError(
            "config key 'derive.num_retrain': must be at most derive.num_rewarded + derive.num_probable, "
            f"got {config.derive.num_retrain}"
        )


def _problem(key: str, value: Any, *, may_be_zero: bool) -> str | None:
    """What a value should have been, None where it is fine."""
    if key in _CHOICES:
        return None if value in _CHOICES[key] else f"one of {', '.join(_CHOICES[key])}"
    if key == "data.scale" and len(value) != 2:
        return "two numbers (smallest, largest)"
    if isinstance(value, tuple):
        is_fine = all(isinstance(item, str) or item > 0 for item in value)
        return None if is_fine else "positive numbers"
    if isinstance(value, bool | str):
        return None
    if key in _OPEN_FRACTION:
        return None if 0 < value < 1 else "between 0 and 1, both excluded"
    if key in _HALF_OPEN_FRACTION:
        return None if 0 <= value < 1 else "at least 0 and below 1"
    if may_be_zero:
        return None if value >= 0 else "at least 0"
    return None if value > 0 else "above 0"
