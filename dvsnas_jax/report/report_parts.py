"""The parts of the report that tell scores, classes, times, costs, comparisons and ablations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.evaluate import figures, timing
from dvsnas_jax.report import report_data, report_html, report_missing
from dvsnas_jax.space import draw
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.studies import compare, compare_report

_NUM_MISTAKES = 5
_NUM_OPEN_ROWS = 16


class ScoreRow(NamedTuple):
    """A row of the table of scores.

    Attributes:
      label: of the metric.
      values: network -> value as shown.
      decimals: shown.
      is_higher_better: the direction.
      noise: of the difference between cell and static network; one that is no larger means nothing.
      is_measured: the noise was measured, and is shown.
    """

    label: str
    values: dict[str, float]
    decimals: int
    is_higher_better: bool
    noise: float = 0.0
    is_measured: bool = False


def score_rows(scores: Mapping[str, Mapping[str, Any]], *, is_refining: bool = False) -> Iterator[ScoreRow]:
    """Every row that the table has.

    Args:
      scores: network -> its scores.
      is_refining: the cell runs on top of the static network, and can take no less time.
    """
    lengths = sorted({int(n) for score in scores.values() for n in score.get("vc") or {}})
    plan: list[tuple[str, Callable[[Mapping[str, Any]], Any], float, int, bool]] = [
        ("mIoU, %", lambda score: score.get("miou"), 100, 1, True),
        ("frequency-weighted IoU, %", lambda score: score.get("fwiou"), 100, 1, True),
        ("pixel accuracy, %", lambda score: score.get("accuracy"), 100, 1, True),
        ("class accuracy, %", lambda score: score.get("class_accuracy"), 100, 1, True),
        *((f"VC{n}, %", lambda score, n=n: (score.get("vc") or {}).get(str(n)), 100, 1, True) for n in lengths),
        ("consistency along true flow, %", lambda score: score.get("flow_consistency"), 100, 1, True),
        ("flicker, %", lambda score: score.get("flicker"), 100, 2, False),
        ("ms per frame", lambda score: score.get("ms_per_frame"), 1, 1, False),
    ]
    change = timing.change(scores.get("static") or {}, scores.get("cell") or {}, is_refining=is_refining)
    for label, get_fn, factor, decimals, is_higher_better in plan:
        values = {name: factor * value for name, score in scores.items() if figures.is_number(value := get_fn(score))}
        if values:
            row = ScoreRow(label, values, decimals, is_higher_better)
            if label == "ms per frame" and change is not None:
                row = row._replace(noise=change.noise, is_measured=change.is_measured)
            yield row


def result(run: report_data.Run) -> str:
    """The headline and the table of all networks."""
    scores = run.scores()
    rows = list(score_rows(scores, is_refining=run.is_refining()))
    if not rows:
        return "" if run.compare else run.lacks("Scores", report_missing.scores(run))
    networks = list(scores)
    is_compared = {"static", "cell"} <= set(scores)
    head = [""]
    for name in networks:
        head += [report_data.NETWORKS[name]] + (["change"] if name == "cell" and is_compared else [])
    body = []
    for row in rows:
        cells = []
        for name in networks:
            cells.append(report_html.number(row.values.get(name), row.decimals))
            if name == "cell" and is_compared:
                cells.append(_change(row))
        body.append((row.label, cells))
    split, num_frames = run.evaluation.get("split", "?"), run.evaluation.get("num_frames", "?")
    words = (
        f"Split {report_html.escape(split)}, {report_html.escape(num_frames)} frames. VC<sub>n</sub>: of the "
        "pixels whose label is constant over n frames, the share that is predicted correctly in all of them. "
        "Flicker: of the pixels whose label does not change from one frame to the next, the share whose "
        "prediction does."
    )
    return (
        _headline(scores)
        + report_html.table(head, body, "Scores of the networks")
        + report_html.note(words + (_TIMES if is_compared and rows[-1].noise else ""))
    )


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
    noise = f" ± {report_html.number(row.noise, row.decimals)}" if row.is_measured else ""
    return f"<td class={kind}>{report_html.number(shown, row.decimals, is_signed=True)}{noise}{mark}</td>"


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
    return f"<p class=lead>{sentence}.</p>"


def classes(run: report_data.Run) -> str:
    """Intersection over union of every class, and what is taken for what."""
    names, scores = run.class_names(), run.scores()
    series = {name: scores[name]["iou"] for name in ("static", "cell") if scores.get(name, {}).get("iou")}
    if not names or not series:
        return ""
    path = run.figure("classes.svg")
    figures.classes(names, series, path)
    bars = report_html.svg(path.read_text(), "Intersection over union of every class", f"{run.prefix}f-classes")
    matrices = [confusion(names, scores[name]["confusion"], name) for name in series if scores[name].get("confusion")]
    if not matrices:
        run.lacks("The confusion matrices", report_missing.evaluate(run))
    return bars + report_html.grid(*matrices)


def confusion(names: Sequence[str], counts: Any, network: str) -> str:
    """A confusion matrix, each row in percent of the true class, and its largest mistakes in words.

    Args:
      names: of the K classes.
      counts: integers [K, K], rows = truth.
      network: "static" or "cell".
    """
    matrix = np.asarray(counts, np.float64)
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    rows = [(name, shares[i].tolist() if totals[i] else [None] * len(names)) for i, name in enumerate(names)]
    title = f"{report_data.NETWORKS[network].capitalize()}: % of each true class"
    # Whole names at the top would make the columns as wide as the names.
    heads = [name[:4] for name in names]
    off = np.where(np.eye(len(names), dtype=bool), 0.0, matrix)
    order = [divmod(int(place), len(names)) for place in np.argsort(-off, axis=None)[:_NUM_MISTAKES]]
    told = [f"{names[i]} as {names[j]} ({100 * shares[i, j]:.0f} % of it)" for i, j in order if off[i, j]]
    mistakes = f"Most pixels are lost by {'; '.join(map(report_html.escape, told))}." if told else "No pixel is wrong."
    words = f"Confusion matrix of the {report_data.NETWORKS[network]}"
    table = report_html.heat(rows, heads, words, title=title, corner="true ↓ as →")
    return table + report_html.note(mistakes)


def sequences(run: report_data.Run) -> str:
    """The scores of every sequence, folded where there are many."""
    found = run.evaluation.get("sequences")
    if not found:
        return run.lacks("The scores of every sequence", report_missing.evaluate(run)) if run.evaluation else ""
    networks = [name for name in ("static", "cell") if found[0].get(name)]
    length = next(iter(found[0][networks[-1]].get("vc") or {}), None)
    columns: list[tuple[str, Callable[[Mapping[str, Any]], Any], int]] = [
        ("mIoU", lambda score: score.get("miou"), 1),
        (f"VC{length}", lambda score: (score.get("vc") or {}).get(length), 1),
        ("flicker", lambda score: score.get("flicker"), 2),
    ]
    rows = []
    for row in found:
        cells = [str(row["num_frames"])]
        for _, get_fn, decimals in columns:
            for value in (get_fn(row[network]) for network in networks):
                cells.append(report_html.number(None if value is None else 100 * value, decimals))
        rows.append((report_html.escape(row["name"]), cells))
    head = ["", "frames", *(f"{name}, {network}" for name, _, _ in columns for network in networks)]
    table = report_html.table(head, rows, "Scores of every sequence, percent")
    if len(rows) <= _NUM_OPEN_ROWS:
        return table
    return f"<details><summary>{len(rows)} sequences</summary>{table}</details>"


def times(run: report_data.Run) -> str:
    """Times of single frames: a histogram, and its numbers."""
    found = {
        (name, kind): row
        for name, score in run.scores().items()
        for kind, row in (score.get("latency") or {}).items()
    }
    command = report_missing.evaluate(run, is_timed=True)
    if not found:
        return run.lacks("Times of single frames", command) if run.evaluation else ""
    columns = ("median", "mean", "p95", "worst")
    rows = [
        (_kind_name(*key), [str(row.get("count", "–")), *(report_html.number(row.get(name), 1) for name in columns)])
        for key, row in found.items()
    ]
    head = ["", "frames", "median", "mean", "95&nbsp;%", "worst"]
    table = report_html.table(head, rows, "Milliseconds per frame", title="Milliseconds per frame")
    samples = {_kind_name(*key): row["samples"] for key, row in found.items() if row.get("samples")}
    chart = ""
    if samples:
        path = run.figure("latency.svg")
        figures.latency(samples, path)
        chart = report_html.svg(path.read_text(), "Histogram of the times of single frames", f"{run.prefix}f-latency")
    else:
        run.lacks("The histogram of the times of single frames", command)
    note = report_html.note("One frame at a time, synchronised, the networks in turns.")
    return report_html.grid(chart, table + note)


def _kind_name(network: str, kind: str) -> str:
    """What a row of times is about."""
    kinds = {"all": "", "key": ", key frames", "cell": ", other frames", "regions": ", frames with new regions"}
    return report_data.NETWORKS[network] + kinds.get(kind, f", {kind}")


def costs(run: report_data.Run) -> str:
    """Parameters and multiply-adds of the winner, counted from its config."""
    best = run.winner()
    if best is None or not run.config:
        return ""
    try:
        config = config_lib.from_json_dict(run.config, str(run.path / "config.json"))
        entry = compare.Entry("", *best, config, "")
        key_share = (run.evaluation.get("cell") or {}).get("key_share", 1.0)
        found = compare.frame_cost(config, entry, key_share)
    except errors.UserError as error:
        return run.lacks("Parameters and multiply-adds", "", f"this version cannot count them: {error}")
    static, cell = found["static"], found["cell"]
    rows = [
        ("parameters, thousands", [report_html.number(part["parameters"] / 1e3, 1) for part in (static, cell)]),
        ("multiply-adds per frame, millions", [report_html.number(part["macs"] / 1e6, 1) for part in (static, cell)]),
    ]
    for key, label in (("macs_key", "of a key frame"), ("macs_cell", "of another frame")):
        if key in cell:
            rows.append((f"{label}, millions", ["–", report_html.number(cell[key] / 1e6, 1)]))
    if "macs_key" in cell:
        rows.append(("share of key frames, %", ["100", report_html.number(100 * key_share, 0)]))
    head = ["", "static network", "with the cell"]
    size = f"{config.data.width} x {config.data.height} pixels"
    note = report_html.note(f"In closed form, for frames of {size}.")
    return report_html.table(head, rows, "Costs of a frame") + note


def comparison(run: report_data.Run) -> str:
    """Hand-designed and given cells side by side, where `dvsnas compare` has run in the folder."""
    if not run.compare:
        return ""
    head, *lines = compare_report.cells(run.compare)
    rows = [(report_html.escape(name), [report_html.escape(cell) for cell in cells]) for name, *cells in lines]
    path = run.figure("comparison.svg")
    compare_report.picture(run.compare, path)
    words = "Accuracy of the cells against their cost"
    chart = report_html.svg(path.read_text(), words, f"{run.prefix}f-comparison", is_wide=True)
    table = report_html.table([report_html.escape(text) for text in head], rows, "Comparison of cells")
    caption = report_html.note(report_html.escape(f"{compare_report.caption(run.compare)}. {compare_report.SPREAD}."))
    notes = "".join(f"<li>{report_html.escape(line)}</li>" for line in compare_report.notes(run.compare))
    return table + caption + (f"<ul class=missing>{notes}</ul>" if notes else "") + chart


def ablation(run: report_data.Run) -> str:
    """What each token and each operation contributes, where `dvsnas ablate` has run in the folder."""
    replace, retrain = run.ablations["replace"], run.ablations["retrain"]
    parts = [
        _tokens(run, replace, "One token replaced, scored as in the search") if replace else "",
        _tokens(run, retrain, "One token replaced, retrained from scratch") if retrain else "",
        _searches(run.ablations["leave_one_out"], run.masked()) if run.ablations["leave_one_out"] else "",
    ]
    if not any(parts):
        return ""
    words = "Changes of the reward, in hundredths; – where a token is that already, or its space has no such member."
    return "".join(parts) + report_html.note(words)


def _about_masks(content: Mapping[str, Any], masked: Sequence[str]) -> str:
    """What the search must not choose, and what of it replaces nothing as its weights were never trained."""
    left_out = content.get("left_out") or []
    lines = [f"Masked in the search (controller.masked_operations): {_names(masked)}."] if masked else []
    if left_out:
        lines.append(f"Never trained with shared weights, so that nothing is replaced by it: {_names(left_out)}.")
    return report_html.note(report_html.escape(" ".join(lines))) if lines else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(draw.readable, names))


def _points(value: float | None, *, is_signed: bool = True) -> str:
    """A reward or a change of one, in hundredths."""
    return report_html.number(None if value is None else 100 * value, 2, is_signed=is_signed)


def _tokens(run: report_data.Run, content: Mapping[str, Any], title: str) -> str:
    """A row for each replaced token."""
    masked = run.masked()

    def named(name: str) -> str:
        return draw.readable(name) + (", masked" if name in masked else "")

    slots = {"op_a": "operation a", "op_b": "operation b", "agg": "aggregation", "in_a": "input a", "in_b": "input b"}
    rows = []
    for row in content["tokens"]:
        best = f"{_points(row['best'])} ({named(row['best_name'])})" if row["best_name"] else "–"
        name = f"layer {row['layer']}, {slots.get(row['field'], row['field'])}: {named(row['now'])}"
        changes = [_points(row[key]) for key in ("none", "skip", "others")]
        rows.append((report_html.escape(name), [*changes, report_html.escape(best), str(row["count"])]))
    head = ["token", "by none", "by skip", "by another, mean", "best", "variants"]
    whose = "the cell itself"
    if content.get("genotype") and (winner := run.winner()) is not None:
        digest = genotypes.digest(*genotypes.from_dict(content["genotype"]))
        whose = whose if digest == genotypes.digest(*winner) else f"not of this run’s cell but of {digest}, itself"
    title = f"{title}; {whose}: {_points(content['reward'], is_signed=False)}"
    return report_html.table(head, rows, "Ablation of tokens", title=title) + _about_masks(content, masked)


def _searches(content: Mapping[str, Any], masked: Sequence[str]) -> str:
    """A row for each search without an operation."""
    rows = []
    for row in content["searches"]:
        cells = []
        for key in ("best", "mean_last_quarter"):
            change = f" ({_points(row[f'{key}_change'])})" if row["without"] else ""
            cells.append(_points(row[key], is_signed=False) + change)
        whole = "all other operations" if masked else "all operations"
        name = f"without {draw.readable(row['without'])}" if row["without"] else whole
        rows.append((report_html.escape(name), [*cells, str(row["num_diverged"])]))
    head = ["search", "best", "mean of the last quarter", "diverged"]
    title = "Searches without one operation: it is masked, never drawn and never trained"
    table = report_html.table(head, rows, "Searches without one operation", title=title)
    return table + _about_masks(content, masked)
