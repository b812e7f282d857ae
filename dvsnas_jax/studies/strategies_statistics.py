"""What many searches of a strategy amount to: on a table, in made-up worlds, or for real.

A strategy is judged by the mean reward of the cells it evaluates, not by the single noisy one that it saw. What it
evaluates is one question, which of that is chosen in the end another: see `final_choice`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from dvsnas_jax.space import encoding
from dvsnas_jax.studies import final_choice, made_up_rewards, strategies_replay
from dvsnas_jax.studies import table as table_lib

NUM_BOOTSTRAPS = 1000
TOP_SHARE = 0.01
MIN_TRAININGS = 2
"""Of a cell, behind what it is worth, for it to be the best one."""
COMPARED = ("last_quarter", "finished", "retrained", "unseen")
WHATS = ("search", "retrain", "alone")
"""Lines of the log of real searches: a search with its rewards, a derived cell retrained, a probe trained alone."""


def interval(
    values: np.ndarray | Sequence[float], statistic_fn: Callable[..., Any] = np.mean, *, seed: int = 0
) -> dict[str, float]:
    """A statistic of independent runs f64 [R] with its bootstrapped 95 % interval (Efron 1979, percentiles)."""
    data = np.asarray(values, np.float64)
    if not data.size:
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    drawn = np.random.default_rng(seed).integers(0, data.size, (NUM_BOOTSTRAPS, data.size))
    low, high = np.quantile(statistic_fn(data[drawn], axis=1), (0.025, 0.975))
    return {"value": float(statistic_fn(data, axis=0)), "low": float(low), "high": float(high)}


def ratio(
    first: np.ndarray | Sequence[float], second: np.ndarray | Sequence[float], *, seed: int = 0
) -> dict[str, float]:
    """The median of some runs by that of others, independent ones, with its bootstrapped 95 % interval."""
    rng, drawn = np.random.default_rng(seed), []
    for values in (np.asarray(first, np.float64), np.asarray(second, np.float64)):
        rows = rng.integers(0, values.size, (NUM_BOOTSTRAPS, values.size))
        drawn.append((np.median(values), np.median(values[rows], axis=1)))
    (above, above_drawn), (below, below_drawn) = drawn
    with np.errstate(divide="ignore", invalid="ignore"):  # a median of 0 gives an end that is infinite
        ratios = np.nan_to_num(above_drawn / below_drawn, nan=1.0, posinf=math.inf)
    low, high = np.quantile(ratios, (0.025, 0.975), method="inverted_cdf")
    return {"value": float(above / below), "low": float(low), "high": float(high)}


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of the finite values, nan where there are none, or one; see `half_width`."""
    data = np.asarray([value for value in values if math.isfinite(value)], np.float64)
    error = float(data.std(ddof=1) / math.sqrt(len(data))) if len(data) > 1 else math.nan
    mean = float(data.mean()) if len(data) else math.nan
    return {"mean": mean, "error": error, "count": len(data), "half_width": half_width(error, len(data) - 1)}


def half_width(error: Any, freedom: float) -> Any:
    """Of a 95 % interval of a mean of a few values, from its standard error and degrees of freedom (Student's t)."""
    return error * float(stats.t.ppf(0.975, freedom)) if freedom > 0 else math.nan


def kendall(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Kendall's tau-b of the pairs in which both have a value; nan where there are fewer than two."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if a is not None and b is not None]
    return float(stats.kendalltau(*zip(*pairs, strict=True)).statistic) if len(pairs) > 1 else math.nan


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Rewards as f64 [N], nan where there is none."""
    return np.asarray([math.nan if value is None else value for value in values], np.float64)


def finite_mean(values: np.ndarray) -> float:
    """Mean of the finite values, nan where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def incumbents(rewards: np.ndarray) -> np.ndarray:
    """Which evaluation was the best so far by the rewards that were seen: f64 [R, E] to i32 [R, E], -1 before any."""
    known = np.where(np.isfinite(rewards), rewards, -math.inf)
    best = np.maximum.accumulate(known, axis=1)
    before = np.concatenate([np.full((len(known), 1), -math.inf), best[:, :-1]], axis=1)
    places = np.where(known > before, np.arange(known.shape[1]), -1)
    return np.maximum.accumulate(places, axis=1).astype(np.int32)


def _curve(values: np.ndarray) -> dict[str, list[float]]:
    """Mean over runs, and its standard error, after every evaluation; f64 [R, E]."""
    error = values.std(axis=0) / math.sqrt(max(len(values) - 1, 1))
    return {"mean": values.mean(axis=0).tolist(), "error": error.tolist()}


def ends(
    table: table_lib.Table, runs: strategies_replay.Runs, settings: strategies_replay.Settings
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The cells that runs end with, and all that they evaluated, for each of `final_choice.CHOICES`.

    Chosen rows: i32 [R], -1 where nothing was seen; evaluated ones: i32 [R, E]. Repeats take the place of the last
    evaluations: the budget is the same.
    """
    encoder = encoding.Encoder(table.space)
    # A log that answers repeats tells nothing new.
    num_repeated = 0 if settings.is_cached else round(final_choice.REPEATED * settings.budget)
    found: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in final_choice.CHOICES}
    for run, (rows, rewards) in enumerate(zip(runs.rows, runs.rewards, strict=True)):
        noise = np.random.default_rng((settings.seed, 2, run))

        def draw(row: int, noise: np.random.Generator = noise) -> float:
            return table.draw(row, settings.training_seeds, noise.random())

        kept = slice(settings.budget - num_repeated)
        repeated = final_choice.repeat(encoder, table, (rows[kept], rewards[kept]), num_repeated, draw)
        evaluated = dict(zip(final_choice.CHOICES, ((rows, rewards), (rows, rewards), repeated), strict=True))
        for name, (own_rows, own_rewards) in evaluated.items():
            if name == "reward":
                place = final_choice.by_reward(own_rewards)
            else:
                place = final_choice.by_posterior(encoder, table.cells[own_rows], own_rewards)
            padding = np.full(max(0, settings.budget - len(own_rows)), -1, np.int32)
            found[name].append((int(own_rows[place]) if place >= 0 else -1, np.concatenate([own_rows, padding])))
    return {
        name: (np.asarray([row for row, _ in values], np.int32), np.stack([rows for _, rows in values]))
        for name, values in found.items()
    }


def top_rows(quality: np.ndarray, share: float = TOP_SHARE) -> np.ndarray:
    """Whether a row is among the best `share` of all, at least one: bool [M]."""
    order = np.argsort(-quality, kind="stable")
    is_top = np.zeros(len(quality), bool)
    is_top[order[: max(1, int(share * len(quality)))]] = True
    return is_top


def summarize_table(
    table: table_lib.Table, runs: strategies_replay.Runs, settings: strategies_replay.Settings
) -> dict[str, Any]:
    """What many runs of one strategy on a table amount to, each `{value, low, high}` an interval over runs.

    `choices`: how it is chosen (see `final_choice.CHOICES`) -> `regrets` of the runs (what the best cell of the table
    is worth less what the chosen one is: of trainings that no run has seen), `regret_median`, `regret_mean`,
    `chosen_top` (share of runs whose choice is a top cell), `seen_top` (share of runs that evaluated one).

    Of the strategy alone: `seen_top`, `last_quarter` (mean quality of the last quarter of the evaluations), `distinct`
    (share of the evaluations that were of a new cell), the `curve` of the regret after every evaluation, by reward,
    `seconds_per_run`, `drawn_per_run`.
    """
    quality, num_trainings = table.worth(settings.training_seeds)
    ranked = surely_known(quality, num_trainings)
    known = np.append(quality, -np.inf)  # the row of a run that ended early
    best = incumbents(runs.rewards)
    rows = np.where(best >= 0, np.take_along_axis(runs.rows, np.maximum(best, 0), axis=1), -1)
    # Before anything was seen the choice is blind: a cell of mean quality.
    blind = quality[np.isfinite(quality)].mean()
    regret = ranked.max() - np.where(rows >= 0, known[rows], blind)
    is_top = np.append(top_rows(ranked), False)
    late = runs.rows[:, -max(1, settings.budget // 4) :]
    by_choice = {}
    for choice, (end, evaluated) in ends(table, runs, settings).items():
        lost = ranked.max() - np.where(end >= 0, known[end], blind)
        by_choice[choice] = {
            "regrets": lost.tolist(),
            "regret_median": interval(lost, np.median),
            "regret_mean": interval(lost),
            "chosen_top": interval(is_top[end].astype(np.float64)),
            "seen_top": interval(is_top[evaluated].any(axis=1).astype(np.float64)),
        }
    distinct = np.array([len(set(row[row >= 0].tolist())) for row in runs.rows]) / settings.budget
    middle = {
        "median": np.median(regret, axis=0).tolist(),
        "quartiles": np.quantile(regret, (0.25, 0.75), axis=0).tolist(),
    }
    return {
        "choices": by_choice,
        "seen_top": interval(is_top[runs.rows].any(axis=1).astype(np.float64)),
        "last_quarter": interval(_row_means(np.where(late >= 0, known[late], np.nan))),
        "distinct": interval(distinct),
        "curve": {**_curve(regret), **middle},
        "seconds_per_run": runs.seconds / settings.num_runs,
        "drawn_per_run": float(runs.num_drawn.mean()),
    }


def surely_known(quality: np.ndarray, num_trainings: np.ndarray) -> np.ndarray:
    """What cells are worth, f64 [M], -inf for those that one training says it of: the best of many is a lucky one.

    All, where the others are too few to hold the top cells.
    """
    is_known = num_trainings >= MIN_TRAININGS
    return np.where(is_known, quality, -np.inf) if is_known.sum() >= max(2, TOP_SHARE * len(quality)) else quality


def disjointness(table: table_lib.Table, seeds: Sequence[int]) -> dict[str, int]:
    """How far rewards and worths come from different trainings, at least two each among the better half.

    `num_same`: cells with one training, which is both; `num_few`: of the better half (of `num_better`), those of which
    a half has fewer than `MIN_TRAININGS`; `num_known`: cells whose worth is of so many.
    """
    quality, num_trainings = table.worth(seeds)
    is_better, is_known = top_rows(quality, 0.5), num_trainings >= MIN_TRAININGS
    num_all = np.minimum(table.num_trainings, len(seeds))
    is_few = is_better & (num_all // 2 < MIN_TRAININGS)
    counts = {"num_same": num_trainings == 0, "num_few": is_few, "num_better": is_better, "num_known": is_known}
    return {name: int(rows.sum()) for name, rows in counts.items()}


def _row_means(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of each row that has one."""
    counts = np.isfinite(values).sum(axis=1)
    sums = np.where(np.isfinite(values), values, 0.0).sum(axis=1)
    return (sums / np.maximum(counts, 1))[counts > 0]


def verdict(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The best pair of strategy and choice by median regret (by mean regret among equals), and what each pair leaves.

    `best`, `order`: pairs `(strategy, choice)`; `regret_by_random`: strategy -> choice -> its median regret as a share
    of that of `random` with the same choice, `{value, low, high}`; `regret_by_plain_random`: of that of `random` by
    reward.
    """
    pairs = {(name, choice): found for name in results for choice, found in results[name]["choices"].items()}
    keys = ("regret_median", "regret_mean")
    order = sorted(pairs, key=lambda pair: tuple(pairs[pair][key]["value"] for key in keys))

    def ratios(base_fn: Callable[[str], str]) -> dict[str, dict[str, dict[str, float]]]:
        found: dict[str, dict[str, dict[str, float]]] = {}
        for (name, choice), value in pairs.items():
            base = pairs.get(("random", base_fn(choice)))
            if base and base["regret_median"]["value"] > 0 and (name, choice) != ("random", base_fn(choice)):
                found.setdefault(name, {})[choice] = ratio(value["regrets"], base["regrets"])
        return found

    return {
        "best": list(order[0]),
        "order": [list(pair) for pair in order],
        "regret_by_random": ratios(lambda choice: choice),
        "regret_by_plain_random": ratios(lambda choice: final_choice.CHOICES[0]),
    }


def summarize_worlds(
    worlds: Sequence[made_up_rewards.World], runs: Sequence[strategies_replay.Runs], num_top: int = 5
) -> dict[str, Any]:
    """What one run of a strategy in each of many made-up worlds amounts to, in standard deviations of random cells.

    `last_quarter`: mean quality of the last quarter of the evaluations; `top`: of the `num_top` distinct cells of the
    highest rewards; `best`: of the one; `distinct`: share of the evaluations that were of a new cell; each `{value,
    low, high}`, an interval over worlds; `curve`: mean quality of the cell of the highest reward so far and its
    standard error, after every evaluation; `seconds_per_run`.
    """
    late, top, best, distinct, curves = [], [], [], [], []
    for world, run in zip(worlds, runs, strict=True):
        rows, rewards = run.rows[0][run.rows[0] >= 0], run.rewards[0][run.rows[0] >= 0]
        values = world.quality()
        order = list(dict.fromkeys(rows[np.argsort(-rewards, kind="stable")].tolist()))
        late.append(values[rows[-max(1, len(rows) // 4) :]].mean())
        top.append(values[order[:num_top]].mean())
        best.append(values[order[0]])
        distinct.append(len(order) / len(rows))
        curves.append(values[run.rows[0][incumbents(run.rewards)[0]]])
    named = {"last_quarter": late, "top": top, "best": best, "distinct": distinct}
    return {
        **{name: interval(value) for name, value in named.items()},
        "curve": _curve(np.stack(curves)),
        "seconds_per_run": float(np.mean([run.seconds for run in runs])),
    }


def summarize_searches(lines: Sequence[Mapping[str, Any]], names: Sequence[str], *, num_seeds: int) -> dict[str, Any]:
    """What real searches of several strategies amount to, from the lines of their log (see `WHATS`).

    `results`: strategy -> `last_quarter` (mean reward of the last quarter of the candidates, of all after as long a
    training: its first part), `finished` (of those that were trained to the end, their last rewards), `best` (the
    highest of such), `retrained` and `unseen` (mean stand-alone score of the derived cells of a search, on clips that
    the search chose on and on others), `tau` (Kendall's tau-b of the search's rewards of the probes and stand-alone
    ones), `optimizer_steps`, `seconds_per_candidate`: each as `mean_and_error` over searches; and `curves`, `probes`
    for the picture. `differences`: strategy -> the scores of `COMPARED` less those of `random`.
    """
    search, retrain, alone = ([line for line in lines if line["what"] == what] for what in WHATS)
    by_index: dict[int, list[float | None]] = {}
    for line in sorted(alone, key=lambda line: line["index"]):
        by_index.setdefault(line["index"], []).append(line["reward"])
    quality = [finite_mean(numbers(values)) for values in by_index.values()]
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        own = [line for line in search if line["strategy"] == name and line["seed"] < num_seeds]
        own = list({line["seed"]: line for line in own}.values())
        cells = [line for line in retrain if line["strategy"] == name and line["seed"] < num_seeds]
        rewards = [numbers(line["rewards"]) for line in own]
        first = [numbers(line.get("first_rewards", line["rewards"])) for line in own]
        # The lines of searches with shared weights by earlier versions: all candidates are trained alike.
        whole = [
            np.where(line.get("is_whole", True), values, math.nan) for line, values in zip(own, rewards, strict=True)
        ]
        speeds = [line["seconds"] / len(line["rewards"]) for line in own if line["seconds"]]
        results[name] = {
            "last_quarter": mean_and_error([finite_mean(values[-max(1, len(values) // 4) :]) for values in first]),
            "finished": mean_and_error([finite_mean(values[-max(1, len(values) // 4) :]) for values in whole]),
            "best": mean_and_error([float(np.nanmax(values)) for values in whole]),
            "retrained": _of_searches(cells, "reward", num_seeds),
            "unseen": _of_searches(cells, "unseen_reward", num_seeds),
            "optimizer_steps": mean_and_error(numbers([line.get("optimizer_steps") for line in own]).tolist()),
            "tau": mean_and_error([kendall(line["probes"], quality) for line in own]),
            "seconds_per_candidate": mean_and_error(speeds),
            "curves": [values.tolist() for values in rewards],
            "probes": [line["probes"] for line in own],
        }
    differences = {
        name: {key: _difference(results[name][key], results["random"][key]) for key in COMPARED}
        for name in names
        if name != "random" and "random" in results
    }
    return {"num_seeds": num_seeds, "num_probes": len(quality), "alone": quality, "results": results,
            "differences": differences}  # fmt: skip


def _of_searches(cells: Sequence[Mapping[str, Any]], score: str, num_seeds: int) -> dict[str, float]:
    """A score of the derived cells, the mean over all trainings of each search."""
    by_seed = [[line.get(score) for line in cells if line["seed"] == seed] for seed in range(num_seeds)]
    return mean_and_error([finite_mean(numbers(values)) for values in by_seed if values])


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Of two independent means; the errors add as squares, the degrees of freedom are those of Welch (1947)."""
    error = math.hypot(first["error"], second["error"])
    parts = sum(one["error"] ** 4 / max(one["count"] - 1, 1) for one in (first, second))
    freedom = error**4 / parts if parts > 0 else min(first["count"], second["count"]) - 1
    found = {"mean": first["mean"] - second["mean"], "error": error, "count": min(first["count"], second["count"])}
    return {**found, "half_width": half_width(error, freedom)}
