"""What strategies found, as JSON, as a table in Markdown and as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_text
from dvsnas_jax.evaluate import figures
from dvsnas_jax.studies import final_choice, study_report

COLORS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.SKY, figures.GREY, figures.INK)
NAME = "strategies"
Results = Mapping[str, Mapping[str, Any]]


def write_replays(content: dict[str, Any], output: pathlib.Path | None) -> study_report.Report:
    """Writes the comparison of strategies on a table.

    Args:
      content: `results` (strategy -> what `evidence.summarize` returns), `verdict`, and the settings `budget`,
        `num_runs`, `num_cells`, `training_seeds`, `is_cached`.
      output: a folder for the files; None: only the text is made.
    """
    results, verdict = content["results"], content["verdict"]
    repeats = "answered from the log, free" if content["is_cached"] else "cost an evaluation each"
    lines = [
        f"{content['num_runs']} runs of {content['budget']} evaluations, on {content['num_cells']} distinct cells; "
        f"repeated cells {repeats}; training seeds {', '.join(map(str, content['training_seeds']))}. "
        "Rewards and regrets x 100, 95 % intervals in brackets.",
        "",
        "| strategy | evaluates a top-1 % cell | reward, last quarter | new cells | s a run |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = [name, _percent(result["seen_top"]), _points(result["last_quarter"])]
        cells += [f"{100 * result['distinct']['value']:.0f} %", f"{result['seconds_per_run']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "The cell that a run ends with: of the highest reward; of the highest posterior mean; of that after the last "
        f"{100 * final_choice.REPEATED:g} % of the same budget were spent on repeats of the most promising cells.",
        "",
    ]
    lines += [
        "| strategy | choice by | regret, median | regret, mean | chooses a top-1 % cell | evaluates one "
        "| median regret by random's | by random's, chosen by reward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for choice, found in result["choices"].items():
            cells = [name, choice, _points(found["regret_median"]), _points(found["regret_mean"])]
            cells += [_percent(found["chosen_top"]), _percent(found["seen_top"])]
            for key in ("regret_by_random", "regret_by_plain_random"):
                ratio = verdict[key].get(name, {}).get(choice)
                cells.append("-" if ratio is None else f"{ratio:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Least median regret: {}, chosen by {}.".format(*verdict["best"])]
    return write(content, lines, output, lambda path: _draw_replays(results, path))


def write_worlds(content: dict[str, Any], output: pathlib.Path | None) -> study_report.Report:
    """Writes the comparison of strategies on made-up rewards.

    Args:
      content: `results` (strategy -> what `evidence.summarize_worlds` returns) and the settings `budget`, `num_runs`,
        `per_step`, `tau`, `is_cached`.
      output: a folder for the files; None: only the text is made.
    """
    repeats = "answered from the log, free" if content["is_cached"] else "cost an evaluation each"
    lines = [
        f"{content['num_runs']} made-up worlds, in each one run of {content['budget']} evaluations, "
        f"{content['per_step']} between updates; Kendall's tau of reward and quality {content['tau']:g}; "
        f"repeated cells {repeats}. Qualities in standard deviations of random cells, 95 % intervals in brackets.",
        "",
        "| strategy | quality, last quarter | five cells of the highest rewards | the best of them "
        "| new cells | s a run |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in content["results"].items():
        cells = [name, *(_points(result[key], 1) for key in ("last_quarter", "top", "best"))]
        cells += [f"{100 * result['distinct']['value']:.0f} %", f"{result['seconds_per_run']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return write(content, lines, output, lambda path: _draw_worlds(content["results"], path))


def write(
    content: dict[str, Any], lines: Sequence[str], output: pathlib.Path | None, draw_fn: Any
) -> study_report.Report:
    """The three files, if there is a folder for them.

    Raises:
      UserError: the folder cannot be made.
    """
    text = "\n".join(lines)
    if output is None:
        return study_report.Report(content, text, [])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"--output: cannot make the folder {output}: {error.strerror}; choose another --output"
        ) from None
    paths = [output / f"{NAME}{suffix}" for suffix in (".json", ".md", ".png")]
    paths[0].write_text(json_text.dumps(content, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(text + "\n", encoding="utf-8")
    draw_fn(paths[2])
    return study_report.Report(content, text, [str(path) for path in paths])


def _points(value: Mapping[str, float], scale: float = 100) -> str:
    """A reward, in hundredths, with its interval."""
    return f"{scale * value['value']:.2f} [{scale * value['low']:.2f}, {scale * value['high']:.2f}]"


def _percent(value: Mapping[str, float]) -> str:
    """A share with its interval."""
    return f"{100 * value['value']:.0f} % [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def _draw_replays(results: Results, path: pathlib.Path) -> None:
    """Regret after every evaluation: the mean with its 95 % band, and the median with the quartiles."""
    with figures.canvas(path, 11, 4.6) as figure:
        left, right = figure.subplots(1, 2)
        for color, (name, result) in zip(COLORS, results.items(), strict=False):
            curve = {key: 100 * np.asarray(values) for key, values in result["curve"].items()}
            steps = 1 + np.arange(len(curve["mean"]))
            margin = 1.96 * curve["error"]
            left.plot(steps, curve["mean"], color=color, lw=2, label=name)
            left.fill_between(steps, curve["mean"] - margin, curve["mean"] + margin, color=color, alpha=0.18, lw=0)
            right.plot(steps, curve["median"], color=color, lw=2, label=name)
            right.fill_between(steps, *curve["quartiles"], color=color, alpha=0.12, lw=0)
        left.set(xlabel="evaluations", ylabel="regret x 100", title="Mean over runs, 95 % band")
        right.set(xlabel="evaluations", title="Median over runs, quartiles")
        for axes in (left, right):
            axes.set_ylim(bottom=0)
            axes.legend()


def _draw_worlds(results: Results, path: pathlib.Path) -> None:
    """Quality of the cell of the highest reward after every evaluation, the mean with its 95 % band."""
    with figures.canvas(path, 6, 4.6) as figure:
        axes = figure.subplots()
        for color, (name, result) in zip(COLORS, results.items(), strict=False):
            mean, error = (np.asarray(result["curve"][key]) for key in ("mean", "error"))
            steps = 1 + np.arange(len(mean))
            axes.plot(steps, mean, color=color, lw=2, label=name)
            axes.fill_between(steps, mean - 1.96 * error, mean + 1.96 * error, color=color, alpha=0.18, lw=0)
        axes.set(
            xlabel="evaluations", ylabel="quality, deviations of random cells", title="Best reward so far, 95 % band"
        )
        axes.legend()
