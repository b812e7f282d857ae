"""What real searches of several strategies amount to: numbers, table and picture."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from dvsnas_jax.evaluate import figures
from dvsnas_jax.studies import evidence_report, study_report

WHATS = ("search", "retrain", "alone")
"""Lines of the log: a search with its rewards, a derived cell retrained, a probe trained alone."""
Lines = Sequence[Mapping[str, Any]]


def summarize(lines: Lines, names: Sequence[str], *, num_seeds: int) -> dict[str, Any]:
    """The numbers of a comparison.

    Args:
      lines: of the log, see `WHATS`.
      names: of the strategies, in order.
      num_seeds: searches of each.

    Returns:
      `results`: strategy -> `last_quarter` (mean reward of the last quarter of the candidates), `best` (the highest
      reward), `retrained` (mean stand-alone reward of the derived cells of a search), `tau` (Kendall's tau-b of the
      search's rewards of the probes and stand-alone ones), `seconds_per_candidate`: each `{mean, error, count}` over
      searches, error the standard error; and `curves`, `probes` for the picture. `differences`: strategy ->
      `last_quarter` and `retrained` less those of `random`.
    """
    search, retrain, alone = ([line for line in lines if line["what"] == what] for what in WHATS)
    quality = [line["reward"] for line in sorted(alone, key=lambda line: line["index"])]
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        own = [line for line in search if line["strategy"] == name and line["seed"] < num_seeds]
        own = list({line["seed"]: line for line in own}.values())
        cells = [line for line in retrain if line["strategy"] == name and line["seed"] < num_seeds]
        by_seed = [[line["reward"] for line in cells if line["seed"] == seed] for seed in range(num_seeds)]
        rewards = [_numbers(line["rewards"]) for line in own]
        speeds = [line["seconds"] / len(line["rewards"]) for line in own if line["seconds"]]
        results[name] = {
            "last_quarter": mean_and_error([_mean(values[-max(1, len(values) // 4) :]) for values in rewards]),
            "best": mean_and_error([float(np.nanmax(values)) for values in rewards]),
            "retrained": mean_and_error([_mean(_numbers(values)) for values in by_seed if values]),
            "tau": mean_and_error([kendall(line["probes"], quality) for line in own]),
            "seconds_per_candidate": mean_and_error(speeds),
            "curves": [values.tolist() for values in rewards],
            "probes": [line["probes"] for line in own],
        }
    differences = {
        name: {key: _difference(results[name][key], results["random"][key]) for key in ("last_quarter", "retrained")}
        for name in names
        if name != "random" and "random" in results
    }
    return {"num_seeds": num_seeds, "num_probes": len(quality), "alone": quality, "results": results,
            "differences": differences}  # fmt: skip


def kendall(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Kendall's tau-b of the pairs in which both have a value; nan where there are fewer than two."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if a is not None and b is not None]
    return float(stats.kendalltau(*zip(*pairs, strict=True)).statistic) if len(pairs) > 1 else math.nan


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of the finite values; nan where there are none, or one."""
    data = np.asarray([value for value in values if math.isfinite(value)], np.float64)
    error = float(data.std(ddof=1) / math.sqrt(len(data))) if len(data) > 1 else math.nan
    return {"mean": float(data.mean()) if len(data) else math.nan, "error": error, "count": len(data)}


def write(content: dict[str, Any], output: pathlib.Path) -> study_report.Report:
    """Writes the comparison; `content` is from `summarize`."""
    results = content["results"]
    lines = [
        f"{content['num_seeds']} searches of each strategy on equal budgets; mean and standard error over searches. "
        "Rewards x 100.",
        "",
        "| strategy | reward, last quarter | best candidate | derived cells, retrained | Kendall's tau "
        "| s a candidate |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = [_shown(result[key], 100) for key in ("last_quarter", "best", "retrained")]
        cells += [_shown(result["tau"], 1), _shown(result["seconds_per_candidate"], 1)]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    lines.append("")
    for name, parts in content["differences"].items():
        lines.append(
            f"{name} less random: last quarter {_shown(parts['last_quarter'], 100)}, "
            f"retrained {_shown(parts['retrained'], 100)}."
        )
    if content["num_probes"]:
        lines.append(f"Kendall's tau: {content['num_probes']} random genotypes, in the search and trained alone.")
    return evidence_report.write(content, lines, output, lambda path: _draw(content, path))


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Of two independent means; the errors add as squares."""
    error = math.hypot(first["error"], second["error"])
    return {"mean": first["mean"] - second["mean"], "error": error, "count": min(first["count"], second["count"])}


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.asarray([math.nan if value is None else value for value in values], np.float64)


def _mean(values: np.ndarray) -> float:
    """Of the finite values."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _shown(value: Mapping[str, float], scale: float) -> str:
    if not math.isfinite(value["mean"]):
        return "-"
    error = f" ± {scale * value['error']:.2f}" if math.isfinite(value["error"]) else ""
    return f"{scale * value['mean']:.2f}{error}"


def _draw(content: Mapping[str, Any], path: pathlib.Path) -> None:
    """Best reward so far, running mean of the rewards, and rewards of the search against stand-alone ones."""
    has_probes = content["num_probes"] > 1
    with figures.canvas(path, 14 if has_probes else 10, 4.4) as figure:
        axes = figure.subplots(1, 3 if has_probes else 2)
        for color, (name, result) in zip(evidence_report.COLORS, content["results"].items(), strict=False):
            if not result["curves"]:
                continue
            length = min(map(len, result["curves"]))
            rewards = np.stack([_numbers(curve[:length]) for curve in result["curves"]])
            _band(axes[0], np.fmax.accumulate(rewards, axis=1), color, name)
            _band(axes[1], np.stack([_running_mean(row, max(1, length // 10)) for row in rewards]), color, name)
            if has_probes:
                _scatter(axes[2], result["probes"][0], content["alone"], color, name)
        axes[0].set(xlabel="candidates", ylabel="reward", title="Best so far, 95 % band")
        axes[1].set(xlabel="candidates", title="Running mean, 95 % band")
        if has_probes:
            axes[2].set(xlabel="reward of the search", ylabel="stand-alone reward", title="Can the reward be trusted?")
        for one in axes:
            one.legend()


def _running_mean(rewards: np.ndarray, window: int) -> np.ndarray:
    """A diverged candidate counts as the mean of all."""
    values = np.where(np.isfinite(rewards), rewards, _mean(rewards))
    return figures.running_mean(np.arange(len(values)), values, window)[1]


def _band(axes: Any, values: np.ndarray, color: str, name: str) -> None:
    """Mean over searches with 1.96 standard errors."""
    steps, mean = 1 + np.arange(values.shape[1]), values.mean(axis=0)
    axes.plot(steps, mean, color=color, lw=2, label=f"{name} ({len(values)})")
    if len(values) > 1:
        margin = 1.96 * values.std(axis=0, ddof=1) / math.sqrt(len(values))
        axes.fill_between(steps, mean - margin, mean + margin, color=color, alpha=0.18, lw=0)


def _scatter(axes: Any, shared: Sequence[float | None], alone: Sequence[float | None], color: str, name: str) -> None:
    """A point for each probe."""
    label = f"{name}, tau {kendall(shared, alone):.2f}"
    axes.scatter(_numbers(shared), _numbers(alone), s=22, color=color, alpha=0.7, lw=0, label=label)
