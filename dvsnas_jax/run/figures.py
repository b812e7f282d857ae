"""The pictures of a run, each from plain values into one PNG file.

Colours are those of Okabe and Ito (2008), told apart with any colour vision.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvsnas_jax.space import draw

BLUE, ORANGE, GREEN, SKY, RED, GREY, INK = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#8A919B", "#262B33",
)  # fmt: skip
QUARTER_COLORS = ("#C6DDEE", "#86B8DB", "#3F8CC2", "#0B4F82")

Records = Sequence[Mapping[str, Any]]

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9AA1AB",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "grid.color": "#E6E8EC",
    "text.color": INK,
    "xtick.color": "#4A505A",
    "ytick.color": "#4A505A",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def is_number(value: Any) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_scored(record: Mapping[str, Any]) -> bool:
    """Whether the record of a candidate has a reward that counts."""
    return record.get("status", "ok") == "ok" and is_number(record.get("reward"))


def split_sources(
    records: Records, num_steps: int | None = None
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Candidates of the search, and the uniformly drawn ones of the random line; only the scored ones.

    Args:
      records: lines of `genotypes.jsonl`.
      num_steps: of the search, where known: a random search has the same source as the random line, but earlier steps.
    """
    parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for record in records:
        if is_scored(record):
            is_line = record.get("source") == "random" and (num_steps is None or record["step"] >= num_steps)
            parts[is_line].append(record)
    return parts


def running_mean(steps: npt.ArrayLike, values: npt.ArrayLike, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of all values of the last `window` distinct steps.

    Args:
      steps: of the values, in any order.
      values: as many.
      window: number of distinct steps that a mean looks back over, itself included.

    Returns:
      The distinct steps in order, and the mean at each, f64.
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
        figure.savefig(path, dpi=140)


def reward(searched: Records, drawn: Records, path: str | pathlib.Path, *, best_hash: str | None = None) -> None:
    """Reward of every candidate over the search, its running mean, and the random line.

    Args:
      searched: scored candidates of the search.
      drawn: scored candidates of the random line; one of the two may be empty.
      path: PNG to write.
      best_hash: of the winner, whose best candidate is marked.
    """
    with canvas(path, 9, 4.8) as figure:
        axes = figure.add_subplot()
        if searched:
            steps = [int(record["step"]) for record in searched]
            values = [float(record["reward"]) for record in searched]
            window = max(1, len(set(steps)) // 10)
            axes.scatter(steps, values, s=16, color=BLUE, alpha=0.28, lw=0, label=f"candidate ({len(values)})")
            label = f"running mean over {window} steps" if window > 1 else "mean of a step"
            axes.plot(*running_mean(steps, values, window), color=BLUE, lw=2.4, label=label)
            won = [record for record in searched if best_hash and record.get("hash") == best_hash]
            if won:
                top = max(won, key=lambda record: record["reward"])
                style: dict[str, Any] = {"marker": "*", "s": 190, "color": GREEN, "ec": "white", "zorder": 5}
                axes.scatter([top["step"]], [top["reward"]], label="the winner", **style)
        if drawn:
            rewards = np.array([record["reward"] for record in drawn], np.float64)
            mean, deviation = rewards.mean(), rewards.std()
            label = f"uniformly drawn, final weights: {mean:.3f} ± {deviation:.3f} ({len(drawn)})"
            axes.axhline(mean, color=RED, lw=1.8, ls="--", label=label)
            axes.axhspan(mean - deviation, mean + deviation, color=RED, alpha=0.12, lw=0)
        axes.set(xlabel="search step", ylabel="reward")
        if not searched:
            axes.set_xticks([])
            axes.set_xlabel("")
        axes.set_title("Reward of the candidates", pad=48)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, columnspacing=1.4, borderpad=0)


def operations(
    searched: Records, names: Mapping[str, Sequence[str]], path: str | pathlib.Path
) -> dict[str, dict[str, list[float]]]:
    """Shares of the chosen operations and aggregations in the quarters of the search.

    Args:
      searched: scored candidates of the search, at least four.
      names: "operations" and "aggregations", in index order.
      path: PNG to write.

    Returns:
      "operations" and "aggregations" -> name -> share in each quarter.
    """
    in_order = sorted(searched, key=lambda record: record["step"])
    tokens = np.array([record["genotype"] for record in in_order])
    quarters = np.array_split(tokens, 4)
    shares: dict[str, dict[str, list[float]]] = {}
    for kind, columns in (("operations", slice(2, 4)), ("aggregations", slice(4, 5))):
        counts = [np.bincount(part[:, :, columns].ravel(), minlength=len(names[kind])) for part in quarters]
        rows = np.stack([count / count.sum() for count in counts], axis=1).tolist()
        shares[kind] = dict(zip(names[kind], rows, strict=True))
    with canvas(path, 9, 1.8 + 0.46 * sum(len(table) for table in shares.values())) as figure:
        ratios = [len(table) + 1 for table in shares.values()]
        for axes, (kind, table) in zip(figure.subplots(2, 1, height_ratios=ratios), shares.items(), strict=True):
            for quarter in range(4):
                place = np.arange(len(table)) + (quarter - 1.5) * 0.2
                label = ("first quarter of the search", "second", "third", "last quarter")[quarter]
                widths = [100 * row[quarter] for row in table.values()]
                axes.barh(place, widths, 0.19, color=QUARTER_COLORS[quarter], label=label)
            axes.axvline(100 / len(table), color=RED, ls="--", lw=1.4, label="uniform")
            axes.set_yticks(range(len(table)), [draw.readable(name) for name in table])
            axes.set(title=kind.capitalize(), xlabel=f"share of the chosen {kind}, %", ylim=(len(table) - 0.4, -0.6))
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, columnspacing=1.2, handlelength=1.4)
    return shares


def classes(
    names: Sequence[str],
    series: Mapping[str, Mapping[str, float | None]],
    path: str | pathlib.Path,
) -> None:
    """Bars of the intersection over union of every class.

    Args:
      names: of the classes, in order.
      series: network -> class -> IoU in 0..1, None where the class does not occur.
      path: PNG to write.
    """
    colors = {"static": GREY, "cell": BLUE}
    with canvas(path, 9, 1.2 + 0.45 * len(names)) as figure:
        axes = figure.add_subplot()
        height = 0.8 / len(series)
        for index, (label, values) in enumerate(series.items()):
            place = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
            found = {name: 100 * value for name, value in values.items() if value is not None}
            widths = [found.get(name, 0.0) for name in names]
            bars = axes.barh(place, widths, height * 0.94, color=colors.get(label, ORANGE), label=label)
            texts = [f"{found[name]:.1f}" if name in found else "absent" for name in names]
            axes.bar_label(bars, texts, padding=3, fontsize=9, color="#4A505A")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="intersection over union, %", ylim=(len(names) - 0.45, -0.55), xlim=(0, 100))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title("Every class", pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(series), borderpad=0)


def curves(metrics: Records) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """(stage, scalar) -> steps and values of what is worth a curve; a step logged twice counts as logged last."""
    shown = ("loss", "miou", "policy_entropy", "reward_mean")
    found: dict[tuple[str, str], dict[int, float]] = {}
    for record in metrics:
        for name in shown:
            if is_number(record.get(name)) and is_number(record.get("step")):
                found.setdefault((str(record.get("stage", "")), name), {})[int(record["step"])] = float(record[name])
    result = {}
    for key, points in found.items():
        if len(points) > 1:
            steps = sorted(points)
            result[key] = np.array(steps), np.array([points[step] for step in steps])
    return result


def training(metrics: Records, path: str | pathlib.Path) -> None:
    """A small panel for every stage and scalar of the training.

    Args:
      metrics: lines of `metrics.jsonl` with at least one of `curves`.
      path: PNG to write.
    """
    panels = curves(metrics)
    titles = {"loss": "loss", "miou": "mIoU, %", "policy_entropy": "entropy of the policy, nats"}
    titles["reward_mean"] = "mean reward"
    colors = {"loss": BLUE, "miou": GREEN, "policy_entropy": ORANGE, "reward_mean": RED}
    num_columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    with canvas(path, max(4.0, 3.4 * num_columns), 2.9 * num_rows) as figure:
        grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, ((stage, name), (steps, values)) in zip(grid, panels.items(), strict=False):
            values = values * 100 if name == "miou" else values
            is_dense = len(values) > 20
            axes.plot(steps, values, color=colors[name], lw=1 if is_dense else 2, alpha=0.35 if is_dense else 1.0)
            if is_dense:
                axes.plot(*running_mean(steps, values, max(2, len(values) // 15)), color=colors[name], lw=2.2)
            elif len(values) < 12:
                axes.scatter(steps, values, s=22, color=colors[name])
            axes.set_title(stage.replace("_", " "))
            axes.set(xlabel="step", ylabel=titles[name])
            axes.locator_params(axis="x", nbins=5, integer=True)
        for axes in grid[len(panels) :]:
            axes.axis("off")


def strip(
    arrays: Mapping[str, np.ndarray],
    names: Sequence[str],
    path: str | pathlib.Path,
    *,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Consecutive frames side by side: frame, label, what the static network says, what the cell says.

    Args:
      arrays: `frames` u8 [n, H, W, 3]; `labels`, `static`, `cell` u8 [n, H, W]; `colors` u8 [K, 3].
      names: of the K classes.
      path: PNG to write.
      notes: row -> a few words under its name.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(arrays["colors"])] = arrays["colors"]
    maps = {"label": arrays["labels"], "static": arrays["static"], "cell": arrays["cell"]}
    rows = {"frame": arrays["frames"], **{row: colors[ids] for row, ids in maps.items()}}
    present = np.unique(np.stack(list(maps.values())))
    entries = [
        (names[index] if index < len(names) else f"class {index}", colors[index] / 255)
        for index in present.tolist()
        if index < len(arrays["colors"])
    ]
    entries += [("ignored", colors[255] / 255)] if present[-1] >= len(arrays["colors"]) else []
    num, height, width = arrays["frames"].shape[:3]
    tile_width, left, top, space, entry_width = 2.1, 1.05, 0.32, 0.06, 1.3
    tile_height = tile_width * height / width
    total_width = left + num * (tile_width + space) + space
    per_row = max(1, int((total_width - left) / entry_width))
    bottom = 0.12 + 0.26 * math.ceil(len(entries) / per_row)
    total_height = top + len(rows) * (tile_height + space) + bottom
    with canvas(path, total_width, total_height) as figure:
        figure.set_layout_engine("none")
        for row, (label, images) in enumerate(rows.items()):
            y = total_height - top - (row + 1) * (tile_height + space) + space
            _strip_label(figure, 0.12, y + tile_height / 2, label, (notes or {}).get(label, ""))
            for column, image in enumerate(images):
                box = (left + column * (tile_width + space), y, tile_width, tile_height)
                totals = (total_width, total_height, total_width, total_height)
                axes = figure.add_axes(np.divide(box, totals))
                axes.imshow(image, interpolation="lanczos" if label == "frame" else "nearest", aspect="auto")
                axes.axis("off")
                if row == 0:
                    time = f"t + {column}" if column else "t"
                    axes.set_title(time, loc="center", fontsize=10, pad=4, fontweight="normal")
        for index, (name, color) in enumerate(entries):
            corner = (left + index % per_row * entry_width, bottom - 0.28 - 0.26 * (index // per_row))
            _strip_entry(figure, corner, name, color)


def _strip_label(figure: Any, x: float, y: float, label: str, note: str) -> None:
    """The name of a row, a note under it; x and y in inches."""
    width, height = figure.get_size_inches()
    shift = 0.1 if note else 0.0
    figure.text(x / width, (y + shift) / height, label, fontsize=12, fontweight="bold", va="center")
    figure.text(x / width, (y - shift) / height, note, fontsize=8.5, color="#5A616B", va="center")


def _strip_entry(figure: Any, corner: tuple[float, float], name: str, color: Any) -> None:
    """A class of the legend; its lower left corner in inches."""
    from matplotlib import patches

    width, height = figure.get_size_inches()
    x, y = corner[0] / width, corner[1] / height
    figure.add_artist(patches.Rectangle((x, y), 0.16 / width, 0.16 / height, fc=color, ec=GREY, lw=0.6))
    figure.text(x + 0.23 / width, y + 0.08 / height, name, fontsize=9.5, va="center")
