"""Reading a prepared dataset: the same frames and the same bytes as the folder that it was made of.

An example holds consecutive frames up to a labelled one. The index lists every frame once; a frame is read from the
example that it is the target of, or else from any that holds it.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import json_files
from dvsnas_jax.data.datasets import frames, labels
from dvsnas_jax.data.prepared import builders, plans

_AGAIN = "delete it and run `dvsnas data prepare` again"


class PreparedMedia:
    """The frames of one split, as encoded bytes; the paths of `source` name the files they were, nothing lies there.

    `clips` i32 [N, 2] are the first and last place of each example.
    """

    def __init__(self, path: pathlib.Path, split: str, source: frames.Source, clips: np.ndarray, records: Any) -> None:
        self.source = source
        self._path, self._split, self._clips, self._records = path, split, clips, records
        home = np.full(len(source.frames), -1, np.int32)
        for number, (first, last) in enumerate(clips):
            held = home[first:last]
            held[held < 0] = number
            home[last] = number
        self._home = home

    def read(self, places: np.ndarray) -> tuple[list[bytes], list[bytes]]:
        """Encoded images and labels (b"" = none) of frames i32 [T] of the source, the target last; thread-safe.

        Raises:
          UserError: the records are damaged.
        """
        target = self._home[places[-1]]
        first, last = self._clips[target]
        wanted = [int(target if first <= place <= last else self._home[place]) for place in places]
        held = {number: self._example(number) for number in set(wanted)}
        slots = [(held[number], place - self._clips[number, 0]) for number, place in zip(wanted, places, strict=True)]
        return [example["images"][slot] for example, slot in slots], [
            example["labels"][slot] for example, slot in slots
        ]

    def _example(self, number: int) -> dict[str, Any]:
        first, last = self._clips[number]
        try:
            example = self._records[int(number)]
        except Exception as error:  # whatever the reader of the records makes of damaged bytes
            raise errors.UserError(
                f"{self._path}: example {number} of {self._split} cannot be read ({_reason(error)}); {_AGAIN}"
            ) from error
        expected = [frame.number for frame in self.source.frames[first : last + 1]]
        if list(example["numbers"]) != expected:
            raise errors.UserError(
                f"{self._path}: example {number} of {self._split} holds other frames than {plans.INDEX} says; " + _AGAIN
            )
        return example


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def locate(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of the records: the given one, or the only one two levels below it, as TFDS makes them.

    Raises:
      UserError: nothing is prepared there, or more than one dataset.
    """
    root = pathlib.Path(folder)
    if os.path.isfile(root / plans.INDEX):
        return root
    found = sorted(path.parent for path in root.glob(f"*/[0-9]*/{plans.INDEX}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path) for path in found)
        raise errors.UserError(f"data.prepared: {root} holds several prepared datasets; give one of them: {names}")
    raise errors.UserError(
        f"data.prepared: {root}: no prepared dataset there; run `dvsnas data prepare --output={root}` with this "
        "--config first, or leave data.prepared empty"
    )


def metadata(path: pathlib.Path) -> dict[str, Any]:
    """What `plans.metadata` wrote.

    Raises:
      UserError: not readable, or of another version of the program.
    """
    if path.name.split(".")[0] != plans.VERSION.split(".")[0]:
        raise errors.UserError(
            f"{path}: version {path.name} of the prepared form, this program reads {plans.VERSION}; {_AGAIN}"
        )
    return json_files.read(path / "metadata.json", advice=_AGAIN)


def of(data: ml_collections.ConfigDict, split: str) -> PreparedMedia | None:
    """What the configuration names in data.prepared, None where that is empty.

    Raises:
      UserError: as in `open_media`, or another dataset than data.name.
    """
    if not data.prepared:
        return None
    path = locate(data.prepared)
    dataset = metadata(path)["dataset"]
    if dataset != data.name:
        raise errors.UserError(
            f"data.prepared: {path} is made of '{dataset}', but data.name is '{data.name}'; "
            f"set data.name to '{dataset}', or leave data.prepared empty"
        )
    return open_media(str(data.prepared), split, tuple(data.ignore))


@functools.lru_cache(maxsize=16)
def open_media(folder: str, split: str, also_ignored: tuple[str, ...] = ()) -> PreparedMedia:
    """Opens one split of a prepared dataset; kept for the life of the process.

    The folder is what `dvsnas data prepare` was given as --output, or that of the records in it; `also_ignored` is the
    key data.ignore.

    Raises:
      UserError: nothing is prepared there, the split is not in it, or a file is missing or damaged.
    """
    path = locate(folder)
    about = metadata(path)
    index = json_files.read(path / plans.INDEX, advice=_AGAIN)
    if split not in index:
        raise errors.UserError(
            f"{path}: has no split {split}, but {', '.join(index)}; {_AGAIN} with --splits={','.join([*index, split])}"
        )
    tfds = builders.tensorflow_datasets()
    try:
        builder = tfds.builder_from_directory(path)
        records = builder.as_data_source(split=split)
        sizes = sum(os.path.getsize(name) for name in builder.info.splits[split].filepaths)
    except Exception as error:
        raise errors.UserError(f"{path}: split {split} cannot be opened ({_reason(error)}); {_AGAIN}") from error
    clips = np.array(index[split]["clips"], np.int32).reshape(-1, 2)
    if sizes != builder.info.splits[split].num_bytes or len(records) != len(clips):
        raise errors.UserError(f"{path}: files of {split} are cut short or changed; {_AGAIN}")
    train = dict(zip(about["label_raw"], about["label_train"], strict=True))
    code = labels.code_of(train, is_color=about["label_is_color"])
    source = frames.Source(
        layout=about["layouts"][split],
        frames=tuple(
            frames.Frame(sequence, number, path / split / image, path / split / label if label else None)
            for sequence, number, image, label in index[split]["frames"]
        ),
        table=types.ClassTable(
            names=tuple(about["class_names"]), colors=np.array(about["class_colors"], np.uint8).reshape(-1, 3)
        ),
        code=labels.with_ignored(code, also_ignored),
        frame_rate=float(about["frame_rate"]),
    )
    return PreparedMedia(path, split, source, clips, records)
