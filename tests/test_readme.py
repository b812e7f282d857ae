"""README.md and docs/: what they say can be typed. Snippets run as printed; flags, keys, files and links exist."""

import argparse
import json
import os
import re
import shlex
import subprocess

import numpy as np
import pages
import pytest
import trained
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, overrides

CONFIGS = {name: text for page in pages.ALL for name, text in pages.saved_files(page).items()}
COMMANDS = [command for page in pages.ALL for command in pages.commands(page)]
SECTIONS = [key for key, value in config_lib.defaults().items() if hasattr(value, "keys")]
PACKAGE_ROOMS = ("core", "data", "nets", "space", "controller", "run", "search", "commands")
# Runs that a table shows at full length, shortened by words at the end; the last word of a flag counts.
SHORTER = {"dvsnas compare ": "--seeds=1", "dvsnas compare-strategies ": "--seeds=2", "dvsnas reproduce ": "--plan"}
NOT_RUN = ("dvsnas weights import FILE",)  # there is no such file

each_page = pytest.mark.parametrize("page", pages.ALL)
each_docs_page = pytest.mark.parametrize("page", pages.DOCS)


# --- the pages ----------------------------------------------------------------------------------------------------


def test_the_readme_is_short_enough_to_be_read():
    assert len(pages.read(pages.README).splitlines()) <= 170


@each_page
def test_links_lead_somewhere(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        linked = (pages.ROOT / page).parent / path if path else pages.ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in pages.anchors(str(linked.resolve().relative_to(pages.ROOT))), target


@each_docs_page
def test_a_page_is_found_from_the_readme_and_starts_with_what_it_found(page):
    assert page in [target.partition("#")[0] for target in pages.links(pages.README)]
    title, first = pages.read(page).split("\n\n")[:2]
    assert title.startswith("# ")
    sentences = re.split(r"(?<=\.)\s+", re.sub(r"`[^`]*`", "x", first).strip())
    assert len(sentences) == 3 and all(sentence.endswith(".") for sentence in sentences)


# --- commands, flags, keys, files ---------------------------------------------------------------------------------


def subparser(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of the command that words begin with, and the words after its name.

    Raises:
      KeyError: there is no such command.
    """
    parser, rest = cli._parser(), list(words)
    while True:
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not actions or not rest:
            return parser, rest
        parser = actions[0].choices[rest.pop(0)]


def parse(text: str) -> tuple[argparse.Namespace, dict[str, str]]:
    words, changed = cli.split_overrides(shlex.split(text)[1:])
    return cli._parser().parse_args(words), changed


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_are_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.text)[1:]
    if "..." in words and not command.is_typed:  # a piece of a command: its flags exist
        words, changed = cli.split_overrides([word for word in words if word != "..."])
        flags = subparser(words)[0]._option_string_actions
        assert all(word.partition("=")[0] in flags for word in words if word.startswith("-"))
        config_lib.load(None, changed)
        return
    rest = subparser(words)[1]
    if not rest and not command.is_typed:  # the name of a command
        return
    arguments, changed = parse(command.text)
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    path = getattr(arguments, "config", None)
    if path and path.startswith("configs/"):
        path = str(pages.ROOT / path)
    assert not changed or hasattr(arguments, "config")
    config_lib.load(None if path == "FILE" else path, changed)


@each_page
def test_flags_and_keys_in_the_text_exist(page):
    def every(parser: argparse.ArgumentParser) -> set[str]:
        flags = set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags |= set().union(*map(every, action.choices.values()))
        return flags

    known = every(cli._parser())
    keys = {key for key, _ in overrides.leaves(config_lib.defaults())} | {"data.folder"}
    for line, text in pages.spans(page):
        if text.startswith("--"):
            words, changed = cli.split_overrides(shlex.split(text))
            assert all(word.partition("=")[0] in known for word in words if word.startswith("--")), f"{line}: {text}"
            config_lib.load(None, changed)
        elif match := re.fullmatch(r"((\w+)\.[\w.]+)(?:=(\S+))?", text):
            is_file = match[1].endswith((".html", ".json", ".jsonl", ".py", ".txt"))
            if match[2] in SECTIONS and match[1] not in keys and not is_file:
                assert is_in_the_package(match[1]), f"{page}:{line}: {text}"
            elif match[3] and match[1] in keys:
                config_lib.load(None, {match[1]: match[3]})


def is_in_the_package(dotted: str) -> bool:
    """`search.steps.train_shared` and the like: a module of the package, or a name that one holds."""
    path, names = pages.ROOT / "dvsnas_jax", dotted.split(".")
    while names and (path / names[0]).is_dir():
        path /= names.pop(0)
    path = path / f"{names.pop(0)}.py" if names else path / "__init__.py"
    return path.is_file() and all(re.search(rf"\b{name}\b", path.read_text()) for name in names)


@each_page
def test_files_in_the_text_exist(page):
    texts = [text for _, text in pages.spans(page)] + [command.text for command in pages.typed(page)]
    for word in " ".join(texts).split():
        word = word.partition("=")[2] or word
        if re.match(r"(configs|launch|tests|docs|dvsnas_jax)/", word):
            assert (pages.ROOT / word.rstrip(":,;")).exists(), word
        elif re.fullmatch(r"[\w/]+\.(py|json)", word) and word.partition("/")[0] in PACKAGE_ROOMS:
            assert (pages.ROOT / "dvsnas_jax" / word).exists(), word


def test_the_checks_see_what_is_wrong():
    assert not is_in_the_package("search.steps.train_nothing") and not is_in_the_package("search.nothing")
    with pytest.raises(KeyError):
        subparser(["data", "chekc"])
    with pytest.raises(errors.UserError, match="unrecognized arguments: --quick"):
        parse("dvsnas search --config=configs/smoke.py --workdir=RUN --quick")
    with pytest.raises(errors.UserError, match="search.stepss"):
        config_lib.load(None, parse("dvsnas search --config=x --workdir=RUN --config.search.stepss=3")[1])


# --- snippets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout of tiny configs. `runs/py`, where the README searches, holds a finished search already, so that its
    snippet evaluates and reports; the slow test below searches. It stands for the quickstart's folder, too, and for an
    exported one, which `load` takes as well."""
    folder = pages.make_place(tmp_path_factory.mktemp("place"))
    run = folder / "runs" / "py"
    trained.write(run, "refine", config_lib.load(str(folder / "configs" / "smoke.py"), {"search.steps": "8"}))
    trained.finish_search(run)
    for link in ("runs/quickstart", "exported"):
        (folder / link).symlink_to(run)
    return folder


def test_snippets_of_the_readme(place):
    names = pages.run_python(pages.README, place)
    assert 0 <= names["result"]["cell"]["miou"] <= 1 and (place / "runs/py/report.html").stat().st_size > 0
    assert names["labels"].shape == names["segmenter"].size == trained.SIZE and names["labels"].dtype == np.uint8
    assert names["run"].weights == "shared" and np.isfinite(names["found"]["loss"]).all()
    assert names["found"]["miou"].shape == (len(names["run"].space.operations),)


@each_docs_page
def test_snippets_of_a_page(page, place):
    names = pages.run_python(page, place)
    if page == "docs/data.md":
        mask = np.asarray(Image.open(place / "mine/masks/val/video0/0011.png"))
        assert len(list(place.glob("mine/images/train/*/*.png"))) == 36 and set(np.unique(mask)) == {0, 1, 2}
        assert not config_lib.differences(config_lib.load(str(place / "mine.py")), names["get_config"]())
    if page == "docs/deploy.md":
        assert len(names["labels"]) == 3 and names["labels"][0].shape == trained.SIZE


# --- everything, in the printed order -----------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_run_in_the_printed_order(tmp_path):
    """The example of docs/data.md, then the commands of the README and of docs/deploy.md, as they are printed."""
    folder = pages.make_place(tmp_path)
    pages.run_python("docs/data.md", folder)
    environ = {**os.environ, "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(pages.ROOT)}
    tables = [c for c in pages.commands(pages.README) if not c.is_typed and subparser(shlex.split(c.text)[1:])[1]]
    todo = [*pages.typed("docs/data.md"), *pages.typed(pages.README), *tables, *pages.typed("docs/deploy.md")]
    for command in todo:
        if command.text.startswith(NOT_RUN):
            continue
        more = next((words for start, words in SHORTER.items() if command.text.startswith(start)), "")
        done = subprocess.run(
            ["bash", "-c", f"{command.text} {more}"], cwd=folder, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {command.text}\n{done.stderr}"
    assert 0 <= pages.run_python(pages.README, folder)["result"]["cell"]["miou"] <= 1
    assert len((folder / "runs/py/genotypes.jsonl").read_text().splitlines()) == 8 + 1  # the random line
    for name in ("runs/quickstart/report.html", "overlay.mp4", "exported/manifest.json", "exported.mp4", "mine.mp4"):
        assert (folder / name).stat().st_size > 0, name
    assert len(list((folder / "found").glob("*.png"))) == 12  # a mask for each frame
    assert 0 <= json.loads((folder / "runs/mine/evaluation.json").read_text())["cell"]["miou"] <= 1
    assert pages.run_python("docs/deploy.md", folder)["segmenter"].size == trained.SIZE  # exported
