"""The figures of record: what a finished reproduction found, in the package, and a later one's beside them."""

from __future__ import annotations

import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dvsnas_jax.core import cores, errors
from dvsnas_jax.core.files import json_files, json_text, output_files, workdir
from dvsnas_jax.studies import study_report
from dvsnas_jax.studies.reproduce import tables

PACKAGED = pathlib.Path(__file__).with_name("record.json")
METRICS = ("miou", "fwiou", "flicker")
"""And all `vc_N`: what is compared. Times are of a machine, and multiply-adds of the cell that happens to be found."""
SAME, MOVED, UNKNOWN, NEW, GONE = "same", "moved", "no spread known", "new", "gone"


def machine() -> str:
    """What the program runs on, for people."""
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{cores.count()} cores of {models[0] if models else name}"


def read(path: pathlib.Path, key: str) -> dict[str, Any] | None:
    """What a file of record holds of a recipe; None where nothing is of record. A UserError for a broken file."""
    if path == PACKAGED and not path.is_file():
        return None
    found = json_files.read(path, name="--against")
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise errors.UserError(f"--against: {path}: is no file of record; give one that `--record` wrote")
    entry = found.get(key)
    if entry is not None and not isinstance(entry.get("figures"), dict):
        raise errors.UserError(f"--against: {path}: {key} has no figures; give a file that `--record` wrote")
    return entry


def write(path: pathlib.Path, key: str, content: Mapping[str, Any]) -> None:
    """Puts a finished reproduction in the place of what a file holds of its recipe; the others stay."""
    output_files.check_file(path, flag="--record", suffixes=(".json",))
    found = json_files.read(path, name="--record") if path.is_file() else {}
    found[key] = entry(content)
    output_files.make_folder(path.parent, "--record")
    path.write_text(json_text.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")


def entry(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of a finished reproduction: who made it, the seconds of its stages, and mean, std and count of each figure."""
    about = {key: content[key] for key in ("command", "commit", "machine", "num_seeds", "num_searches", "overrides")}
    figures = {mode: figures_of(part["rows"]) for mode, part in content["parts"].items()}
    return {**about, "seconds": content["seconds"], "figures": figures}


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name of the row -> metric -> mean, std (None of one) and count."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        keys = [key for key in row if key in METRICS or (key.startswith("vc_") and key[3:].isdigit())]
        found[row["name"]] = {
            key: {"mean": row[key]["mean"], "std": row[key]["std"], "count": len(row[key]["values"])}
            for key in keys
            if row[key]
        }
    return found


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each figure of two `figures` (mode -> row -> metric) beside each other, in the order of the new ones.

    Moved has what differs by more than its spread: the largest of both standard deviations over seeds and of the usual
    one, that of the column. So a figure without seeds, that of the static network, is held against what trainings vary
    by, and two seeds that happen to agree make nobody precise.
    """
    found = []
    for mode, rows in {**before, **now}.items():
        new, old = now.get(mode, {}), before.get(mode, {})
        for name in dict.fromkeys([*new, *old]):
            for metric in dict.fromkeys([*new.get(name, {}), *old.get(name, {})]):
                pair = new.get(name, {}).get(metric), old.get(name, {}).get(metric)
                found.append({"mode": mode, "row": name, "metric": metric, **_judged(pair, (new, old), metric)})
        del rows
    return found


def _judged(
    pair: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None], sides: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any]:
    """`now`, `record`, `spread` and `status` of a figure."""
    own, other = pair
    values = {"now": own["mean"] if own else None, "record": other["mean"] if other else None, "spread": None}
    if own is None or other is None:
        return {**values, "status": GONE if own is None else NEW}
    usual = [tables.spread_of(list(rows.values()), metric) for rows in sides]
    known = [value for value in (own["std"], other["std"], *usual) if value is not None]
    if not known:
        return {**values, "status": SAME if own["mean"] == other["mean"] else UNKNOWN}
    spread = max(known)
    is_moved = abs(own["mean"] - other["mean"]) > spread
    return {**values, "spread": spread, "status": MOVED if is_moved else SAME}


def markdown(changes: Sequence[Mapping[str, Any]], about: Mapping[str, Any] | None) -> list[str]:
    """What moved, as lines."""
    if about is None:
        return ["Nothing is of record for it yet; `--record` makes this run the one of record."]
    made = f"Of record: commit {about['commit']}, {about['machine']}, `{about['command']}`."
    counts = {status: sum(each["status"] == status for each in changes) for status in (SAME, MOVED, UNKNOWN, NEW, GONE)}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines = [made, "", f"{len(changes)} figures: {said}. Moved is what differs by more than the spread over seeds."]
    rows = [
        [each["mode"], each["row"], each["metric"], *(_percent(each[key]) for key in ("record", "now", "spread")),
         each["status"]]
        for each in changes
        if each["status"] != SAME
    ]  # fmt: skip
    head = ["mode", "row", "figure", "of record", "now", "spread", ""]
    return [*lines, *(["", *study_report.markdown(head, rows)] if rows else [])]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def about_run(folders: Sequence[workdir.Workdir]) -> dict[str, Any]:
    """The commits that a reproduction's folders were begun with, as one text, and the machine."""
    commits = [tables.environment(folder)["git_commit"] or "unknown" for folder in folders]
    return {"commit": ", ".join(dict.fromkeys(commits)), "machine": machine()}
