"""What a report lacks, and the commands that make it: complete, as they are copied."""

from __future__ import annotations

import contextlib

import ml_collections

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.report import markup, run_files
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space import zoo
from dvsnas_jax.studies import compare

_NO_CONFIG = "the folder holds no config.json, which every command reads"


def evaluate(run: run_files.Run, *, is_timed: bool = False) -> str:
    """The command that makes the scores that the report shows; with times where the run takes none."""
    section, words = run.config.get("evaluate", {}), []
    if section.get("split", "val") != "val":
        words.append("--config.evaluate.split=val")
    if is_timed and not section.get("latency_frames", 1):
        words.append("--config.evaluate.latency_frames=30")
    return run.command("evaluate", *words)


def scores(run: run_files.Run) -> str:
    """The command that makes scores: of what is trained, else the one that started the run, which goes on with it."""
    started = str(run.environment.get("command") or "")
    if run.best or not started.startswith(("dvsnas search ", "dvsnas train ")):
        return evaluate(run) if run.best else run.command("search")
    return started


def comparison(run: run_files.Run) -> str:
    """The command that sets hand-designed cells, and the winner, side by side: those that the run's config feeds."""
    names = [zoo.ALL]
    with contextlib.suppress(errors.UserError):  # the config is of another version
        config = config_lib.from_json_dict(run.config, str(run.path / "config.json"))
        members = [member.title for member in zoo.of_mode(config.space.mode)]
        fitting = [title for title in members if _is_fed(config, title)]
        names = names if fitting == members else fitting
    winner = str(run.path / run_files.BEST)
    names += [winner] if run.best and "," not in winner else []
    return run.command("compare", f"--genotypes={','.join(names)}") if names else ""


def _is_fed(config: ml_collections.ConfigDict, title: str) -> bool:
    """Whether a config provides what a hand-designed cell reads."""
    try:
        return bool(compare.resolve(config, [title]))
    except errors.UserError:
        return False


def ablation(run: run_files.Run) -> str:
    """The command that takes the winner apart: with the shared weights of a search, else by training anew.

    "" where the run's space cannot express the winner, which `ablate` refuses.
    """
    try:
        genotypes.from_dict(run.best.get("found", run.best), run.space())
    except errors.UserError:
        return ""
    return run.command("ablate", f"--what={'replace' if run.searched else 'retrain'}")


def part(run: run_files.Run) -> str:
    """The list at the end of the page: what is not there, and which command makes it."""
    if not run.compare and run.config:
        run.lacks("A comparison with hand-designed cells", comparison(run))
    if not any(run.ablations.values()) and run.best:
        reason = "the run’s space does not have this cell’s inputs, layers or operations" if run.config else ""
        run.lacks("An ablation", ablation(run), reason)
    lines = []
    for name, command, reason in run.missing:
        words = f"<code>{markup.escape(command)}</code>" if command else markup.escape(reason or _NO_CONFIG)
        lines.append(f"<li>{markup.escape(name)}: {words}</li>")
    return f"<ul class=missing>{''.join(lines)}</ul>" if lines else ""
