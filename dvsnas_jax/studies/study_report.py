"""What a study of searches found."""

from __future__ import annotations

from typing import Any, NamedTuple


class Report(NamedTuple):
    """What was found.

    Attributes:
      content: of the JSON file.
      text: the table.
      paths: the files written.
    """

    content: dict[str, Any]
    text: str
    paths: list[str]
