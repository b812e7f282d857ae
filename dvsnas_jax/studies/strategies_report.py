"""What strategies found, as JSON, as a table in Markdown and as a picture: on a table, in made-up worlds, for real."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core.files import output_files
from dvsnas_jax.evaluate import figures
from dvsnas_jax.studies import final_choice, strategies_statistics, study_report

COLORS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.SKY, figures.GREY, figures.INK)
NAME = "strategies"
Results = Mapping[str, Mapping[str, Any]]


def write_replays(content: dict[str, Any], output: pathlib.Path | None) -> study_report.Report:
    """Writes the comparison on a table: `results` of `summarize_table` by strategy, their `verdict`, and the settings.

    Without an `output` folder only the text is made.
    """
    results, verdict = content["results"], content["verdict"]
    rows = [
        [name, _percent(result["seen_top"]), _points(result["last_quarter"]), *_novelty_and_speed(result)]
        for name, result in results.items()
    ]
    ends = []
    for name, result in results.items():
        for choice, found in result["choices"].items():
            cells = [name, choice, _points(found["regret_median"]), _points(found["regret_mean"])]
            cells += [_percent(found["chosen_top"]), _percent(found["seen_top"])]
            ratios = (verdict[key].get(name, {}).get(choice) for key in ("regret_by_random", "regret_by_plain_random"))
            ends.append([*cells, *("-" if ratio is None else _points(ratio, 1) for ratio in ratios)])
    head = ["strategy", "evaluates a top-1 % cell", "reward, last quarter", "new cells", "s a run"]
    ends_head = ["strategy", "choice by", "regret, median", "regret, mean", "chooses a top-1 % cell", "evaluates one"]
    ends_head += ["median regret by random's", "by random's, chosen by reward"]
    lines = [
        f"{content['num_runs']} runs of {content['budget']} evaluations, on {content['num_cells']} distinct cells; "
        f"repeated cells {_repeats(content)}, but for random, which draws distinct ones; training seeds "
        f"{', '.join(map(str, content['training_seeds']))}. Rewards and regrets x 100, 95 % intervals in brackets.",
        "",
        *_disjoint(content["disjoint"]),
        "",
        *study_report.markdown(head, rows),
        "",
        "The cell that a run ends with: of the highest reward; of the highest posterior mean; of that after the last "
        f"{100 * final_choice.REPEATED:g} % of the same budget were spent on repeats of the most promising cells.",
        "",
        *study_report.markdown(ends_head, ends),
        "",
        "Least median regret: {}, chosen by {}.".format(*verdict["best"]),
    ]
    return _write(content, lines, output, lambda path: _draw_replays(results, content["num_runs"], path))


def write_worlds(content: dict[str, Any], output: pathlib.Path | None) -> study_report.Report:
    """Writes the comparison in made-up worlds: `results` of `summarize_worlds` by strategy, and the settings."""
    head = ["strategy", "quality, last quarter", "five cells of the highest rewards", "the best of them", "new cells"]
    rows = [
        [name, *(_points(result[key], 1) for key in ("last_quarter", "top", "best")), *_novelty_and_speed(result)]
        for name, result in content["results"].items()
    ]
    lines = [
        f"{content['num_runs']} made-up worlds, in each one run of {content['budget']} evaluations, "
        f"{content['per_step']} between updates; Kendall's tau of reward and quality {content['tau']:g}; "
        f"repeated cells {_repeats(content)}. Qualities in standard deviations of random cells, "
        "95 % intervals in brackets.",
        "",
        *study_report.markdown([*head, "s a run"], rows),
    ]
    return _write(content, lines, output, functools.partial(_draw_worlds, content["results"], content["num_runs"]))


def write_searches(content: dict[str, Any], output: pathlib.Path) -> study_report.Report:
    """Writes the comparison of real searches, what `summarize_searches` returns."""
    head = ["strategy", "reward, last quarter", "trained to the end", "best candidate", "derived cells, retrained"]
    head += ["the same, unseen clips", "Kendall's tau", "s a candidate", "optimizer steps"]
    rows = []
    for name, result in content["results"].items():
        cells = [_with_error(result[key], 100) for key in ("last_quarter", "finished", "best", "retrained", "unseen")]
        cells += [_with_error(result[key], 1) for key in ("tau", "seconds_per_candidate")]
        rows.append([name, *cells, "{mean:.0f}".format(**result["optimizer_steps"])])
    lines = [
        f"{content['num_seeds']} searches of each strategy on equal budgets; mean and standard error over searches. "
        "Rewards x 100.",
        "",
        *study_report.markdown(head, rows),
        "",
        "The last quarter counts every candidate after an equal part of its training (all of it where none is "
        "stopped); the next column those of them that were trained to the end. Nothing is chosen on the unseen clips.",
        "",
    ]
    for name, parts in content["differences"].items():
        shown = (f"{_NAMES[key]} {_with_error(value, 100)}{_interval(value)}" for key, value in parts.items())
        lines.append(f"{name} less random: {', '.join(shown)}.")
    if content["num_probes"]:
        lines.append(f"Kendall's tau: {content['num_probes']} random genotypes, in the search and trained alone.")
    return _write(content, lines, output, lambda path: _draw_searches(content, path))


def _write(
    content: dict[str, Any], lines: Sequence[str], output: pathlib.Path | None, draw_fn: Callable[[pathlib.Path], None]
) -> study_report.Report:
    """The three files, if there is a folder for them."""
    text = "\n".join(lines)
    if output is None:
        return study_report.Report(content, text, [])
    output_files.make_folder(output)
    return study_report.write(output, NAME, content, text, draw_fn)


def _disjoint(found: Mapping[str, int]) -> list[str]:
    """Which trainings rewards and regrets come from, and where that is not as it should be."""
    least = strategies_statistics.MIN_TRAININGS
    lines = ["Rewards are drawn from the first half of a cell's trainings; what it is worth is the mean of the others."]
    if found["num_same"]:
        lines.append(f"Not so of {found['num_same']} cells: they have one training, which is both.")
    if found["num_few"]:
        lines.append(
            f"Of {found['num_few']} of the {found['num_better']} cells of the better half a half has fewer than "
            f"{least} trainings; the best cell is one of the {found['num_known']} whose worth is of {least} or more."
        )
    return [" ".join(lines)]


def _repeats(content: Mapping[str, Any]) -> str:
    return "answered from the log, free" if content["is_cached"] else "cost an evaluation each"


def _novelty_and_speed(result: Mapping[str, Any]) -> list[str]:
    return [f"{100 * result['distinct']['value']:.0f} %", f"{result['seconds_per_run']:.2f}"]


def _points(value: Mapping[str, float], scale: float = 100) -> str:
    """A reward, in hundredths, with its interval."""
    return f"{scale * value['value']:.2f} [{scale * value['low']:.2f}, {scale * value['high']:.2f}]"


def _percent(value: Mapping[str, float]) -> str:
    """A share with its interval."""
    return f"{100 * value['value']:.0f} % [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


_NAMES = {
    "last_quarter": "last quarter",
    "finished": "trained to the end",
    "retrained": "retrained",
    "unseen": "unseen",
}


def _interval(value: Mapping[str, float]) -> str:
    """The 95 % interval of a mean of a few values, in hundredths."""
    width = value["half_width"]
    if not math.isfinite(width):
        return ""
    return f" [{100 * (value['mean'] - width):.2f}, {100 * (value['mean'] + width):.2f}]"


def _with_error(value: Mapping[str, float], scale: float) -> str:
    """A mean with its standard error, where there are any."""
    if not math.isfinite(value["mean"]):
        return "-"
    error = f" ± {scale * value['error']:.2f}" if math.isfinite(value["error"]) else ""
    return f"{scale * value['mean']:.2f}{error}"


def _plot(axes: Any, values: np.ndarray, color: str, name: str) -> np.ndarray:
    """A line over the evaluations; their numbers."""
    steps = 1 + np.arange(len(values))
    axes.plot(steps, values, color=color, lw=2, label=name)
    return steps


def _band(axes: Any, mean: np.ndarray, error: np.ndarray, color: str, named: tuple[str, int]) -> None:
    """A mean with its 95 % interval by Student's t on both sides, and its name; the mean is of so many runs."""
    name, num_runs = named
    steps = _plot(axes, mean, color, name)
    if num_runs > 1:
        width = strategies_statistics.half_width(error, num_runs - 1)
        axes.fill_between(steps, mean - width, mean + width, color=color, alpha=0.18, lw=0)


def _draw_replays(results: Results, num_runs: int, path: pathlib.Path) -> None:
    """Regret after every evaluation: the mean with its 95 % band, and the median with the quartiles."""
    with figures.canvas(path, 11, 4.6) as figure:
        left, right = figure.subplots(1, 2)
        for color, (name, result) in zip(COLORS, results.items(), strict=False):
            curve = {key: 100 * np.asarray(values) for key, values in result["curve"].items()}
            _band(left, curve["mean"], curve["error"], color, (name, num_runs))
            steps = _plot(right, curve["median"], color, name)
            right.fill_between(steps, *curve["quartiles"], color=color, alpha=0.12, lw=0)
        left.set(xlabel="evaluations", ylabel="regret x 100", title="Mean over runs, 95 % band")
        right.set(xlabel="evaluations", title="Median over runs, quartiles")
        for axes in (left, right):
            axes.set_ylim(bottom=0)
            axes.legend()


def _draw_worlds(results: Results, num_runs: int, path: pathlib.Path) -> None:
    """Quality of the cell of the highest reward after every evaluation, the mean with its 95 % band."""
    with figures.canvas(path, 6, 4.6) as figure:
        axes = figure.subplots()
        for color, (name, result) in zip(COLORS, results.items(), strict=False):
            mean, error = (np.asarray(result["curve"][key]) for key in ("mean", "error"))
            _band(axes, mean, error, color, (name, num_runs))
        title = "Best reward so far, 95 % band"
        axes.set(xlabel="evaluations", ylabel="quality, deviations of random cells", title=title)
        axes.legend()


def _draw_searches(content: Mapping[str, Any], path: pathlib.Path) -> None:
    """Best reward so far, running mean of the rewards, and rewards of the search against stand-alone ones."""
    has_probes = content["num_probes"] > 1
    with figures.canvas(path, 14 if has_probes else 10, 4.4) as figure:
        axes = figure.subplots(1, 3 if has_probes else 2)
        for color, (name, result) in zip(COLORS, content["results"].items(), strict=False):
            if not result["curves"]:
                continue
            length = min(map(len, result["curves"]))
            rewards = np.stack([strategies_statistics.numbers(curve[:length]) for curve in result["curves"]])
            means = np.stack([_running_mean(row, max(1, length // 10)) for row in rewards])
            for one, values in ((axes[0], np.fmax.accumulate(rewards, axis=1)), (axes[1], means)):
                num = len(values)
                error = values.std(axis=0, ddof=min(num - 1, 1)) / math.sqrt(num)
                _band(one, values.mean(axis=0), error, color, (f"{name} ({num})", num))
            if has_probes:
                pair = result["probes"][0], content["alone"]
                label = f"{name}, tau {strategies_statistics.kendall(*pair):.2f}"
                points = map(strategies_statistics.numbers, pair)
                axes[2].scatter(*points, s=22, color=color, alpha=0.7, lw=0, label=label)
        axes[0].set(xlabel="candidates", ylabel="reward", title="Best so far, 95 % band")
        axes[1].set(xlabel="candidates", title="Running mean, 95 % band")
        if has_probes:
            axes[2].set(xlabel="reward of the search", ylabel="stand-alone reward", title="Can the reward be trusted?")
        for one in axes:
            one.legend()


def _running_mean(rewards: np.ndarray, window: int) -> np.ndarray:
    """A diverged candidate counts as the mean of all."""
    values = np.where(np.isfinite(rewards), rewards, strategies_statistics.finite_mean(rewards))
    return figures.running_mean(np.arange(len(values)), values, window)[1]
