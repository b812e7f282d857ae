"""The parts of the report that tell scores, frames, classes, times and costs, as `dvsnas evaluate` found them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.evaluate import baselines, figures, score_tables, timing
from dvsnas_jax.report import frame_pictures, markup, missing_parts, run_files
from dvsnas_jax.studies import compare

_NUM_MISTAKES = 5
_NUM_OPEN_ROWS = 16


class ScoreRow(NamedTuple):
    """A row of the table of scores: network -> value as shown.

    `noise` is that of the difference between cell and static network (one that is no larger means nothing); it is shown
    where it was measured.
    """

    label: str
    values: dict[str, float]
    decimals: int
    is_higher_better: bool
    noise: float = 0.0
    is_measured: bool = False


def score_rows(scores: Mapping[str, Mapping[str, Any]], *, is_refining: bool = False) -> Iterator[ScoreRow]:
    """Every row that the table has, of network -> its scores.

    In mode refine the cell runs on top of the static network, and can take no less time.
    """
    lengths = sorted({int(n) for score in scores.values() for n in score.get("vc") or {}})
    plan = [
        ("mIoU, %", "miou", 1, True),
        ("frequency-weighted IoU, %", "fwiou", 1, True),
        ("pixel accuracy, %", "accuracy", 1, True),
        ("class accuracy, %", "class_accuracy", 1, True),
        *((f"VC{n}, %", f"vc_{n}", 1, True) for n in lengths),
        *((f"VC{n} by VSPW’s evaluator, %", f"vspw_vc_{n}", 1, True) for n in lengths),
        ("consistency along true flow, %", "flow_consistency", 1, True),
        ("flicker, %", "flicker", 2, False),
        ("true changes followed, %", "changes_followed", 1, True),
        ("ms per frame", "ms_per_frame", 1, False),
        ("mean time, % of the static network’s", "time_share", 0, False),
    ]
    change = timing.change(scores.get("static") or {}, scores.get("cell") or {}, is_refining=is_refining)
    for label, key, decimals, is_higher_better in plan:
        found = {name: _value(score, key) for name, score in scores.items()}
        factor = 1 if key == "ms_per_frame" else 100
        values = {name: factor * value for name, value in found.items() if figures.is_number(value)}
        if values:
            row = ScoreRow(label, values, decimals, is_higher_better)
            if key == "ms_per_frame" and change is not None:
                row = row._replace(noise=change.noise, is_measured=change.is_measured)
            yield row


def _value(score: Mapping[str, Any], key: str) -> Any:
    """A score by its key; `vc_8` and `vspw_vc_8` are those of windows of 8 frames."""
    name, _, length = key.rpartition("_")
    return (score.get(name) or {}).get(length) if name in ("vc", "vspw_vc") else score.get(key)


def summary(run: run_files.Run) -> str:
    """The run in a few figures."""
    facts: list[tuple[str, str, str]] = []
    scores = run.scores()
    networks = [name for name in ("cell", "static") if name in scores]
    whose = "of the cell" if "cell" in scores else "of the network"
    shown = {"miou": (f"mIoU {whose}", 100, 1, " %"), "flicker": (f"flicker {whose}", 100, 1, " %")}
    shown["ms_per_frame"] = ("time of a frame", 1, 1, " ms")
    for key, (label, factor, decimals, unit) in shown.items():
        values = [scores[name].get(key) for name in networks]
        if values and figures.is_number(values[0]):
            texts = [f"{markup.number(factor * value, decimals)}{unit}" for value in values if value is not None]
            facts.append((label, texts[0], f"static {texts[1]}" if len(texts) > 1 else ""))
    if run.searched:
        best = max(record["reward"] for record in run.searched)
        strategies = ", ".join(figures.by_source(run.searched))
        facts.append(("candidates scored", str(len(run.searched)), strategies))
        facts.append(("best reward", markup.number(best, 3), ""))
    data, space = run.config.get("data", {}), run.config.get("space", {})
    if {"name", "height", "width"} <= set(data):
        facts.append(("data", str(data["name"]), f"{data['width']} x {data['height']}"))
    if "mode" in space:
        facts.append(("mode", str(space["mode"]), f"{space.get('num_layers')} layers"))
    tiles = "".join(
        f"<div><dt>{markup.escape(label)}</dt><dd>{markup.escape(value)}"
        f"{f' <small>{markup.escape(more)}</small>' if more else ''}</dd></div>"
        for label, value, more in facts
    )
    return f"<dl class=facts>{tiles}</dl>" if facts else ""


def result(run: run_files.Run) -> str:
    """The headline and the table of all networks."""
    scores = run.scores()
    rows = list(score_rows(scores, is_refining=run.is_refining()))
    if not rows:
        return "" if run.compare else run.lacks("Scores", missing_parts.scores(run))
    is_compared = {"static", "cell"} <= set(scores)
    head = [""]
    body: list[tuple[str, list[str]]] = [(row.label, []) for row in rows]
    for name in scores:
        has_change = name == "cell" and is_compared
        head += [run_files.NETWORKS[name], *(["change"] if has_change else [])]
        for row, (_, cells) in zip(rows, body, strict=True):
            cells += [markup.number(row.values.get(name), row.decimals), *([_change(row)] if has_change else [])]
    split, num_frames = run.evaluation.get("split", "?"), run.evaluation.get("num_frames", "?")
    size = ", at the size of the label files" if run.evaluation.get("size") == "file" else ""
    words = f"Split {markup.escape(split)}, {markup.escape(num_frames)} frames{size}. {_MEASURES}"
    words += "".join(text for name, text in _BASELINES.items() if name in scores)
    return (
        _headline(scores)
        + markup.table(head, body, "Scores of the networks")
        + markup.note(words + (_TIMES if is_compared and rows[-1].noise else ""))
        + _ages(scores)
    )


def _ages(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """mIoU of the frames of each age; "" where it is not known, as in mode refine and of regions."""
    known = {name: score["by_age"] for name, score in scores.items() if score.get("by_age")}
    if "cell" not in known:
        return ""
    ages = list(known["cell"])[: score_tables.MAX_AGES]
    rows = [
        (run_files.NETWORKS[name], [markup.percent((found.get(age) or {}).get("miou"), 1) for age in ages])
        for name, found in known.items()
    ]
    title = "mIoU of the frames so long after their key frame, %"
    return markup.table(["frames since the key frame", *ages], rows, title, title=title)


_MEASURES = (
    "VC<sub>n</sub>: of the pixels whose label is constant over n frames, the share that is predicted correctly in all "
    "of them; VSPW’s evaluator asks only for a constant prediction. Flicker: of the pixels whose label does not change "
    "from one frame to the next, the share whose prediction does. True changes followed: of the pixels whose label "
    "does change, the share whose prediction changes from the old one to the new one within a few frames; who never "
    "changes has no flicker, and follows nothing."
)
_BASELINES = {
    "hold": " Hold: the static network’s labels of the last key frame, without any training.",
    "ema": " Ema: a running average of the static network’s outputs, without any training.",
}


_TIMES = (
    " Network and cell were timed in turns, frame by frame; ± is the noise of the difference, and what is no larger"
    " has no mark. In mode refine the cell runs on top of the network: a time below the network’s is noise."
)


def _change(row: ScoreRow) -> str:
    """The table cell of the difference between cell and static network; no mark on one that its noise may have made."""
    if not {"static", "cell"} <= set(row.values):
        return "<td>–</td>"
    difference = row.values["cell"] - row.values["static"]
    shown = round(difference, row.decimals)
    is_same = shown == 0 or abs(difference) <= row.noise
    kind = "same" if is_same else "good" if (shown > 0) == row.is_higher_better else "bad"
    mark = {"same": "", "good": " ✓", "bad": " ✗"}[kind]
    noise = f" ± {markup.number(row.noise, row.decimals)}" if row.is_measured else ""
    return f"<td class={kind}>{markup.number(shown, row.decimals, is_signed=True)}{noise}{mark}</td>"


def _headline(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence that says how it came out."""
    static, cell = (scores.get(name, {}) for name in ("static", "cell"))
    if not (figures.is_number(static.get("miou")) and figures.is_number(cell.get("miou"))):
        return ""
    points = 100 * (cell["miou"] - static["miou"])
    sentence = (
        f"The cell reaches <b>{100 * cell['miou']:.1f} %</b> mIoU, "
        f"<b>{abs(points):.1f} points {'above' if points >= 0 else 'below'}</b> the static network"
    )
    if figures.is_number(cell.get("flicker")) and figures.is_number(static.get("flicker")) and static["flicker"] > 0:
        sentence += f"; its flicker is <b>{cell['flicker'] / static['flicker']:.2f} times</b> the static network’s"
    verdict = baselines.verdict(scores)
    first = f"The cell <b>{markup.escape(verdict)}</b>. " if verdict else ""
    return f"<p class=lead>{first}{sentence}.</p>"


def looks(run: run_files.Run) -> str:
    """The looping clip, and frames with their labels, predictions and errors."""
    command = missing_parts.evaluate(run)
    strip = run.arrays(run_files.STRIP)
    stretch = run.arrays(run_files.CLIP)
    if strip is None and stretch is None:
        return run.lacks("Frames", command) if run.evaluation else ""
    if stretch is None:
        run.lacks("A longer clip", command)
    arrays = stretch or strip
    assert arrays is not None
    moving, still = frame_pictures.clip(arrays)
    words = "A short video: frame, label, prediction of the static network"
    words += " and of the cell" if "cell" in arrays else ", and its errors"
    loop = f"<div class=figure>{markup.image(moving, words, kind='clip', still=still)}</div>"
    return loop + (_strip(run, strip) if strip else "") + _colors(run, arrays)


def _strip(run: run_files.Run, arrays: frame_pictures.Arrays) -> str:
    """Consecutive frames, a picture for each row."""
    titles = {
        "frame": "Frames", "label": "Labels", "static": "Static network", "static errors": "Its errors, in orange",
        "cell": "With the cell", "cell errors": "Its errors, in orange",
    }  # fmt: skip
    rows = []
    for name, (picture, text) in frame_pictures.rows(arrays).items():
        shown = f"<b>{titles[name]}</b>" + (f": {text}" if text else "")
        words = f"{name} of {len(arrays['frames'])} consecutive frames"
        rows.append(f"<p>{shown}</p>{markup.image(picture, words, kind='pixels')}")
    scores: dict[str, Any] = {name: score.get("miou") for name, score in run.scores().items()}
    notes = {name: f"mIoU {100 * value:.1f} %" for name, value in scores.items() if figures.is_number(value)}
    frame_pictures.strip(arrays, run.class_names(), run.figure("strip.png"), notes)
    words = "Consecutive frames of the evaluation split, their labels, and what the networks make of them"
    box = f'<div class=figure role=region tabindex=0 aria-label="{words}">'
    note = "A stretch chosen for a frame that is hard for the static network: an example, not an average."
    return f"{box}<div class=strip>{''.join(rows)}</div></div>{markup.note(note)}"


def _colors(run: run_files.Run, arrays: frame_pictures.Arrays) -> str:
    """Which colour is which class, of those in the pictures."""
    names, colors = run.class_names(), arrays["colors"]
    present = np.unique(np.stack([arrays[key] for key in ("labels", *frame_pictures.networks(arrays))])).tolist()
    return markup.legend(
        {
            names[index] if index < len(names) else f"class {index}": colors[index].tolist()
            for index in present
            if index < len(colors)
        }
    )


def classes(run: run_files.Run) -> str:
    """Intersection over union of every class, and what is taken for what."""
    names, scores = run.class_names(), run.scores()
    series = {name: scores[name]["iou"] for name in ("static", "cell") if scores.get(name, {}).get("iou")}
    if not names or not series:
        return ""
    draw_fn = functools.partial(figures.classes, names, series)
    bars = run.chart("classes", "Intersection over union of every class", draw_fn)
    matrices = [_confusion(names, scores[name]["confusion"], name) for name in series if scores[name].get("confusion")]
    if not matrices:
        run.lacks("The confusion matrices", missing_parts.evaluate(run))
    return bars + markup.grid(*matrices)


def _confusion(names: Sequence[str], counts: Any, network: str) -> str:
    """A confusion matrix [K, K], each row in percent of the true class, and its largest mistakes in words."""
    matrix = np.asarray(counts, np.float64)
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    rows = [(name, shares[i].tolist() if totals[i] else [None] * len(names)) for i, name in enumerate(names)]
    title = f"{run_files.NETWORKS[network].capitalize()}: % of each true class"
    # Whole names at the top would make the columns as wide as the names.
    heads = [name[:4] for name in names]
    off = np.where(np.eye(len(names), dtype=bool), 0.0, matrix)
    order = [divmod(int(place), len(names)) for place in np.argsort(-off, axis=None)[:_NUM_MISTAKES]]
    told = [f"{names[i]} as {names[j]} ({100 * shares[i, j]:.0f} % of it)" for i, j in order if off[i, j]]
    mistakes = f"Most pixels are lost by {'; '.join(map(markup.escape, told))}." if told else "No pixel is wrong."
    words = f"Confusion matrix of the {run_files.NETWORKS[network]}"
    table = markup.heat(rows, heads, words, title=title, corner="true ↓ as →")
    return table + markup.note(mistakes)


def sequences(run: run_files.Run) -> str:
    """The scores of every sequence, folded where there are many."""
    found = run.evaluation.get("sequences")
    if not found:
        return run.lacks("The scores of every sequence", missing_parts.evaluate(run)) if run.evaluation else ""
    networks = [name for name in ("static", "cell") if found[0].get(name)]
    length = next(iter(found[0][networks[-1]].get("vc") or {}), None)
    columns = [("mIoU", "miou", 1), (f"VC{length}", f"vc_{length}", 1), ("flicker", "flicker", 2)]
    rows = []
    for row in found:
        cells = [
            markup.percent(_value(row[network], key), decimals) for _, key, decimals in columns for network in networks
        ]
        rows.append((markup.escape(row["name"]), [str(row["num_frames"]), *cells]))
    head = ["", "frames", *(f"{name}, {network}" for name, _, _ in columns for network in networks)]
    table = markup.table(head, rows, "Scores of every sequence, percent")
    if len(rows) <= _NUM_OPEN_ROWS:
        return table
    return f"<details><summary>{len(rows)} sequences</summary>{table}</details>"


def times(run: run_files.Run) -> str:
    """Times of single frames: a histogram, and its numbers."""
    found = {
        (name, kind): row for name, score in run.scores().items() for kind, row in (score.get("latency") or {}).items()
    }
    command = missing_parts.evaluate(run, is_timed=True)
    if not found:
        return run.lacks("Times of single frames", command) if run.evaluation else ""
    columns = ("median", "mean", "p95", "worst")
    rows = [
        (_kind_name(*key), [str(row.get("count", "–")), *(markup.number(row.get(name), 1) for name in columns)])
        for key, row in found.items()
    ]
    head = ["", "frames", "median", "mean", "95&nbsp;%", "worst"]
    table = markup.table(head, rows, "Milliseconds per frame", title="Milliseconds per frame")
    samples = {_kind_name(*key): row["samples"] for key, row in found.items() if row.get("samples")}
    chart = ""
    if samples:
        draw_fn = functools.partial(figures.latency, samples)
        chart = run.chart("latency", "Histogram of the times of single frames", draw_fn)
    else:
        run.lacks("The histogram of the times of single frames", command)
    note = markup.note("One frame at a time, synchronised, the networks in turns.")
    return markup.grid(chart, table + note)


def _kind_name(network: str, kind: str) -> str:
    """What a row of times is about."""
    kinds = {"all": "", "key": ", key frames", "cell": ", other frames", "regions": ", frames with new regions"}
    return run_files.NETWORKS[network] + kinds.get(kind, f", {kind}")


def costs(run: run_files.Run) -> str:
    """Parameters and multiply-adds of the winner, counted from its config."""
    best = run.winner()
    if best is None or not run.config:
        return ""
    try:
        config = config_lib.from_json_dict(run.config, str(run.path / "config.json"))
        key_share = (run.evaluation.get("cell") or {}).get("key_share", 1.0)
        found = compare.frame_cost(config, *best, key_share)
    except errors.UserError as error:
        return run.lacks("Parameters and multiply-adds", "", f"this version cannot count them: {error}")
    static, cell = found["static"], found["cell"]
    rows = [
        ("parameters, thousands", [markup.number(part["parameters"] / 1e3, 1) for part in (static, cell)]),
        ("multiply-adds per frame, millions", [markup.number(part["macs"] / 1e6, 1) for part in (static, cell)]),
    ]
    for key, label in (("macs_key", "of a key frame"), ("macs_cell", "of another frame")):
        if key in cell:
            rows.append((f"{label}, millions", ["–", markup.number(cell[key] / 1e6, 1)]))
    if "macs_key" in cell:
        rows.append(("share of key frames, %", ["100", markup.number(100 * key_share, 0)]))
    head = ["", "static network", "with the cell"]
    size = f"{config.data.width} x {config.data.height} pixels"
    note = markup.note(f"In closed form, for frames of {size}.")
    return markup.table(head, rows, "Costs of a frame") + note
