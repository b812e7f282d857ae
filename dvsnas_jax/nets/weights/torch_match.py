"""What of a PyTorch file fits a network: names, shapes and numbers compared, layouts turned into ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

_COUNTER = ".num_batches_tracked"
STATISTICS = (_COUNTER, ".running_mean", ".running_var")
"""Ends of the names of tensors that are no parameters."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the tensors of a file; all names are the file's.

    Attributes:
      used: went into the network.
      unused: known, but of no use here: a classifier's head, counters of batches.
      missing: the network needs them, the file has none.
      left_over: in the file, unknown to the network.
      other_shape: name -> (shape in the file, shape needed), both in PyTorch's order.
      wrong_type: name -> type, where that is no floating-point number.
      bad_values: name -> what is wrong with its numbers.
    """

    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    wrong_type: dict[str, str]
    bad_values: dict[str, str]

    def problems(self) -> list[str]:
        """What --partial lets pass, one phrase a kind."""
        shapes = [f"{name} is {list(has)}, not {list(need)}" for name, (has, need) in self.other_shape.items()]
        kinds: dict[str, Sequence[str]] = {"missing": self.missing, "left over": self.left_over}
        kinds["of another shape"] = shapes
        return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]

    def faults(self) -> list[str]:
        """What nothing lets pass."""
        kinds = {"of a wrong type": self.wrong_type, "with bad values": self.bad_values}
        listed = {kind: [f"{name}: {what}" for name, what in found.items()] for kind, found in kinds.items()}
        return [f"{len(names)} {kind} ({_some(names)})" for kind, names in listed.items() if names]


def match(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    head: tuple[str, ...],
    wanted: Mapping[str, tuple[int, ...]],
) -> tuple[Report, dict[str, np.ndarray]]:
    """Compares a file with what a network needs.

    Args:
      tensors: of the file.
      names: path in the variables -> name in the file.
      head: beginnings of names in the file that are known to be of no use.
      wanted: path in the variables -> shape there.

    Returns:
      What became of the tensors, and those that fit: f32, in this package's layout, by path.
    """
    ours = {theirs: name for name, theirs in names.items()}
    found, other_shape, wrong_type, bad_values = {}, {}, {}, {}
    for name in (name for name in tensors if name in ours):
        path, value = ours[name], tensors[name]
        needed = torch_shape(wanted[path])
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            wrong_type[name] = value.dtype.name
        elif value.shape != needed:
            other_shape[name] = (value.shape, needed)
        elif problem := _bad_values(path, value):
            bad_values[name] = problem
        else:
            found[path] = _from_torch(value, wanted[path])
    rest = [name for name in tensors if name not in ours]
    is_known = {name: name.endswith(_COUNTER) or name.startswith(head) for name in rest}
    report = Report(
        used=tuple(names[path] for path in found),
        unused=tuple(name for name in rest if is_known[name]),
        missing=tuple(name for name in ours if name not in tensors),
        left_over=tuple(name for name in rest if not is_known[name]),
        other_shape=other_shape,
        wrong_type=wrong_type,
        bad_values=bad_values,
    )
    return report, found


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's order of a shape of ours."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return (shape[2], 1, shape[0], shape[1]) if len(shape) == 3 else shape  # three axes: depthwise


def _from_torch(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[Cout, Cin, kh, kw] -> [kh, kw, Cin, Cout], a depthwise [C, 1, kh, kw] -> [kh, kw, C]; f32 of that shape."""
    value = value.astype(np.float32)
    return value.transpose(2, 3, 1, 0).reshape(shape) if value.ndim == 4 else value


def is_finite(value: np.ndarray) -> bool:
    """Whether all numbers of a tensor are finite."""
    return bool(np.isfinite(value.astype(np.float64)).all())


def _bad_values(path: str, value: np.ndarray) -> str | None:
    """What is wrong with the numbers of a tensor, None where nothing is."""
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    if not is_finite(single):
        return "not all finite in float32"
    return "a negative variance" if path.endswith("/var") and (value < 0).any() else None


def _some(names: Sequence[str], count: int = 3) -> str:
    """The first names of many."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
