"""The pictures of a run, each from plain values into one file: charts as SVG of the width of a phone, frames as PNG.

Colours are those of Okabe and Ito (2008), told apart with any colour vision.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvsnas_jax.space import genotype as genotypes

BLUE, ORANGE, GREEN, SKY, RED, PINK, GREY, INK = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#8A919B", "#262B33",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY)
WIDTH = 5.0
"""Of a chart in inches: its text stays readable where the chart is as wide as a phone."""
MAX_MARKS = 2000
"""Of a scatter that is drawn as shapes; more become pixels inside the SVG."""

Records = Sequence[Mapping[str, Any]]

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 11, "text.color": INK,
    "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9AA1AB", "axes.labelcolor": INK,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E8EC", "axes.formatter.useoffset": False,
    "xtick.color": "#4A505A", "ytick.color": "#4A505A", "legend.frameon": False, "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.08,
    "svg.fonttype": "none", "svg.hashsalt": "dvsnas",
}  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_stopped(record: Mapping[str, Any]) -> bool:
    """Whether the training of a candidate was stopped early; its reward is that of the training so far."""
    return record.get("status") == "stopped"


def is_scored(record: Mapping[str, Any]) -> bool:
    """Whether the record of a candidate has a reward that counts, as it did for the strategy."""
    return (is_stopped(record) or record.get("status", "ok") == "ok") and is_number(record.get("reward"))


def split_sources(
    records: Records, num_steps: int | None = None
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Scored candidates of `genotypes.jsonl`: of the search, and the uniformly drawn ones of the random line.

    A random search has the same source as the random line, but earlier steps: those below `num_steps`, where known.
    """
    parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for record in filter(is_scored, records):
        is_line = record.get("source") == "random" and (num_steps is None or record["step"] >= num_steps)
        parts[is_line].append(record)
    return parts


def running_mean(steps: npt.ArrayLike, values: npt.ArrayLike, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct steps in order, and the mean f64 of all values of the last `window` of them at each.

    `steps` of the `values` are in any order, and may come several times.
    """
    known, index = np.unique(steps, return_inverse=True)
    sums = np.cumsum(np.bincount(index, weights=values, minlength=len(known)))
    counts = np.cumsum(np.bincount(index, minlength=len(known)))
    before = np.maximum(np.arange(len(known)) - window, -1)
    old_sums, old_counts = (np.where(before >= 0, totals[before], 0) for totals in (sums, counts))
    return known, (sums - old_sums) / (counts - old_counts)


@contextlib.contextmanager
def canvas(path: str | pathlib.Path, width: float, height: float) -> Iterator[Any]:
    """A figure of the house style, written to `path` at the end."""
    import matplotlib
    from matplotlib import figure as figures

    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        yield figure
        is_svg = str(path).endswith(".svg")
        figure.savefig(path, dpi=140, metadata={"Date": None} if is_svg else None)


def reward(searched: Records, drawn: Records, path: str | pathlib.Path, *, best_hash: str | None = None) -> None:
    """Reward of every candidate over the search as SVG, a running mean for each strategy, and the random line.

    Of `split_sources`, one of which may be empty; the best candidate of the hash `best_hash`, the winner, is marked.
    """
    with canvas(path, WIDTH, 3.7) as figure:
        axes = figure.add_subplot()
        for color, (name, records) in zip(itertools.cycle(CYCLE[:-1]), by_source(searched).items(), strict=False):
            steps, values, window = _points(records)
            style: dict[str, Any] = {"s": 12, "color": color, "alpha": 0.28, "lw": 0}
            style["rasterized"] = len(steps) > MAX_MARKS
            axes.scatter(steps, values, label=f"{name} ({len(values)} candidates)", **style)
            stopped = [record for record in records if is_stopped(record)]
            if stopped:
                style |= {"marker": "x", "s": 16, "lw": 0.8, "alpha": 0.7}
                axes.scatter(*_points(stopped)[:2], label=f"stopped early ({len(stopped)})", **style)
            label = f"mean over {window} steps" if window > 1 else "mean of a step"
            axes.plot(*running_mean(steps, values, window), color=color, lw=2.2, label=label)
        won = [record for record in searched if best_hash and record.get("hash") == best_hash]
        if won:
            top = max(won, key=lambda record: record["reward"])
            style = {"marker": "*", "s": 170, "color": PINK, "ec": "white", "zorder": 5}
            axes.scatter([top["step"]], [top["reward"]], label="the winner", **style)
        if drawn:
            _random_line(axes, drawn, RED, f"random line ({len(drawn)})")
        axes.set(xlabel="search step" if searched else "", ylabel="reward")
        if not searched:
            axes.set_xticks([])
        _legend(axes, "Reward of the candidates")


def rewards(series: Mapping[str, tuple[Records, Records]], path: str | pathlib.Path) -> None:
    """Running mean of the reward of several runs (each of `split_sources`) as SVG, each with its random line."""
    with canvas(path, WIDTH, 3.6) as figure:
        axes, colors = figure.add_subplot(), itertools.cycle(CYCLE)
        for run, (searched, drawn) in series.items():
            for index, (source, records) in enumerate(by_source(searched).items()):
                color = next(colors)
                axes.plot(*running_mean(*_points(records)), color=color, lw=2.2, label=f"{run}, {source}")
                if drawn and index == 0:
                    _random_line(axes, drawn, color, None)
        axes.set(xlabel="search step", ylabel="reward, running mean")
        _legend(axes, "Reward of the runs; dashed: their random lines", num_columns=1)


def _points(records: Records) -> tuple[list[int], list[float], int]:
    """Steps and rewards of candidates, and how many steps a running mean looks back over."""
    steps = [int(record["step"]) for record in records]
    return steps, [float(record["reward"]) for record in records], max(1, len(set(steps)) // 10)


def by_source(searched: Records) -> dict[str, list[Mapping[str, Any]]]:
    """Strategy -> its candidates, in the order in which the strategies appear."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in searched:
        groups.setdefault(str(record.get("source", "search")), []).append(record)
    return groups


def _random_line(axes: Any, drawn: Records, color: str, label: str | None) -> None:
    """Mean of the uniformly drawn candidates, and a standard deviation around it."""
    values = np.array([record["reward"] for record in drawn], np.float64)
    mean, deviation = values.mean(), values.std()
    axes.axhline(mean, color=color, lw=1.6, ls="--", label=label)
    axes.axhspan(mean - deviation, mean + deviation, color=color, alpha=0.1, lw=0)


def _legend(axes: Any, title: str, num_columns: int = 2) -> None:
    """The title of a chart, and its legend between title and chart."""
    handles, _ = axes.get_legend_handles_labels()
    num_rows = math.ceil(len(handles) / num_columns)
    axes.set_title(title, pad=8 + 15 * num_rows)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=num_columns, columnspacing=1.0, borderpad=0.2,
        handlelength=1.5, fontsize=9, labelspacing=0.3,
    )  # fmt: skip


def entropy(steps: np.ndarray, values: np.ndarray, path: str | pathlib.Path) -> None:
    """Entropy of the policy over the search, nats of a whole genotype at each step, as SVG."""
    with canvas(path, WIDTH, 3.0) as figure:
        axes = figure.add_subplot()
        axes.plot(steps, values, color=ORANGE, lw=2.2, marker="o" if len(steps) < 12 else None, ms=4)
        axes.set(xlabel="search step", ylabel="entropy, nats")
        axes.set_title("Entropy of the controller")


def choices(searched: Records, space: genotypes.Space, num_bins: int = 8) -> dict[str, Any]:
    """How often each input, operation and aggregation was chosen by scored candidates, over the search.

    In at most `num_bins` stretches of equally many candidates: `bins`, the last step of every stretch; `inputs`,
    `operations`, `aggregations`: name -> share in each stretch. All earlier layers together are the input "an earlier
    layer".
    """
    in_order = sorted(searched, key=lambda record: record["step"])
    parts = np.array_split(np.arange(len(in_order)), max(1, min(num_bins, len(in_order))))
    tokens = np.array([record["genotype"] for record in in_order])
    inputs = np.minimum(tokens[:, :, :2], space.num_inputs)
    columns = {
        "inputs": ((*space.inputs, "an earlier layer"), inputs),
        "operations": (space.operations, tokens[:, :, 2:4]),
        "aggregations": (space.aggregations, tokens[:, :, 4:]),
    }
    found: dict[str, Any] = {"bins": [int(in_order[part[-1]]["step"]) for part in parts]}
    for kind, (names, values) in columns.items():
        counts = [np.bincount(values[part].ravel(), minlength=len(names)) for part in parts]
        shares = np.stack([count / count.sum() for count in counts], axis=1).tolist()
        found[kind] = dict(zip(names, shares, strict=True))
    return found


def classes(names: Sequence[str], series: Mapping[str, Mapping[str, float | None]], path: str | pathlib.Path) -> None:
    """Bars of network -> class -> IoU in 0..1 (None where the class does not occur) as SVG, classes in this order."""
    colors = {"static": GREY, "cell": BLUE}
    with canvas(path, WIDTH, 0.9 + 0.36 * len(names)) as figure:
        axes, height = figure.add_subplot(), 0.8 / len(series)
        for index, (label, values) in enumerate(series.items()):
            place = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
            found = {name: 100 * value for name, value in values.items() if value is not None}
            widths = [found.get(name, 0.0) for name in names]
            bars = axes.barh(place, widths, height * 0.94, color=colors.get(label, ORANGE), label=label)
            texts = [f"{found[name]:.1f}" if name in found else "absent" for name in names]
            axes.bar_label(bars, texts, padding=3, fontsize=8, color="#4A505A")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="intersection over union, %", ylim=(len(names) - 0.45, -0.55), xlim=(0, 108))
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        _legend(axes, "Every class")


def latency(samples: Mapping[str, Sequence[float]], path: str | pathlib.Path) -> None:
    """Histogram of the times of single frames, name -> milliseconds, as SVG."""
    together = np.concatenate([np.asarray(values, np.float64) for values in samples.values()])
    edges = np.linspace(together.min(), max(together.max(), together.min() + 0.1), 31)
    with canvas(path, WIDTH, 3.2) as figure:
        axes = figure.add_subplot()
        for color, (name, values) in zip(itertools.cycle((GREY, BLUE, ORANGE, GREEN)), samples.items(), strict=False):
            axes.hist(values, edges, color=color, alpha=0.55, lw=0, label=f"{name} ({len(values)})")
            axes.axvline(float(np.median(values)), color=color, lw=1.8)
        axes.set(xlabel="milliseconds per frame; lines: medians", ylabel="frames")
        axes.locator_params(axis="y", integer=True)
        _legend(axes, "Time of a frame")


_SCALARS = {
    "loss": ("loss", BLUE),
    "miou": ("mIoU, %", GREEN),
    "policy_entropy": ("entropy of the policy, nats", ORANGE),
    "reward_mean": ("mean reward", RED),
}
"""What of `metrics.jsonl` is worth a curve, with its label and colour."""


def curves(metrics: Records) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """(stage, scalar) -> steps and values of what is worth a curve; a step logged twice counts as logged last."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for record in metrics:
        for name in _SCALARS:
            if is_number(record.get(name)) and is_number(record.get("step")):
                found.setdefault((str(record.get("stage", "")), name), {})[int(record["step"])] = float(record[name])
    many = {key: sorted(points.items()) for key, points in found.items() if len(points) > 1}
    return {key: (np.array([x for x, _ in line]), np.array([y for _, y in line])) for key, line in many.items()}


def training(key: tuple[str, str], steps: np.ndarray, values: np.ndarray, path: str | pathlib.Path) -> None:
    """A small panel for one of `curves` as SVG; the key is stage and scalar."""
    stage, name = key
    title, color = _SCALARS[name]
    values = values * 100 if name == "miou" else values
    is_dense = len(values) > 20
    with canvas(path, 3.6, 2.4) as figure:
        axes = figure.add_subplot()
        axes.plot(steps, values, color=color, lw=1 if is_dense else 2, alpha=0.35 if is_dense else 1.0)
        if is_dense:
            axes.plot(*running_mean(steps, values, max(2, len(values) // 15)), color=color, lw=2.2)
        elif len(values) < 12:
            axes.scatter(steps, values, s=22, color=color)
        axes.set_title(textwrap.fill(stage.replace("_", " "), 28), fontsize=10)
        axes.set(xlabel="step", ylabel=title)
        axes.locator_params(axis="x", nbins=5, integer=True)
