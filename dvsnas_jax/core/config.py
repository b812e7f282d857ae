"""The configuration: defaults, a Python file on top of them, overrides on top of that, checks."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from dvsnas_jax.core import defaults as defaults_lib
from dvsnas_jax.core import errors, extra_data
from dvsnas_jax.core import overrides as overrides_lib

defaults = defaults_lib.make
PATHS = ("data.dir", "data.prepared", "net.weights", "pretrain.teacher", "train.teacher")
"""Keys that hold the path of a file or folder, where they are not empty."""
_EXTRA = "data.extra"
IMAGENET = "imagenet"
"""The value of `net.weights` that is no path: the encoder's weights from an installed package."""
NETWORK, AUGMENTED = "network", "augmented"
"""The values of `train.teacher` that are no paths."""
_NAMES = {("net.weights", IMAGENET), ("train.teacher", NETWORK), ("train.teacher", AUGMENTED)}
MAX_SEED = 2**32 - 1
"""JAX's random numbers take no more bits: a larger seed would be another one's twin."""

BEFORE: dict[str, Any] = {
    "data.still_motion": "shake",
    "data.still_noise": "history",
    "search.meta_val": "random",
    "space.end": "classifier",
    "schedule.effort": "full",
    "schedule.most_due": 1.0,
    "train.loss": "plain",
    "train.frames": "all",
    "train.eval_every": 0,
    "derive.simplify": "off",
}
"""Keys that are younger than some run folders, with the value that those were made with, where it is no default."""


def load(path: str | None, overrides: Mapping[str, str] | None = None) -> ml_collections.ConfigDict:
    """The defaults, changed by a file, changed by overrides, checked and locked.

    `path`: of a Python file with `get_config()`, or the name of one in `configs`; `overrides`: dotted key -> value as
    text, as in `--config.search.steps=200`. No or a broken file, an unknown key, a value of the wrong type or out of
    its range is a UserError.
    """
    config = defaults()
    if path is not None:
        overrides_lib.apply_file(config, path, BEFORE)
    return changed(config, overrides or {})


def changed(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> ml_collections.ConfigDict:
    """A copy of a configuration, changed by overrides and checked; a bad one is a UserError."""
    config = config.copy_and_resolve_references().unlock()
    overrides_lib.apply_texts(config, overrides)
    validate(config)
    return config.lock()


def from_json_dict(values: Mapping[str, Any], where: str) -> ml_collections.ConfigDict:
    """The configuration that `to_json_dict` made `values` of; keys that are new since then as in `BEFORE`, or defaults.

    A bad one is a UserError that names `where`.
    """
    config = defaults()
    overrides_lib.apply_values(config, overrides_lib.with_missing(values, BEFORE), where)
    validate(config)
    return config.lock()


def as_before(config: ml_collections.ConfigDict, stored: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration for going on with an older run: what it lacks keeps the meaning of then (`BEFORE`).

    `stored` is what its `config.json` holds. A key that was given another value than its default keeps that.
    """
    found, new = config.copy_and_resolve_references().unlock(), defaults()
    for key, value in BEFORE.items():
        section, name = key.split(".")
        if name not in stored.get(section, {}) and found[section][name] == new[section][name]:
            found[section][name] = value
    return found.lock()


def to_json_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON keeps it: plain dictionaries, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, ml_collections.ConfigDict | dict):
            return to_json_dict(value)
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(config[key]) for key in config}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted keys that only one of two configurations has or whose values differ, sorted.

    Each may be a ConfigDict or what `to_json_dict` makes of one. Two spellings of one path do not differ.
    """
    left, right = (dict(overrides_lib.leaves(to_json_dict(config))) for config in (a, b))
    missing = object()
    for side in (left, right):
        if side.get(_EXTRA):
            side[_EXTRA] = extra_data.resolved(side[_EXTRA])
    found = [key for key in {*left, *right} if left.get(key, missing) != right.get(key, missing)]
    return sorted(key for key in found if key not in PATHS or not _is_same_path(key, left.get(key), right.get(key)))


def _is_path(key: str, value: Any) -> bool:
    """Whether the value of one of `PATHS` is one: it is not empty, and no name of something else."""
    return bool(value) and (key, value) not in _NAMES


def _is_same_path(key: str, a: str | None, b: str | None) -> bool:
    """Whether two paths lead to the same place: relative, absolute or by links."""
    are_paths = _is_path(key, a) and _is_path(key, b)
    return a == b or (are_paths and os.path.realpath(str(a)) == os.path.realpath(str(b)))


def with_absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_json_dict` gave, to be read from any current folder. Links stay links: where they lead may change."""
    found = dict(values)
    for path in PATHS:
        section, key = path.split(".")
        if _is_path(path, found.get(section, {}).get(key)):
            found[section] = {**found[section], key: os.path.abspath(found[section][key])}
    if found.get("data", {}).get("extra"):
        found["data"] = {**found["data"], "extra": extra_data.absolute(found["data"]["extra"])}
    return found


_CHOICES = defaults_lib.choices()
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
    "train.eval_every",
    "train.joint_encoder_rate",
    "train.joint_static",
    "search.warmup_steps",
    "search.weight_decay",
    "search.num_random",
    "evaluate.latency_frames",
    "evaluate.follow_frames",
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
    """Checks the values; a UserError names the key, what is allowed and what was given.

    A number that no other rule names must be positive, or at least 0 where its default is 0.
    """
    base = dict(overrides_lib.leaves(defaults()))
    # Last what is looked up in tables, whose modules have to be imported.
    for key, value in sorted(overrides_lib.leaves(config), key=lambda leaf: leaf[0] in _CHOICES):
        problem = None
        if key not in _CHOICES:
            problem = _problem(key, value, may_be_zero=key in _MAY_BE_ZERO or base.get(key) == 0)
        elif value != base.get(key) and value not in (allowed := allowed_values(key)):
            problem = f"be one of {', '.join(map(str, allowed))}"
        _require(not problem, key, problem, repr(value))
    data, search, derive = config.data, config.search, config.derive
    extra_data.parse(data.extra)
    _require(data.scale[0] <= data.scale[1], "data.scale", "be (smallest, largest)", repr(data.scale))
    for whole, part in (("batch_size", "batch_parts"), ("scratch_steps", "scratch_parts")):
        rule = f"divide search.{whole} ({search[whole]})"
        _require(search[whole] % search[part] == 0, f"search.{part}", rule, search[part])
    rule = "be at most derive.num_rewarded + derive.num_probable"
    is_enough = derive.num_rewarded + derive.num_probable >= derive.num_retrain
    _require(is_enough, "derive.num_retrain", rule, derive.num_retrain)
    train = config.train
    _require(bool(train.teacher), "train.teacher", "be network, augmented or a run folder", repr(train.teacher))
    rule = "be above 0 where train.labels is false: nothing else says what is right"
    _require(train.labels or train.teacher_weight > 0, "train.teacher_weight", rule, train.teacher_weight)
    rule = "be 0 where features.folds is below 2: the features are those of the static network already"
    rule_of_joint = "be above 0 where train.joint is: what scores best is kept"
    _require(not train.joint or train.eval_every > 0, "train.eval_every", rule_of_joint, train.eval_every)
    is_fine = bool(train.joint) or not train.joint_control
    _require(is_fine, "train.joint", "be above 0 where train.joint_control is true", train.joint)
    _require(not train.final_steps or config.features.folds > 1, "train.final_steps", rule, train.final_steps)


def _require(is_fine: bool, key: str, rule: str | None, given: Any) -> None:
    if not is_fine:
        raise errors.UserError(f"config key {key!r}: must {rule}, got {given}")


def allowed_values(key: str) -> Iterable[Any]:
    """What a key may be, of those that take only some values, in the order of their table as it is now."""
    allowed = _CHOICES[key].allowed
    return pkgutil.resolve_name(allowed) if isinstance(allowed, str) else allowed


def _problem(key: str, value: Any, *, may_be_zero: bool) -> str | None:
    """What a value must, None where it is fine."""
    if key == "data.scale" and len(value) != 2:
        return "be two numbers (smallest, largest)"
    if isinstance(value, tuple):
        return None if all(isinstance(item, str) or item > 0 for item in value) else "be positive numbers"
    if isinstance(value, bool | str):
        return None
    if key == "data.crop_max_ratio":
        return None if 0.5 <= value <= 1 else "be from 0.5 to 1"
    if key == "data.still_objects":
        return None if 0 <= value <= 1 else "be from 0 to 1"
    if key in _OPEN_FRACTION:
        return None if 0 < value < 1 else "be between 0 and 1, both excluded"
    if key in _HALF_OPEN_FRACTION:
        return None if 0 <= value < 1 else "be at least 0 and below 1"
    if key == "seed" and value > MAX_SEED:
        return f"be at least 0 and at most {MAX_SEED}"
    if may_be_zero:
        return None if value >= 0 else "be at least 0"
    return None if value > 0 else "be above 0"
