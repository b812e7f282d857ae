"""What a reproduction amounts to: a table a mode with all controls in it, and what the searched cell gains over each.

A table is the content of `compare.json` of the part's cells, with rows added; nothing is measured here.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.core.files import workdir
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.space import zoo
from dvsnas_jax.studies import compare_rows
from dvsnas_jax.studies.reproduce import stages

STATIC, STATIC_ON = compare_rows.STATIC, "static network, trained on"
CLEAN, COMMONEST = "static network, undegraded frames", "always the commonest class"
BASELINES = {"refine": "zoo:ema", "propagate": "zoo:hold"}
"""Of each mode, what needs no training."""
_FOUND = re.compile(r"(?P<strategy>[a-z]+)_(?P<number>\d+)/derived_\d+\.json$")
_WITHOUT = re.compile(rf"{stages.WITHOUT}_(?P<strategy>[a-z]+)_(?P<number>\d+)\.json$")
_NUMBERS = ("miou", "fwiou", "accuracy", "class_accuracy", "flicker", "changes_followed", "flow_consistency")
Row = Mapping[str, Any]


def of(place: stages.Place) -> dict[str, Any]:
    """The table of a finished part, as `compare_report` shows one; besides `headline`, the row that it is about."""
    result = dict(place.folder(stages.CELLS).read_json("compare.json"))
    rows = [_named(row) for row in result["rows"]]
    static = rows[0]
    more = _alone(place, stages.FOUND, static)
    searched = [row for row in rows[1:] if _is_found(row)]
    means = [row for strategy in place.recipe.strategies for row in _mean(strategy, searched)]
    designed = sorted((row for row in rows[1:] if not _is_found(row)), key=_place)
    controls: list[Row] = []
    if place.part.mode == zoo.REFINE:
        more = [*_alone(place, stages.STATIC_ON, static), *more]
        controls = _without(place)
    result["rows"] = [static, *more, *designed, *searched, *means, *controls]
    result["commands"] = []
    first = place.recipe.strategies[0]
    own = [row["name"] for row in (*means, *searched) if first in row.get("strategies", ())]
    result["headline"] = own[0]
    return result


def _named(row: Row) -> dict[str, Any]:
    """A row of `compare.json` with words in place of paths; `strategies`: whose searches found its cell."""
    names, strategies = [], []
    for name in row.get("names", [row["name"]]):
        match = _FOUND.search(name)
        names.append(_searched(match) if match else name)
        strategies += [match["strategy"]] if match else []
    unique = list(dict.fromkeys(names))
    return {**row, "name": " = ".join(unique), "names": unique, "strategies": list(dict.fromkeys(strategies))}


def _searched(match: re.Match[str]) -> str:
    return f"searched by {match['strategy']}, search {match['number']}"


def _is_found(row: Row) -> bool:
    return bool(row["strategies"]) and not any(name.startswith(zoo.PREFIX) for name in row["names"])


def _place(row: Row) -> tuple[bool, int]:
    """Baselines first, then in the order of the zoo."""
    titles = [member.title for member in zoo.TABLE.values()]
    return row["name"] not in BASELINES.values(), titles.index(row["names"][0]) if row["names"][0] in titles else 0


def _mean(strategy: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The row of a strategy over its searches, each counting as the mean of its seeds; none for a single search."""
    own = [row for row in rows if strategy in row["strategies"]]
    if len(own) < 2:
        return []
    found: dict[str, Any] = {"name": f"searched by {strategy}, mean of {len(own)} searches", "strategies": [strategy]}
    found |= {"names": [found["name"]], "source": "", "num_seeds": len(own), "num_ok": len(own)}
    keys = {key for row in own for key, value in row.items() if isinstance(value, Mapping) and "mean" in value}
    means = {key: [row[key]["mean"] for row in own if row.get(key)] for key in sorted(keys)}
    return [found | {key: compare_rows.statistics_of(values) for key, values in means.items()}]


def _without(place: stages.Place) -> list[Row]:
    """The found cells without history."""
    rows = place.folder(stages.WITHOUT).read_json("compare.json")["rows"][1:]
    named: list[Row] = []
    for row in rows:
        matches = [_WITHOUT.search(name) for name in row.get("names", [row["name"]])]
        names = list(dict.fromkeys(f"{_searched(match)}, without history" for match in matches if match))
        named.append({**row, "name": " = ".join(names), "names": names, "strategies": []})
    return named


def _alone(place: stages.Place, folder: str, static: Row) -> list[dict[str, Any]]:
    """What stands in `evaluation.json` of a folder beside a cell; what costs as much as the static network has its
    price."""
    split = place.configs.cells.evaluate.split
    scores = place.folder(folder).read_json(evaluation.RESULT if split == "val" else f"evaluation_{split}.json")
    keys = (("static", STATIC_ON),) if folder == stages.STATIC_ON else (
        ("static_clean", CLEAN), ("commonest_class", COMMONEST))  # fmt: skip
    rows = []
    for key, name in keys:
        found = scores.get(key)
        if not found:
            continue
        numbers = {each: found.get(each) for each in _NUMBERS}
        numbers |= {f"vc_{n}": value for n, value in found["vc"].items()}
        row: dict[str, Any] = {"name": name, "names": [name], "source": "", "num_seeds": 1, "num_ok": 1}
        row |= {each: compare_rows.statistics_of([value]) for each, value in numbers.items()}
        prices = ("parameters", "macs", "ms", "time_ratio", "key_share") if folder == stages.STATIC_ON else ()
        rows.append(row | {price: static.get(price) for price in prices})
    return rows


def read_texts(place: stages.Place) -> dict[str, str]:
    """The Markdown of the searches and of the ablation."""
    searched = place.searched(*next(iter(place.first())))
    return {
        "searches": (place.folder(stages.SEARCH).path / "strategies.md").read_text(encoding="utf-8").strip(),
        "ablation": (searched.path / "ablation_replace.md").read_text(encoding="utf-8").strip(),
    }


def verdict(result: Mapping[str, Any]) -> list[str]:
    """What the searched cell gains over each control, a sentence; the first says so where a baseline is not beaten."""
    rows = {row["name"]: row for row in result["rows"]}
    own = rows[result["headline"]]
    if not own.get("miou"):
        return [f"{result['mode']}: no training of the searched cell ended well"]
    others = [name for name in rows if name not in (CLEAN, COMMONEST, own["name"]) and rows[name].get("miou")]
    of_zoo = [name for name in others if name.startswith(zoo.PREFIX)]
    best = max(of_zoo, key=lambda name: _miou(rows[name]), default="")
    without = [name for name in others if name.endswith("without history")]
    baseline = BASELINES[result["mode"]]
    controls = [name for name in (baseline, STATIC, STATIC_ON, *without, best) if name in others]
    lines = [f"{own['name']}: {_scores(own)}"]
    for name in dict.fromkeys(controls):
        difference, spread = gain(own, rows[name])
        word = "above" if difference > spread else "below" if difference < -spread else "within the spread of"
        note = f", the best of the zoo: {_scores(rows[name])}" if name == best else f": {_scores(rows[name])}"
        lines.append(f"{100 * difference:+.1f} mIoU, {word} {name}{note}")
    if baseline in others and gain(own, rows[baseline])[0] <= 0:
        lines.insert(0, f"does not beat {baseline}, which needs no training")
    return [f"{result['mode']}: {lines[0]}", *lines[1:]]


def gain(row: Row, other: Row) -> tuple[float, float]:
    """The difference in mIoU, and the larger standard deviation over seeds of the two."""
    spread = max((each["miou"]["std"] or 0.0 for each in (row, other)), default=0.0)
    return _miou(row) - _miou(other), spread


def _miou(row: Row) -> float:
    return float(row["miou"]["mean"])


def _scores(row: Row) -> str:
    """mIoU with its spread, and what says how steady it is."""
    shown = [f"mIoU {_percent(row['miou'])}", f"flicker {_percent(row['flicker'])}"]
    vc = [key for key in row if key.startswith("vc_") and row[key]]
    return ", ".join([*shown, *(f"{key.upper()} {_percent(row[key])}" for key in vc[:1])])


def _percent(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if value["std"] else "")


def spread_of(rows: Sequence[Row], key: str) -> float | None:
    """What a figure varies by where it has one seed itself: of those of a column with several, the mean deviation."""
    known = [row[key]["std"] for row in rows if row.get(key) and row[key]["std"] is not None]
    return math.sqrt(statistics.fmean(value**2 for value in known)) if known else None


def environment(folder: workdir.Workdir) -> dict[str, Any]:
    """Commit and devices of the first start of a run folder."""
    found = folder.read_json(workdir.ENVIRONMENT)
    return {key: found.get(key) for key in ("git_commit", "devices", "versions")}
