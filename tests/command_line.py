"""Commands in this process: what they print and return; where training would begin they are stopped."""

import contextlib
import io
import pathlib
from typing import NamedTuple, NoReturn

import pytest

from dvsnas_jax import cli
from dvsnas_jax.core.files import workdir
from dvsnas_jax.search import ahead
from dvsnas_jax.space import zoo
from dvsnas_jax.train import pretrain

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"


class Accepted(Exception):  # noqa: N818 - it is what a test hopes for
    """All words were found right: the work would begin now."""


class Answer(NamedTuple):
    """Of a command.

    Attributes:
      code: exit code; None where all words were accepted and the work would have begun.
      line: the line of the refusal, empty where there is none.
      out: standard output.
      err: standard error.
    """

    code: int | None
    line: str
    out: str
    err: str


def accept(*_: object, **__: object) -> NoReturn:
    """In place of work that would begin."""
    raise Accepted


def stop_at_work(patch: pytest.MonkeyPatch) -> None:
    """Puts `Accepted` in place of what takes long: the training of the static network, which is always the first."""
    patch.setattr(ahead, "place", accept)
    patch.setattr(pretrain, "run", accept)


def run(*words: object) -> Answer:
    """Runs a command; a traceback is the test's failure."""
    out, err = io.StringIO(), io.StringIO()
    code: int | None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(word) for word in words])
        except Accepted:
            code = None
    lines = [line for line in err.getvalue().splitlines() if line.startswith("dvsnas: error: ")]
    assert len(lines) <= 1, lines
    return Answer(code, lines[0].removeprefix("dvsnas: error: ") if lines else "", out.getvalue(), err.getvalue())


def write_run(path: pathlib.Path, config, *, member: str = "grfp") -> pathlib.Path:
    """A run folder with a config and a winner, without weights."""
    folder = workdir.Workdir(path)
    folder.claim(config)
    folder.write_json("best_genotype.json", dict(zoo.get(member).genotype))
    return path
