"""Reads the pickles inside PyTorch files as data: a machine of its own that knows tensors and containers only.

Nothing named in a file is ever imported or called, so no file can make this program run code.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np

STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}  # fmt: skip
_ORDERED_DICT = ("collections", "OrderedDict")
_TENSORS = (("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"))
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_SIZE = ("torch", "Size")
_ALLOWED = {_ORDERED_DICT, *_TENSORS, _PARAMETER, _SIZE, *(("torch", name) for name in STORAGES)}


class Refused(Exception):  # noqa: N818 - the reader of the file makes an error of it
    """The pickle is broken, or holds what is neither a tensor nor a container of tensors."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file.

    Attributes:
      key: names them.
      dtype: of each.
      size: how many.
    """

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage.

    Attributes:
      storage: of its numbers.
      offset: of the first one.
      shape: of the tensor.
      strides: in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def materialise(self, numbers: np.ndarray) -> np.ndarray:
        """A copy of its numbers, taken out of the storage's.

        Raises:
          Refused: the view reaches outside of the storage.
        """
        if math.prod(self.shape) > len(numbers):
            raise Refused(f"a tensor of shape {list(self.shape)} is larger than its storage {self.storage.key!r}")
        try:
            if 0 in self.shape:
                return np.zeros(self.shape, numbers.dtype)
            last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
            if last >= len(numbers):
                raise Refused(f"a tensor of shape {list(self.shape)} reaches out of its storage {self.storage.key!r}")
            steps = tuple(step * numbers.itemsize for step in self.strides)
            return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps).copy()
        except (ValueError, OverflowError, MemoryError) as error:
            raise Refused(f"a tensor of shape {list(self.shape)} cannot be made ({error})") from None


_MARK = object()
_PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": lambda: _MARK,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(source: bytes | IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle.

    Args:
      source: its bytes, or a file that stands at its start and then at its end.

    Returns:
      Numbers, strings, lists, tuples, dicts and `Tensor`s; and all storages it refers to, by key.

    Raises:
      Refused: see there.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(source):
            if opcode.name == "STOP":
                return machine.stack[-1], machine.storages
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
        raise Refused(f"its pickle is broken or cut off ({error})") from None
    raise Refused("its pickle has no end")


class _Machine:
    """The stack and the memo of one pickle, and the storages it refers to."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carries out one opcode."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(items[::-1]))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name not in ("PROTO", "FRAME"):
            action = getattr(self, f"_do_{name.lower()}", None)
            if action is None:
                raise Refused(f"its pickle has the operation {name}, which no file of tensors needs")
            action(argument)

    def _items(self) -> list[Any]:
        """Everything above the last mark."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _do_pop(self, _: Any) -> None:
        self.stack.pop()

    def _do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._items()))

    def _do_list(self, _: Any) -> None:
        self.stack.append(self._items())

    def _do_dict(self, _: Any) -> None:
        self.stack.append(_pairs(self._items()))

    def _do_append(self, _: Any) -> None:
        item = self.stack.pop()
        _expect(self.stack[-1], list).append(item)

    def _do_appends(self, _: Any) -> None:
        items = self._items()
        _expect(self.stack[-1], list).extend(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _expect(self.stack[-1], dict)[key] = value

    def _do_setitems(self, _: Any) -> None:
        items = self._items()
        _expect(self.stack[-1], dict).update(_pairs(items))

    def _do_build(self, _: Any) -> None:
        """Attributes of an object, in these files the versions of a state dict's modules: dropped."""
        self.stack.pop()
        _expect(self.stack[-1], dict)

    def _do_global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if (module, name) not in _ALLOWED:
            _refuse_name(module, name)
        self.stack.append(_Name((module, name)))

    def _do_binpersid(self, _: Any) -> None:
        kind, storage, key, _, size, *rest = _expect(self.stack.pop(), tuple)
        dtype = STORAGES.get(_expect(storage, _Name).path[1])
        if kind != "storage" or dtype is None or any(item is not None for item in rest):
            raise Refused(f"its pickle refers to something that is no plain storage: {kind!r}")
        found = Storage(key=str(key), dtype=dtype, size=_count(size))
        if self.storages.setdefault(found.key, found) != found:
            raise Refused(f"its storage {found.key!r} has two types or sizes")
        self.stack.append(found)

    def _do_reduce(self, _: Any) -> None:
        arguments, function = _expect(self.stack.pop(), tuple), _expect(self.stack.pop(), _Name)
        self.stack.append(_made(function.path, arguments))


@dataclasses.dataclass(frozen=True)
class _Name:
    """Something of another module that the file names: its module and name."""

    path: tuple[str, str]


def _made(path: tuple[str, str], arguments: tuple[Any, ...]) -> Any:
    """What PyTorch would get by calling something, made of plain data."""
    if path == _ORDERED_DICT:
        return dict(arguments[0]) if arguments else {}
    if path == _SIZE:
        return tuple(arguments[0])
    if path == _PARAMETER:
        return _expect(arguments[0], Tensor)
    if path in _TENSORS:
        storage, offset, shape, strides = arguments[:4]
        shape, strides = tuple(map(_count, shape)), tuple(map(_count, strides))
        if len(shape) != len(strides):
            raise Refused("a tensor's shape and strides differ in length")
        return Tensor(storage=_expect(storage, Storage), offset=_count(offset), shape=shape, strides=strides)
    _refuse_name(*path)


def _refuse_name(module: str, name: str) -> NoReturn:
    raise Refused(f"it names {module}.{name}, which is no tensor (nothing was run)")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"its pickle has a {type(value).__name__} where a {kind.__name__.strip('_')} has to be")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Refused(f"its pickle has {value!r} where a count has to be")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))
