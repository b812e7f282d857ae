"""The configuration: defaults, a Python file on top of them, overrides on top of that, checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from dvsnas_jax.core import defaults as defaults_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core import overrides as overrides_lib

defaults = defaults_lib.make
PATHS = ("data.dir", "data.prepared", "net.weights", "pretrain.teacher")
"""Keys that hold the path of a file or folder, where they are not empty."""
MAX_SEED = 2**32 - 1
"""JAX's random numbers take no more bits: a larger seed would be another one's twin."""


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
    return changed(config, overrides or {})


def changed(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> ml_collections.ConfigDict:
    """A configuration, changed by overrides, checked; the one given stays as it is.

    Raises:
      UserError: as in `load`.
    """
    config = config.copy_and_resolve_references().unlock()
    overrides_lib.apply_texts(config, overrides)
    validate(config)
    return config.lock()


def from_json_dict(values: Mapping[str, Any], where: str) -> ml_collections.ConfigDict:
    """The configuration that `to_json_dict` made `values` of; keys that are new since then keep their defaults.

    Raises:
      UserError: an unknown key or a bad value; `where` is named.
    """
    config = defaults()
    overrides_lib.apply_values(config, values, where)
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

    Each may be a ConfigDict or what `to_json_dict` makes of one. Two spellings of one path do not differ.
    """
    left, right = (dict(overrides_lib.leaves(to_json_dict(config))) for config in (a, b))
    missing = object()
    found = [key for key in {*left, *right} if left.get(key, missing) != right.get(key, missing)]
    return sorted(key for key in found if key not in PATHS or not is_same_path(left.get(key), right.get(key)))


def is_same_path(a: str | None, b: str | None) -> bool:
    """Whether two paths lead to the same place: relative, absolute or by links. Empty ones lead nowhere."""
    return a == b or bool(a and b and os.path.realpath(a) == os.path.realpath(b))


def with_absolute_paths(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What `to_json_dict` gave, to be read from any current folder. Links stay links: where they lead may change."""
    return {
        key: with_absolute_paths(value, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else os.path.abspath(value)
        if value and f"{prefix}{key}" in PATHS
        else value
        for key, value in values.items()
    }


_CHOICES = {
    "compile_effort": ("full", "quick"),
    "data.name": ("synthetic", "camvid", "cityscapes", "folder"),
    "data.folder.labels": ("ids", "colors"),
    "data.folder.split_by": ("videos", "blocks"),
    "data.loader": ("auto", "tf", "numpy"),
    "data.history": ("frames", "stills"),
    "net.encoder": ("mobilenet_v2", "resnet18", "resnet50", "resnet101"),
    "net.output_stride": (16, 32),
    "net.decoder": ("refinenet", "deeplab"),
    "net.dtype": ("float32", "bfloat16"),
    "space.mode": ("refine", "propagate"),
    "space.cut": ("stage1", "stage2", "stage3", "stage4"),
    "schedule.kind": ("fixed", "adaptive", "regions"),
    "pretrain.schedule": ("cosine", "polynomial"),
    "train.schedule": ("cosine", "polynomial"),
    "search.store": ("auto", "device", "host", "disk"),
    "search.mode": ("share", "scratch"),
    "search.reuse": ("auto", "always", "never"),
    "search.strategy": ("ppo", "reinforce", "evolution", "gumbel", "predictor", "random"),
    "derive.rank": ("reward", "posterior"),
    "evaluate.split": ("train", "val", "test"),
}
_MAY_BE_ZERO = (
    "data.degrade",
    "data.jitter",
    "pretrain.warmup_steps",
    "pretrain.encoder_rate",
    "pretrain.distillation",
    "pretrain.auxiliary_weight",
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
_OPEN_FRACTION = ("schedule.threshold", "search.meta_val_fraction", "controller.ppo_clip")
_HALF_OPEN_FRACTION = (
    "net.dropout",
    "pretrain.polyak",
    "train.polyak",
    "search.scratch_polyak",
    "controller.baseline_decay",
)


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
    if config.search.batch_size % config.search.batch_parts:
        raise errors.UserError(
            f"config key 'search.batch_parts': must divide search.batch_size ({config.search.batch_size}), "
            f"got {config.search.batch_parts}"
        )
    if config.search.scratch_steps % config.search.scratch_parts:
        raise errors.UserError(
            f"config key 'search.scratch_parts': must divide search.scratch_steps ({config.search.scratch_steps}), "
            f"got {config.search.scratch_parts}"
        )
    if config.derive.num_rewarded + config.derive.num_probable < config.derive.num_retrain:
        raise errors.UserError(
            "config key 'derive.num_retrain': must be at most derive.num_rewarded + derive.num_probable, "
            f"got {config.derive.num_retrain}"
        )


def _problem(key: str, value: Any, *, may_be_zero: bool) -> str | None:
    """What a value should have been, None where it is fine."""
    if key in _CHOICES:
        return None if value in _CHOICES[key] else f"one of {', '.join(map(str, _CHOICES[key]))}"
    if key == "data.scale" and len(value) != 2:
        return "two numbers (smallest, largest)"
    if isinstance(value, tuple):
        is_fine = all(isinstance(item, str) or item > 0 for item in value)
        return None if is_fine else "positive numbers"
    if isinstance(value, bool | str):
        return None
    if key == "data.crop_max_ratio":
        return None if 0.5 <= value <= 1 else "from 0.5 to 1"
    if key in _OPEN_FRACTION:
        return None if 0 < value < 1 else "between 0 and 1, both excluded"
    if key in _HALF_OPEN_FRACTION:
        return None if 0 <= value < 1 else "at least 0 and below 1"
    if key == "seed" and value > MAX_SEED:
        return f"at least 0 and at most {MAX_SEED}"
    if may_be_zero:
        return None if value >= 0 else "at least 0"
    return None if value > 0 else "above 0"
