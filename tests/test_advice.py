"""What a refusal advises exists, and following it works.

Every row is a refusal, the words of its advice, and what they say done. The table has to hold every option, key and
command that a message of the package advises; the form of all messages is read from the source.
"""

import pathlib
import re
from collections.abc import Callable

import command_line
import messages
import pytest
from advice_own import FOLDERS, OWN_DATA, RUNS, SEGMENTS
from advice_parts import DATA, STRATEGIES, WEIGHTS
from advice_words import CONFIGS, GENOTYPES, WORDS

from dvsnas_jax.bench import controller_speed, search_speed
from dvsnas_jax.bench import data_speed as data_bench
from dvsnas_jax.core import errors
from dvsnas_jax.data.loading import tf_loader
from dvsnas_jax.deploy import load as load_lib
from dvsnas_jax.studies import table_maker

ROWS = [*GENOTYPES, *CONFIGS, *WORDS, *STRATEGIES, *WEIGHTS, *DATA, *FOLDERS, *OWN_DATA, *RUNS, *SEGMENTS]


@pytest.fixture(autouse=True)
def _no_work(monkeypatch):
    command_line.stop_at_work(monkeypatch)
    monkeypatch.chdir(messages.ROOT)
    for name in ("DVSNAS_CAMVID", "DVSNAS_CITYSCAPES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(controller_speed, "run", lambda: {"figure": 1.0})
    for module, name in (
        (search_speed, "run"),
        (table_maker, "_Trainings"),
        (data_bench, "_measure"),
        (tf_loader, "tensorflow"),
        (load_lib, "load"),
    ):
        monkeypatch.setattr(module, name, command_line.accept)


def refused(refuse: Callable[[pathlib.Path], object], tmp: pathlib.Path) -> str:
    """The line of a refusal."""
    try:
        words = refuse(tmp)
    except errors.UserError as error:
        return " ".join(str(error).split())
    answer = command_line.run(*words)
    assert answer.code == errors.EXIT_USER, answer
    return answer.line


def succeeded(follow: Callable[[pathlib.Path], object], tmp: pathlib.Path) -> None:
    """Whether what is done succeeds; commands are run, as far as the work they begin."""
    try:
        result = follow(tmp)
    except command_line.Accepted:
        return
    commands = [result] if _is_command(result) else result if isinstance(result, list) else []
    for words in filter(_is_command, commands):
        answer = command_line.run(*words)
        assert answer.code in (errors.EXIT_DONE, None), answer


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_advice_that_is_followed_works(row, tmp_path):
    line = refused(row.refuse, tmp_path)
    for word in row.words:
        assert word in line
    succeeded(row.follow, tmp_path)


VARIABLES = {
    "DVSNAS_CAMVID", "DVSNAS_CITYSCAPES", "DVSNAS_COORDINATOR", "DVSNAS_NUM_PROCESSES", "DVSNAS_PORT",
    "DVSNAS_PROCESS_ID", "DVSNAS_START_TIMEOUT", "DVSNAS_TPU_POD",
}  # fmt: skip
_OTHERS_FLAGS = {
    "dvsnas_jax/core/files/workdir.py": {"--porcelain", "--untracked-files"},  # of git
    "dvsnas_jax/report/markup.py": {"--font"},  # a variable of the style sheet
}


def _exists(message: messages.Message) -> list[str]:
    """What a text names that does not exist."""
    file_name = message.place.split(":")[0]
    known = messages.commands()
    options = messages.options() | _OTHERS_FLAGS.get(file_name, set())
    wrong = [key for key in messages.named_keys(message.text) if key not in messages.keys() | messages.sections()]
    wrong += [flag for flag in messages.named_flags(message.text) if flag not in options]
    for command in messages.named_commands(message.text):
        first = command.split()[0]
        has_actions = any(name.startswith(f"{first} ") for name in known)
        wrong += [f"dvsnas {command}"] if (command if has_actions else first) not in known else []
    wrong += [name for name in re.findall(r"DVSNAS_[A-Z_]+", message.text) if name not in VARIABLES]
    return wrong


def test_options_keys_commands_and_variables_that_a_text_names_exist():
    found = messages.texts()
    assert len(found) > 3000  # the source was read
    wrong = {message.place: names for message in found if (names := _exists(message))}
    assert wrong == {}


def test_packages_that_a_text_installs_are_extras_of_the_project():
    extras = (messages.ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    named = {name for message in messages.texts() for name in re.findall(r"dvsnas-jax\[(\w+)\]", message.text)}
    assert "cityscapes" in named
    assert [name for name in named if not re.search(rf"^{name} = ", extras, re.MULTILINE)] == []


_VERBS = (
    "add|allow|change|choose|copy|correct|delete|empty|end|export|free|get|give|import|install|keep|leave|lower|make|name|pip|raise|rename|"
    "repair|replace|restore|run|search|see|set|shorten|resize|save|start|take|train|use|wait|write|convert"
)
_SAYS_WHAT_TO_DO = re.compile(
    rf"(?:; |, |: |\. |{messages.ANY}|\bor |\bto )(?:{_VERBS})\b|\bmust\b|\bneeds?\b|\ballowed are\b|\bis needed\b|"
    rf"\bdid you mean\b|\bthere are\b|\btakes no|; {messages.ANY}$"
)
"""An instruction, what is allowed, or an end that another function of the package makes."""
_MADE_ELSEWHERE = {
    "dvsnas_jax/commands/common.py": "… (see … --help)",  # the parser's own words, which name the option
    "dvsnas_jax/core/overrides.py": "…, line ………: …",  # `_unknown`: the nearest key, or the sections
    "dvsnas_jax/core/files/workdir.py": "…",  # `locking` of another process, `Workdir._unwritable`
    "dvsnas_jax/data/prepared/file_bytes.py": "…",  # `decode.size_problem`
    "dvsnas_jax/data/loading/decode.py": "…",  # `size_problem`
    "dvsnas_jax/data/loading/extra.py": "data.extra …: …",  # of what is wrong with the entry
    "dvsnas_jax/data/datasets/labels.py": "…: …",  # `LabelCode._unknown`
    "dvsnas_jax/data/prepared/prepare.py": "…",  # `_too_small`
    "dvsnas_jax/studies/compare.py": "…: …",  # of the check that is passed on
    "dvsnas_jax/train/cell_training.py": "--genotype: …: …",  # of the settings that lack an input
    "dvsnas_jax/space/genotype.py": "…: ………: …",  # of the space that a file needs
}
"""Messages whose words come from a function: the rows above, and the tests of those functions, read them."""


def test_every_refusal_says_where_what_and_what_to_do():
    found = list(messages.refusals())
    assert len(found) > 250
    wrong = {}
    for message in found:
        if _MADE_ELSEWHERE.get(message.place.split(":")[0]) == message.text:
            continue
        _, colon, rest = message.text.partition(": ")
        if not colon or not _SAYS_WHAT_TO_DO.search(f": {rest}"):
            wrong[message.place] = message.text
    assert wrong == {}


_ELSEWHERE = {
    "--help": "test_cli.py: the help of every command",
    "dvsnas search": "test_pipeline.py: whole searches",
    "--record": "test_reproduce.py: the figures of record",
    "evaluate.size": "test_evaluate.py: scores at both sizes",
    "features.folds": "test_folds.py: searches with and without",
    "search.first": "test_first_candidates.py: what each strategy does with them",
    "train.frames": "test_cell_loss.py: which frames count",
    "train.teacher_weight": "test_coverage.py: what needs labels",
}
"""Advice that another test follows."""


def advised() -> set[str]:
    """Every option, key and command that the part of a message behind its semicolon names."""
    found = set()
    for message in messages.refusals():
        advice = message.text.partition("; ")[2]
        found |= {*messages.named_keys(advice), *messages.named_flags(advice)}
        found |= {f"dvsnas {name}" for name in messages.named_commands(advice)}
        found |= set(re.findall(r"DVSNAS_[A-Z_]+", advice))
    return found


def test_the_table_holds_every_advice():
    in_rows = " ".join(word for row in ROWS for word in row.words)
    assert {name for name in advised() if name not in in_rows and name not in _ELSEWHERE} == set()
