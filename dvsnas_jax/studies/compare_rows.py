"""The rows of a comparison: all finished jobs of a folder, a row a genotype, whichever commands made them.

A job is the file `jobs/DIGEST_seedNNNN.json`, in propagate mode `jobs/DIGEST_SCHEDULE_seedNNNN.json`, of a baseline
with `_baseline` before the seed. What a genotype was called is in `compare.jsonl`, a line for each command; jobs of
earlier versions, without such a line, hold a name themselves. Nothing is written here.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.core import errors
from dvsnas_jax.evaluate import timing
from dvsnas_jax.space import zoo

NAME, JOBS, LOG = "compare", "jobs", "compare.jsonl"
STATIC = "static network"
SCORES = ("miou", "fwiou", "accuracy", "class_accuracy", "flicker", "changes_followed", "flow_consistency")
_FILE = re.compile(r"(?P<key>[0-9a-f]{12}(?:_[a-z]+)*)_seed(?P<seed>\d{4,})\.json")

Record = Mapping[str, Any]
Jobs = Mapping[str, Mapping[int, Record]]
"""Key of a genotype -> seed -> content of its file."""


def read_jobs(folder: pathlib.Path) -> dict[str, dict[int, Record]]:
    """The finished jobs of a run folder; other files in `jobs` are passed over. A UserError where one is broken."""
    found: dict[str, dict[int, Record]] = {}
    for path in sorted((folder / JOBS).glob("*.json")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            is_whole = isinstance(record, dict) and {"name", "status"} <= set(record)
        except ValueError:
            is_whole = False
        if not is_whole:
            raise errors.UserError(f"{path}: is not the file of a finished job; delete it, compare makes it anew")
        found.setdefault(match["key"], {})[int(match["seed"])] = record
    return found


def collect(config: Mapping[str, Any], jobs: Jobs, log: Sequence[Record]) -> dict[str, Any]:
    """The content of `compare.json`, from all finished `jobs` of a folder and the lines of its `compare.jsonl`.

    What was measured on, `seeds` (all there are), the `commands` that made the jobs, and `rows`, the static network
    first, then the genotypes in the order in which they were first asked for. `config` may be what `config.json` holds.
    """
    names = _names(jobs, log)
    commands = _commands(jobs, log)
    good = {key: [record for _, record in sorted(jobs[key].items()) if record["status"] == "ok"] for key in names}
    scored = [record for records in good.values() for record in records]
    seeds = sorted({seed for row in jobs.values() for seed in row})
    times = [record["times"]["static"]["ms_per_frame"] for record in scored if "times" in record]
    mean_time = statistics.fmean(times) if times else None
    is_refining = config["space"]["mode"] == "refine"
    # The static network is the same in all jobs: its scores are those of one, its times of all.
    one = {"name": STATIC, "source": "", "num_seeds": 1, "num_ok": min(len(scored), 1), "num_wanted": 1, "commands": []}
    rows: list[dict[str, Any]] = [{**one, **summarise(scored[:1], "static"), "ms": statistics_of(times)}]
    for key, label in _labels(names).items():
        made = {commands.index(record["command"]) + 1 for record in jobs[key].values() if record.get("command")}
        rows.append(
            {
                "name": label,
                "key": key,
                "names": names[key],
                "source": _source(names[key]),
                "seeds": sorted(jobs[key]),
                "num_seeds": len(jobs[key]),
                "num_ok": len(good[key]),
                "num_wanted": len(seeds),
                "commands": sorted(made),
                **summarise(good[key], "cell", static_ms=mean_time, is_refining=is_refining),
            }
        )
    return {
        "mode": config["space"]["mode"],
        "interval": config["schedule"]["interval"],
        "split": config["evaluate"]["split"],
        "size": config["evaluate"].get("size", "frame"),  # runs of earlier versions have no such key
        "num_frames": scored[0]["num_frames"] if scored else 0,
        "train_steps": config["train"]["steps"],
        "seeds": seeds,
        "vc_frames": list(config["evaluate"]["vc_frames"]),
        "commands": commands,
        "rows": rows,
    }


def _commands(jobs: Jobs, log: Sequence[Record]) -> list[str]:
    """The commands that made the jobs, oldest first; jobs of earlier versions know none."""
    order = [line.get("command") for line in log]
    made = {record["command"] for records in jobs.values() for record in records.values() if record.get("command")}
    return sorted(made, key=lambda command: (order.index(command) if command in order else -1, command))


def _names(jobs: Jobs, log: Sequence[Record]) -> dict[str, list[str]]:
    """What each genotype was called, a member of the zoo first; in the order of the rows."""
    logged: dict[str, list[str]] = {}
    for line in log:
        for name, key in line.get("genotypes", {}).items():
            logged.setdefault(key, []).append(name)
    # Jobs that no line speaks of were there before there were lines.
    older = [key for key in jobs if key not in logged]
    found = {}
    for key in [*sorted(older, key=lambda key: _place(next(iter(jobs[key].values()))["name"])), *logged]:
        if key in jobs:
            every = [*logged.get(key, []), *(record["name"] for record in jobs[key].values())]
            first = dict.fromkeys(sorted(every, key=lambda name: not name.startswith(zoo.PREFIX)))
            # One file under two spellings of its path has one name, the first.
            paths = {os.path.abspath(name): name for name in reversed(first) if not name.startswith(zoo.PREFIX)}
            found[key] = [name for name in first if name.startswith(zoo.PREFIX) or name in paths.values()]
    return found


def _place(name: str) -> tuple[int, str]:
    """Members of the zoo in its order, then files by name."""
    titles = [member.title for member in zoo.TABLE.values()]
    return (titles.index(name) if name in titles else len(titles)), name


def _labels(names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Key -> name of the row: all that the genotype was called; with its digest where another was called the same."""
    counts = collections.Counter(name for every in names.values() for name in every)
    return {
        key: " = ".join(every) + (f" ({key})" if any(counts[name] > 1 for name in every) else "")
        for key, every in names.items()
    }


def _source(names: Sequence[str]) -> str:
    """Where a hand-designed cell comes from."""
    known = [zoo.TABLE[short].source for name in names if (short := name.removeprefix(zoo.PREFIX)) in zoo.TABLE]
    return known[0] if known else ""


def summarise(
    records: Sequence[Record], part: str, *, static_ms: float | None = None, is_refining: bool = False
) -> dict[str, Any]:
    """Mean and standard deviation over jobs of every number of "static" or "cell"; None where no job has it.

    Times of jobs are minutes apart, and the machine drifts: what holds is the ratio to the static network's time, which
    was taken in turns. So a cell's milliseconds are its ratio times `static_ms`, the static network's over all jobs.
    """
    columns: dict[str, list[Any]] = {}
    noises = []
    for record in records:
        found = record[part]
        # Jobs of earlier versions lack some.
        numbers = {name: found.get(name) for name in SCORES} | {"key_share": found.get("key_share", 1.0)}
        numbers |= {f"vc_{n}": value for n, value in found["vc"].items()} | record["cost"][part]
        numbers |= {f"vspw_vc_{n}": value for n, value in found.get("vspw_vc", {}).items()}
        numbers |= {f"age_{age}": row["miou"] for age, row in (found.get("by_age") or {}).items()}
        numbers |= {"ms": None, "time_ratio": None}
        if "times" in record:
            own, times = record["times"]["static"]["ms_per_frame"], record["times"][part]
            change = timing.change(record["times"]["static"], times, is_refining=is_refining)
            noises.append(change.noise / own if change else 0.0)
            scale = (static_ms or own) / own
            # What holds the static network takes no less time than it.
            numbers["time_ratio"] = max(times["ms_per_frame"] / own, 1.0 if is_refining else 0.0)
            numbers["ms"] = numbers["time_ratio"] * own * scale
            kinds = {kind: row["median"] for kind, row in times["latency"].items() if kind != "all"}
            numbers |= {f"ms_{kind}": median * scale for kind, median in kinds.items()}
        for name, value in numbers.items():
            columns.setdefault(name, []).append(value)
    row = {name: statistics_of(values) for name, values in columns.items()}
    if part == "cell" and row.get("time_ratio"):
        noise = statistics.fmean(noises) if noises else 0.0
        row["time_ratio"]["noise"] = noise  # type: ignore[index]
        row["ms"]["noise"] = noise * (static_ms or 0.0)  # type: ignore[index]
    return row


def statistics_of(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation (None of a single one) and the known values themselves; None where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "std": deviation, "values": known}
