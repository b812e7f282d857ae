"""Reads the pickles inside PyTorch files as data: a machine of its own that knows tensors and containers only.

Nothing named in a file is ever imported or called, so no file can make this program run code.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np

STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}  # fmt: skip
_FUNCTIONS = {
    "collections.OrderedDict", "torch.Size", "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}  # fmt: skip
_ALLOWED = _FUNCTIONS | {f"torch.{name}" for name in STORAGES}


class Refused(Exception):  # noqa: N818 - the reader of the file makes an error of it
    """The pickle is broken, or holds what is neither a tensor nor a container of tensors."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """So many numbers that lie elsewhere in the file, under a key."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers."""

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


@dataclasses.dataclass(frozen=True)
class _Name:
    """Something of another module that the file names: "module.name"."""

    path: str


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip


def load(source: bytes | IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle: its bytes, or a file that stands at its start and then at its end.

    Returns numbers, strings, lists, tuples, dicts and `Tensor`s; and all storages it refers to, by key.

    Raises:
      Refused: see there.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(source):
            if opcode.name == "STOP":
                return machine.stack[-1], machine.storages
            machine.step(opcode.name, argument)
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
            self.stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            path = ".".join(argument.split(" ", 1) if name == "GLOBAL" else self._pop(2))
            self.stack.append(_Name(path) if path in _ALLOWED else _refuse_name(path))
        elif name == "BINPERSID":
            self.stack.append(self._storage(*_expect(self.stack.pop(), tuple)))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            self.stack.append(_made(_expect(function, _Name).path, _expect(arguments, tuple)))
        elif name not in ("PROTO", "FRAME"):
            self._contain(name)

    def _contain(self, name: str) -> None:
        """Carries out one opcode that makes or fills a container."""
        match name:
            case "EMPTY_DICT" | "EMPTY_LIST":
                self.stack.append({} if name == "EMPTY_DICT" else [])
            case "POP":
                self.stack.pop()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE":
                self.stack.append(tuple(self._items()))
            case "LIST":
                self.stack.append(self._items())
            case "DICT":
                self.stack.append(_pairs(self._items()))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._items()
                _expect(self.stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._items()
                _expect(self.stack[-1], dict).update(_pairs(items))
            case "BUILD":  # attributes of an object, in these files the versions of a state dict's modules: dropped
                self.stack.pop()
                _expect(self.stack[-1], dict)
            case _:
                raise Refused(f"its pickle has the operation {name}, which no file of tensors needs")

    def _pop(self, count: int) -> list[Any]:
        """The last ones of the stack, in its order."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def _items(self) -> list[Any]:
        """Everything above the last mark."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _storage(self, kind: Any, storage: Any, key: Any, _: Any, size: Any, *rest: Any) -> Storage:
        dtype = STORAGES.get(_expect(storage, _Name).path.removeprefix("torch."))
        if kind != "storage" or dtype is None or any(item is not None for item in rest):
            raise Refused(f"its pickle refers to something that is no plain storage: {kind!r}")
        found = Storage(key=str(key), dtype=dtype, size=_count(size))
        if self.storages.setdefault(found.key, found) != found:
            raise Refused(f"its storage {found.key!r} has two types or sizes")
        return found


def _made(path: str, arguments: tuple[Any, ...]) -> Any:
    """What PyTorch would get by calling something, made of plain data."""
    match path.rpartition(".")[2]:
        case "OrderedDict":
            return dict(arguments[0]) if arguments else {}
        case "Size":
            return tuple(arguments[0])
        case "_rebuild_parameter":
            return _expect(arguments[0], Tensor)
        case "_rebuild_tensor" | "_rebuild_tensor_v2":
            storage, offset, shape, strides = arguments[:4]
            shape, strides = tuple(map(_count, shape)), tuple(map(_count, strides))
            if len(shape) != len(strides):
                raise Refused("a tensor's shape and strides differ in length")
            return Tensor(storage=_expect(storage, Storage), offset=_count(offset), shape=shape, strides=strides)
    _refuse_name(path)


def _refuse_name(path: str) -> NoReturn:
    raise Refused(f"it names {path}, which is no tensor (nothing was run)")


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
