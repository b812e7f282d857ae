"""README.md and docs/: their code blocks, commands and links, and a place in which all that they say can be run."""

import contextlib
import functools
import pathlib
import re
import shutil
import sys
from typing import NamedTuple

import av
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = "README.md"
DOCS = tuple(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))
ALL = (README, *DOCS)
_SAVED = re.compile(r"# (\w+\.py)\n")
_TINY = """
import sys

sys.path.append({tests!r})
import trained

def get_config():
    config = trained.make_config("refine")
    config.search.update({{"steps": 2, "genotypes_per_step": 1, "shared_steps": 1, "warmup_steps": 1}})
    config.search.update({{"batch_size": 2, "reward_clips": 2, "num_random": 1, "meta_val_fraction": 0.5}})
    config.controller.buffer = 2
    config.derive.num_retrain = 1
    config.space.operations = ("none", "skip", "conv_1x1", "sep_conv_3x3")
    config.space.aggregations = ("sum", "gate", "max")
    config.train.update({{"steps": 2, "batch_size": 2, "warmup_steps": 1, "norm_batches": 1}})
    return config
"""
"""In place of a config of the same name: that of the tests' own run folders."""


class Block(NamedTuple):
    """A fenced block: number of its first line, language, text."""

    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A command of a page: where, its words, whether a reader types it (a console block) or reads it (a table)."""

    page: str
    line: int
    text: str
    is_typed: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@functools.cache
def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[Block]:
    """The fenced blocks of a language, in order."""
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
        if match[1] == language:
            found.append(Block(read(page)[: match.start(2)].count("\n") + 1, match[1], match[2]))
    return found


def prose(page: str) -> str:
    """The page with empty lines in place of its blocks."""
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), read(page), flags=re.M | re.S)


def spans(page: str) -> list[tuple[int, str]]:
    """Line and text of each inline code span."""
    text = prose(page)
    return [(text[: m.start()].count("\n") + 1, " ".join(m[1].split())) for m in re.finditer(r"`([^`]+)`", text)]


def typed(page: str) -> list[Command]:
    """The lines of the console blocks, without the prompt."""
    found = []
    for block in blocks(page, "console"):
        for number, line in enumerate(block.text.splitlines(), start=block.line):
            if line.startswith("$ "):
                found.append(Command(page, number, line.removeprefix("$ ").partition("  #")[0].strip(), True))
    return found


def commands(page: str) -> list[Command]:
    """All commands of `dvsnas`, typed and in tables."""
    read_only = [Command(page, line, text, False) for line, text in spans(page) if re.match(r"dvsnas [a-z]", text)]
    return [command for command in typed(page) if command.text.startswith("dvsnas ")] + read_only


def links(page: str) -> list[str]:
    """Targets of the links and pictures that lead into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", read(page))
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(page: str) -> set[str]:
    """The names that headings can be linked by."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def saved_files(page: str) -> dict[str, str]:
    """The Python blocks that the page tells to save: their first line is the file's name as a comment."""
    found = {}
    for block in blocks(page, "python"):
        name = _SAVED.match(block.text)
        if name:
            found[name[1]] = block.text
    return found


def make_place(folder: pathlib.Path) -> pathlib.Path:
    """A checkout as the pages take it for granted, whose short configs are shorter still; with a video.

    Args:
      folder: empty.
    """
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.py"):
        (folder / "configs" / path.name).symlink_to(path)
    for name in ("smoke", "synthetic"):
        (folder / "configs" / f"{name}.py").unlink()
        (folder / "configs" / f"{name}.py").write_text(_TINY.format(tests=str(ROOT / "tests")))
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "launch" / "setup.sh").write_text("install_into_venv() { :; }\n")  # it is installed already
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "runs").mkdir()
    with av.open(str(folder / "drive.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(6):
            image = np.full((48, 64, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return folder


def run_python(page: str, folder: pathlib.Path) -> dict:
    """Runs the Python blocks of a page as printed, in order, each by itself; saves those that are files.

    Args:
      page: one of `ALL`.
      folder: from `make_place`.

    Returns:
      The names of all.
    """
    found: dict = {}
    with contextlib.chdir(folder):
        for name, text in saved_files(page).items():
            (folder / name).write_text(text)
        for block in blocks(page, "python"):
            code = "\n" * (block.line - 1) + block.text  # so that a traceback tells the line of the page
            names: dict = {"__name__": "page"}
            exec(compile(code, page, "exec"), names)  # noqa: S102
            found |= names
    return found
