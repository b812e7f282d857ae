"""The report of a run folder: figures as PNG files and one page that holds them all.

The page has its images inside, loads nothing from a network and has no script. A part whose file is missing is left
out.
"""

from __future__ import annotations

import base64
import html
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.run import figures
from dvsnas_jax.space import draw
from dvsnas_jax.space import genotype as genotypes

PAGE = "report.html"
FIGURES = "figures"
_JSON = ("config.json", "environment.json", "best_genotype.json", "evaluation.json")
_LINES = ("genotypes.jsonl", "metrics.jsonl")
_STRIP = "strip.npz"
_NETWORKS = {
    "static": "static network",
    "cell": "dynamic cell",
    "static_clean": "static, undegraded frames",
    "commonest_class": "always the commonest class",
}


class _Run:
    """What a run folder holds, and where its figures go."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.config, self.environment, self.best, self.evaluation = (_read_json(path / file) for file in _JSON)
        self.genotypes, self.metrics = (_read_lines(path / file) for file in _LINES)
        num_steps = self.config.get("search", {}).get("steps")
        self.searched, self.drawn = figures.split_sources(self.genotypes, num_steps)
        self.written: list[str] = []

    def figure(self, file: str) -> pathlib.Path:
        """The path of a figure that is about to be written."""
        path = self.path / FIGURES / file
        path.parent.mkdir(exist_ok=True)
        self.written.append(str(path))
        return path


def write(workdir: str | pathlib.Path) -> list[str]:
    """Writes the figures and the page of a run.

    Args:
      workdir: the run folder; only `figures/` and `report.html` in it are written.

    Returns:
      The paths written, the page last.

    Raises:
      UserError: it is no run folder, or one of its files cannot be read.
    """
    path = pathlib.Path(workdir)
    known = (*_JSON, *_LINES, f"{FIGURES}/{_STRIP}")
    if not path.is_dir() or not any((path / file).is_file() for file in known):
        raise errors.UserError(f"--workdir: {path} is not the folder of a run (none of {', '.join(known)} is in it)")
    run = _Run(path)
    makers: tuple[Callable[[_Run], str], ...] = (
        _result, _strip, _cell, _search, _operations, _classes, _training, _settings, _provenance,
    )  # fmt: skip
    sections = [section for make in makers if (section := make(run))]
    page = path / PAGE
    page.write_text(_page(path.resolve().name, sections), encoding="utf-8")
    return [*run.written, str(page)]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.UserError(f"{path}: not JSON: {error}; delete the file to have a report without it") from None
    if not isinstance(value, dict):
        raise errors.UserError(f"{path}: needs a JSON object, got {type(value).__name__}; delete the file")
    return value


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file. Nothing is repaired on disk: the run may still be writing."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _scores(run: _Run) -> dict[str, dict[str, Any]]:
    """Network -> its scores, for those that were evaluated."""
    return {name: run.evaluation[name] for name in _NETWORKS if isinstance(run.evaluation.get(name), dict)}


def _rows(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, float], int, bool]]:
    """(metric, network -> value as shown, decimals, is higher better) of every row that the table has."""
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
    for label, get_fn, factor, decimals, is_higher_better in plan:
        values = {name: factor * value for name, score in scores.items() if figures.is_number(value := get_fn(score))}
        if values:
            yield label, values, decimals, is_higher_better


def _number(value: float, decimals: int, *, is_signed: bool = False) -> str:
    """A number with a real minus sign, and no sign on a zero."""
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return ("+" if is_signed and value > 0 else "") + text.replace("-", "−")


def _result(run: _Run) -> str:
    """The headline and the table of all networks."""
    scores = _scores(run)
    rows = list(_rows(scores))
    if not rows:
        return ""
    networks = list(scores)
    is_compared = {"static", "cell"} <= set(scores)
    head = "".join(f"<th>{_NETWORKS[name]}</th>" for name in networks)
    if is_compared:
        head = head.replace(f"<th>{_NETWORKS['cell']}</th>", f"<th>{_NETWORKS['cell']}</th><th>change</th>")
    body = []
    for label, values, decimals, is_higher_better in rows:
        cells = f"<th scope=row>{label}</th>"
        for name in networks:
            cells += f"<td>{_number(values[name], decimals)}</td>" if name in values else "<td>–</td>"
            if name == "cell" and is_compared:
                cells += _change(values, decimals, is_higher_better)
        body.append(f"<tr>{cells}</tr>")
    split, num_frames = run.evaluation.get("split", "?"), run.evaluation.get("num_frames", "?")
    return (
        f"<h2>Result</h2>{_headline(scores)}"
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"<p class=note>Split {_escape(split)}, {_escape(num_frames)} frames. VC<sub>n</sub>: of the pixels whose "
        "label is constant over n frames, the share that is predicted correctly in all of them. Flicker: of the pixels "
        "whose label does not change from one frame to the next, the share whose prediction does.</p>"
    )


def _change(values: Mapping[str, float], decimals: int, is_higher_better: bool) -> str:
    """The table cell of the difference between cell and static network."""
    if not {"static", "cell"} <= set(values):
        return "<td>–</td>"
    difference = round(values["cell"] - values["static"], decimals)
    kind = "same" if difference == 0 else "good" if (difference > 0) == is_higher_better else "bad"
    mark = {"same": "", "good": " ✓", "bad": " ✗"}[kind]
    return f"<td class={kind}>{_number(difference, decimals, is_signed=True)}{mark}</td>"


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


def _strip(run: _Run) -> str:
    """Frames with labels and predictions."""
    path = run.path / FIGURES / _STRIP
    if not path.is_file():
        return ""
    try:
        with np.load(path) as data:
            arrays = {name: data[name] for name in ("frames", "labels", "static", "cell", "colors")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise errors.UserError(f"{path}: cannot be read: {error}; delete it to have a report without it") from None
    notes = {
        name: f"mIoU {100 * score['miou']:.1f} %"
        for name, score in _scores(run).items()
        if figures.is_number(score.get("miou"))
    }
    figure = run.figure("strip.png")
    figures.strip(arrays, _class_names(run), figure, notes=notes)
    words = "Consecutive frames of the evaluation split, their labels, and what the two networks make of them"
    note = "A stretch chosen for a frame that is hard for the static network: an example, not an average."
    return f"<h2>What it looks like</h2>{_image(figure, words, is_wide=True)}<p class=note>{note}</p>"


def _class_names(run: _Run) -> list[str]:
    return [str(name) for name in run.evaluation.get("classes") or []]


def _best(run: _Run) -> tuple[genotypes.Space, np.ndarray] | None:
    """The winner, in the space of its own file."""
    return genotypes.from_dict(run.best, where=str(run.path / "best_genotype.json")) if run.best else None


def _space(run: _Run) -> genotypes.Space | None:
    """The space of the run, None without a config."""
    section = run.config.get("space")
    if not isinstance(section, dict) or not {"inputs", "num_layers"} <= set(section):
        return None
    return genotypes.Space(
        inputs=tuple(section["inputs"]),
        num_layers=int(section["num_layers"]),
        operations=tuple(section.get("operations") or genotypes.OPERATIONS),
        aggregations=tuple(section.get("aggregations") or genotypes.AGGREGATIONS),
    )


def _cell(run: _Run) -> str:
    """The winner as a graph and as text."""
    best = _best(run)
    if best is None:
        return ""
    title = f"The cell that was found ({genotypes.digest(*best)})"
    for suffix in (".svg", ".png"):
        draw.render(*best, run.figure(f"cell{suffix}"), title)
    image = _image(run.path / FIGURES / "cell.png", "The dynamic cell that the search found, as a graph", is_wide=True)
    return f"<h2>The cell</h2>{image}<pre>{_escape(draw.text(*best))}</pre>"


def _search(run: _Run) -> str:
    """Rewards, and in words how the search compares with drawing at random."""
    searched, drawn = run.searched, run.drawn
    if not searched and not drawn:
        return ""
    best = _best(run)
    figure = run.figure("reward.png")
    figures.reward(searched, drawn, figure, best_hash=genotypes.digest(*best) if best else None)
    sentences = []
    if searched:
        last = max(record["step"] for record in searched)
        late = [record["reward"] for record in searched if record["step"] >= 0.75 * last]
        sentences += [f"{len(searched)} candidates were scored; mean reward in the last quarter: {np.mean(late):.3f}."]
    if drawn:
        rewards = [record["reward"] for record in drawn]
        sentences += [
            f"{len(drawn)} uniformly drawn genotypes, scored on the same final shared weights: {np.mean(rewards):.3f} "
            f"± {np.std(rewards):.3f} (standard deviation), the best of them {max(rewards):.3f}."
        ]
    if searched and drawn:
        sentences += ["Rewards also rise because the shared weights are trained on; the random line shows that part."]
    num_lost = len(run.genotypes) - len(searched) - len(drawn)
    if num_lost:
        sentences += [f"{num_lost} without a valid score are left out."]
    image = _image(figure, "Reward of the candidates over the search")
    return f"<h2>The search</h2>{image}<p>{' '.join(sentences)}</p>"


def _operations(run: _Run) -> str:
    """Which operations the policy chose, early and late."""
    space = _space(run)
    if space is None or len(run.searched) < 4:
        return ""
    figure = run.figure("operations.png")
    names = {"operations": space.operations, "aggregations": space.aggregations}
    figures.operations(run.searched, names, figure)
    image = _image(figure, "Shares of the chosen operations in the quarters of the search")
    return f"<h2>What the search chose</h2>{image}"


def _classes(run: _Run) -> str:
    """Intersection over union of every class."""
    names = _class_names(run)
    scores = _scores(run)
    series = {name: scores[name]["iou"] for name in ("static", "cell") if scores.get(name, {}).get("iou")}
    if not names or not series:
        return ""
    figure = run.figure("classes.png")
    figures.classes(names, series, figure)
    return f"<h2>Class by class</h2>{_image(figure, 'Intersection over union of every class')}"


def _training(run: _Run) -> str:
    """Curves of every stage."""
    if not figures.curves(run.metrics):
        return ""
    figure = run.figure("training.png")
    figures.training(run.metrics, figure)
    return f"<h2>Training</h2>{_image(figure, 'Loss and scores over the steps of every stage', is_wide=True)}"


def _settings(run: _Run) -> str:
    """The configuration, folded."""
    if not run.config:
        return ""
    return f"<h2>Configuration</h2><details><summary>every key</summary>{_listing(run.config)}</details>"


def _provenance(run: _Run) -> str:
    """Versions, devices, commit."""
    return f"<footer><h2>Provenance</h2>{_listing(run.environment)}</footer>" if run.environment else ""


def _listing(values: Mapping[str, Any]) -> str:
    """A nested dict as a table of dotted keys."""
    rows = [f"<tr><th scope=row>{_escape(key)}</th><td>{_escape(value)}</td></tr>" for key, value in _flat(values)]
    return f"<div class=scroll><table class=keys><tbody>{''.join(rows)}</tbody></table></div>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        else:
            yield f"{prefix}{key}", "–" if value is None else str(value)


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _image(path: pathlib.Path, words: str, *, is_wide: bool = False) -> str:
    """The image itself in the page; a wide one scrolls sideways on a narrow screen."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = "figure wide" if is_wide else "figure"
    return f'<div class="{kind}"><img alt="{_escape(words)}" src="data:image/png;base64,{data}"></div>'


_STYLE = """
:root{color-scheme:light dark;--ink:#20242b;--soft:#5a616b;--line:#dde1e7;--paper:#fff;--tint:#f4f6f8;
--good:#00704f;--bad:#b34700}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaee;--soft:#a4abb6;--line:#3a404a;--paper:#15181d;--tint:#1f242b;
--good:#3ccf9f;--bad:#ff9a52}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1.2rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0 0}h2{font-size:1.2rem;margin:2.4rem 0 .7rem}
.lead{font-size:1.15rem}.note{color:var(--soft);font-size:.88rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.42rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child{text-align:left}thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
tbody th{font-weight:500}.good{color:var(--good);font-weight:700}.bad{color:var(--bad);font-weight:700}
.keys th,.keys td{text-align:left;white-space:normal;overflow-wrap:anywhere;font-size:.85rem;padding:.22rem .7rem}
.figure{background:#fff;border:1px solid var(--line);border-radius:.6rem;padding:.5rem;overflow-x:auto}
.figure img{display:block;width:100%;height:auto}.wide img{min-width:46rem}
pre{background:var(--tint);border-radius:.6rem;padding:.8rem 1rem;overflow-x:auto;font-size:.85rem}
summary{cursor:pointer;color:var(--soft)}footer{color:var(--soft)}
"""


def _page(name: str, sections: Sequence[str]) -> str:
    """The whole page."""
    title = f"Dynamic cell search: {_escape(name)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
