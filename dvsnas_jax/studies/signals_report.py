"""What signals are worth, as JSON, as a table in Markdown and as a picture: Kendall's tau and seconds a candidate."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core.files import output_files
from dvsnas_jax.evaluate import figures
from dvsnas_jax.studies import strategies_statistics, study_report

NAME = "signals"
WHOLE = "trained to the end, once"
_KEPT = 0.5  # of the cells, at each rung of the halving


def summarize(
    found: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]],
    trained: Mapping[str, np.ndarray],
    alone_rungs: Sequence[int],
) -> dict[str, Any]:
    """What `signals.run` writes.

    Args:
      found: by kind of weights and by signal, `reward` and `seconds` of N cells.
      trained: `rewards`, `worth` and `seconds` f64 [N, trainings] of the cells trained to the end.
      alone_rungs: steps after which cells that are trained alone are scored.

    Returns:
      `signals`: by name, `tau` (value, low, high: 95 %, by bootstrap over cells) of the rewards with the mean worth,
      and `seconds` a candidate; `WHOLE`: the first training's reward with the mean worth of the other trainings, which
      is as near as a reward can come, and the median of its seconds. `num_genotypes`, and the mean `worth` of each
      cell. `noise`: the standard deviation of worth between the `cells`, and between the `trainings` of one; `tau` of
      one training's worth with the mean of the others', on the same clips.
    """
    worth = _means(trained["worth"])
    flat = {name: signal for signals in found.values() for name, signal in signals.items()}
    flat |= _halving([flat[f"alone {steps}"] for steps in alone_rungs])
    content = {
        name: {"tau": _tau(signal["reward"], worth), "seconds": float(np.mean(signal["seconds"]))}
        for name, signal in flat.items()
    }
    rewards, others = trained["rewards"][:, 0].tolist(), _means(trained["worth"][:, 1:])
    content[WHOLE] = {"tau": _tau(rewards, others), "seconds": float(np.median(trained["seconds"][:, 0]))}
    is_whole = np.isfinite(trained["worth"]).all(axis=1)
    noise = {
        "cells": float(np.nanstd(worth, ddof=1)),
        "trainings": float(np.sqrt(trained["worth"][is_whole].var(axis=1, ddof=1).mean())) if is_whole.any() else None,
        "tau": _tau(trained["worth"][:, 0].tolist(), others),
    }
    return {"signals": content, "num_genotypes": len(worth), "worth": worth.tolist(), "noise": noise}


def _means(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values of each row, nan where there are none."""
    return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else math.nan for row in values])


def _halving(rungs: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Any]]:
    """Successive halving over the rungs: the better half goes on, and whoever goes on is better than who does not.

    `reward` is a rank; `seconds` of a cell are those of its last rung (the scores before it are small beside).
    """
    rewards = [np.array([-np.inf if reward is None else reward for reward in rung["reward"]]) for rung in rungs]
    seconds = np.asarray(rungs[0]["seconds"], np.float64)
    key = [(0, reward) for reward in rewards[0]]
    going = np.arange(len(seconds))
    for number in range(1, len(rungs)):
        order = sorted(going.tolist(), key=lambda row: key[row], reverse=True)
        going = np.array(order[: max(1, round(_KEPT * len(order)))])
        for row in going.tolist():
            key[row] = (number, rewards[number][row])
            seconds[row] = rungs[number]["seconds"][row]
    places = {row: float(place) for place, row in enumerate(sorted(range(len(key)), key=lambda row: key[row]))}
    return {"halving": {"reward": [places[row] for row in range(len(key))], "seconds": seconds.tolist()}}


def _tau(rewards: Sequence[Any], worth: np.ndarray) -> dict[str, float]:
    """Kendall's tau with its 95 % interval by bootstrap over cells; cells without a reward or worth are left out."""
    numbers = strategies_statistics.numbers(rewards)
    pairs = np.stack([numbers, worth], axis=1)[np.isfinite(numbers) & np.isfinite(worth)]
    rng = np.random.default_rng(0)
    drawn = [
        strategies_statistics.kendall(*pairs[rng.integers(0, len(pairs), len(pairs))].T)
        for _ in range(strategies_statistics.NUM_BOOTSTRAPS)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"value": strategies_statistics.kendall(*pairs.T), "low": float(low), "high": float(high)}


def write(content: dict[str, Any], output: pathlib.Path) -> study_report.Report:
    """Writes `signals.json`, `signals.md` and `signals.png`."""
    rows = [
        [name, "{value:.2f} [{low:.2f}, {high:.2f}]".format(**signal["tau"]), f"{signal['seconds']:.2f}"]
        for name, signal in content["signals"].items()
    ]
    lines = [
        f"{content['num_genotypes']} uniformly drawn cells of distinct forms; what a cell is worth is its mean reward "
        f"over {content['num_trainings']} trainings on {content['split']}, clips that nothing is chosen on. In "
        "brackets 95 % intervals by bootstrap over cells. A number behind a name: steps of each cell alone.",
        "",
        *study_report.markdown(["signal", "Kendall's tau", "s a candidate"], rows),
        "",
        f"{WHOLE}: held against the other trainings of the same cells. No reward can come nearer.",
        _noise(content["noise"]),
    ]
    output_files.make_folder(output)
    return study_report.write(output, NAME, content, "\n".join(lines), lambda path: _draw(content, path))


def _noise(noise: Mapping[str, Any]) -> str:
    """How well worth itself is known."""
    trainings = "" if noise["trainings"] is None else f", trainings of one cell by {noise['trainings']:.4f}"
    interval = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**noise["tau"])
    return (
        f"Cells differ by {noise['cells']:.4f} (standard deviation of their worth){trainings}. On the same clips one "
        f"training orders the cells as the others do with a tau of {interval}."
    )


def _draw(content: Mapping[str, Any], path: pathlib.Path) -> None:
    """Tau over seconds a candidate, a point a signal with its interval."""
    with figures.canvas(path, 8, 4.8) as figure:
        axes = figure.subplots()
        shown = sorted(content["signals"].items(), key=lambda item: item[1]["seconds"])
        for place, (name, signal) in enumerate(shown):
            tau, seconds = signal["tau"], signal["seconds"]
            is_alone = name == "halving" or name.startswith("alone")
            color = figures.GREY if name == WHOLE else figures.ORANGE if is_alone else figures.BLUE
            ends = [[tau["value"] - tau["low"]], [tau["high"] - tau["value"]]]
            axes.errorbar([seconds], [tau["value"]], yerr=ends, fmt="o", color=color, alpha=0.8, capsize=2, lw=1)
            # Neighbours are close: their names go up and down in turns, that of the last to the left.
            offset, side = (5, (5, -12)[place % 2]), "left"
            if name == shown[-1][0]:
                offset, side = (-5, 6), "right"
            axes.annotate(name, (seconds, tau["value"]), xytext=offset, textcoords="offset points", fontsize=8, ha=side)
        axes.set(xscale="log", xlabel="seconds a candidate", ylabel="Kendall's tau")
        axes.set_title("Does the reward order cells?")
