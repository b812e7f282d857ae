"""The entries of `data.extra`, further data for training: KIND:PATH:SHARE, for example cityscapes:/data/cs:0.3."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from dvsnas_jax.core import errors


class Entry(NamedTuple):
    """Further data.

    Attributes:
      kind: what lies there; it has no colon, a path may have some.
      path: of a folder or file, as it was given.
      share: of all training clips that are of this data, between 0 and 1.
    """

    kind: str
    path: str
    share: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}:{self.share!r}"


def parse(texts: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of `data.extra`.

    Raises:
      UserError: one is not KIND:PATH:SHARE, or the shares leave nothing to the run's own data.
    """
    entries = tuple(map(_parse, texts))
    if (total := sum(entry.share for entry in entries)) >= 1:
        raise errors.UserError(
            f"data.extra: the shares add up to {total:g}, which leaves nothing to the run's own data; lower them"
        )
    return entries


def _parse(text: str) -> Entry:
    kind, _, rest = text.partition(":")
    path, _, share = rest.rpartition(":")
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not kind or not path or not 0 < number < 1:
        raise errors.UserError(
            f"data.extra: {text!r} is not KIND:PATH:SHARE with a share between 0 and 1; write it as "
            "cityscapes:/data/cityscapes:0.3"
        )
    return Entry(kind, os.path.expanduser(path), number)


def absolute(texts: Sequence[str]) -> list[str]:
    """The entries with absolute paths; links stay links."""
    return [str(entry._replace(path=os.path.abspath(entry.path))) for entry in parse(texts)]


def resolved(texts: Sequence[str]) -> list[str]:
    """The entries with paths that are absolute and without links, to be compared."""
    return [str(entry._replace(path=os.path.realpath(entry.path))) for entry in parse(texts)]
