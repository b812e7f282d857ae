"""The parts of the report that tell the search, its winner, the training curves and where the run comes from."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.evaluate import figures
from dvsnas_jax.report import markup, run_files
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space.drawing import draw

_MAX_PANELS = 12
_GAIN_PARTS = (("gain", "gain"), ("followed", "true changes followed"), ("flicker", "flicker"))


def cell(run: run_files.Run) -> str:
    """The winner as a graph and as text."""
    best = run.winner()
    if best is None:
        return ""
    digest = genotypes.digest(*best)
    title, whole = f"The cell that was found ({digest})", run.whole(digest)
    text = draw.text(*best, whole)
    draw.render(*best, run.figure("cell.png"), title, whole)
    words = f"The dynamic cell that the search found, as a graph: {text}"
    graph = run.chart("cell", words, lambda path: draw.render(*best, path, title, whole), is_wide=True)
    found = run.found()
    if found is not None and genotypes.digest(*found) != digest:
        note = f"As the search found it, before what it does not need was removed:\n{draw.text(*found, whole)}"
        return f"{graph}<pre>{markup.escape(text)}</pre><pre>{markup.escape(note)}</pre>"
    return f"{graph}<pre>{markup.escape(text)}</pre>"


def search(run: run_files.Run) -> str:
    """Rewards, entropy, and in words how the search compares with drawing at random."""
    if not run.searched and not run.drawn:
        return ""
    best = run.found()
    best_hash = genotypes.digest(*best) if best else None
    draw_fn = functools.partial(figures.reward, run.searched, run.drawn, best_hash=best_hash)
    rewards = run.chart("reward", "Reward of the candidates over the search", draw_fn)
    curve = figures.curves(run.metrics).get(("search", "policy_entropy"))
    entropy = ""
    if curve is not None:
        entropy = run.chart("entropy", "Entropy of the controller", functools.partial(figures.entropy, *curve))
    return markup.grid(rewards, entropy) + f"<p>{' '.join(_sentences(run))}</p>"


def _sentences(run: run_files.Run) -> list[str]:
    """How the search compares with drawing at random."""
    sentences = []
    for source, records in figures.by_source(run.searched).items():
        last = max(record["step"] for record in records)
        late = [record["reward"] for record in records if record["step"] >= 0.75 * last]
        sentences.append(
            f"{markup.escape(source)}: {len(records)} candidates were scored; mean reward in the last quarter: "
            f"{np.mean(late):.3f}."
        )
    if run.config.get("search", {}).get("reward") == "gain":
        sentences.append(_gains([record for record in run.searched if "gain" in record]))
    num_stopped = sum(map(figures.is_stopped, run.searched))
    if num_stopped:
        sentences.append(f"Stopped early: {num_stopped}; such a candidate counts with the reward that it had then.")
    is_alone = run.config.get("search", {}).get("mode") == "scratch"
    how = "each trained alone and never stopped" if is_alone else "scored on the same final shared weights"
    if any(line.get("stage") == "random_line" for line in run.metrics):  # not so in an older run
        how = "scored with shared weights that were trained as long on uniformly drawn ones"
    if run.drawn:
        rewards = [record["reward"] for record in run.drawn]
        sentences.append(
            f"{len(run.drawn)} uniformly drawn genotypes, {how}: "
            f"{np.mean(rewards):.3f} ± {np.std(rewards):.3f} (standard deviation), the best of them {max(rewards):.3f}."
        )
    if run.searched and run.drawn and not is_alone:
        words = "Rewards also rise because the shared weights are trained on; the random line shows that part."
        sentences.append(words)
    num_lost = len(run.genotypes) - len(run.searched) - len(run.drawn)
    if run.masked():
        masked = ", ".join(draw.readable(name) for name in run.masked())
        sentences.append(f"Masked, so never drawn (controller.masked_operations): {markup.escape(masked)}.")
    if num_lost:
        sentences.append(f"{num_lost} without a valid score are left out.")
    return sentences


def _gains(records: Sequence[Mapping[str, Any]]) -> str:
    """What the rewards of a search are made of, where they ask for the gain."""
    sentence = (
        "A reward is the geometric mean of the gain, the share of the error of the baseline without training that is "
        "taken away, and the F1 score of the changes of labels."
    )
    if not records:
        return sentence
    last = max(record["step"] for record in records)
    late = [record for record in records if record["step"] >= 0.75 * last]
    means = [f"{name} {100 * np.mean([each.get(key, 0.0) for each in late]):.1f} %" for key, name in _GAIN_PARTS]
    return f"{sentence} Last quarter, mean: {', '.join(means)}."


def chosen(run: run_files.Run) -> str:
    """How often each input, operation and aggregation was chosen, over the search."""
    space = run.space()
    if space is None or len(run.searched) < 4:
        return ""
    shares = figures.choices(run.searched, space)
    heads = [str(step) for step in shares["bins"]]
    tables = []
    for kind in ("inputs", "operations", "aggregations"):
        masked = run.masked() if kind == "operations" else ()
        title = f"{kind.capitalize()}, % of the choices"
        if kind != "inputs":
            num_allowed = sum(name not in masked for name in shares[kind])
            title += f"; uniform: {100 / num_allowed:.0f}"
        names = {name: draw.readable(name) if kind != "inputs" else name for name in shares[kind]}
        rows = [(names[name] + " (masked)" * (name in masked), row) for name, row in shares[kind].items()]
        top = max(max(row) for _, row in rows)
        words = f"Share of the chosen {kind} over the search"
        tables.append(markup.heat(rows, heads, words, title=title, corner="up to step", top=top))
    return markup.grid(*tables)


def training(run: run_files.Run) -> str:
    """Curves of every stage."""
    panels = {key: curve for key, curve in figures.curves(run.metrics).items() if key != ("search", "policy_entropy")}
    charts = []
    for index, (key, curve) in enumerate(list(panels.items())[:_MAX_PANELS]):
        draw_fn = functools.partial(figures.training, key, *curve)
        charts.append(run.chart(f"training_{index:02d}", f"{key[1]} of stage {key[0]}", draw_fn, f"training{index}"))
    if not charts:
        return ""
    left_out = len(panels) - len(charts)
    note = markup.note(f"{left_out} more curves are in metrics.jsonl and TensorBoard.") if left_out else ""
    return f"<div class=panels>{markup.grid(*charts)}</div>{note}"


def configuration(run: run_files.Run) -> str:
    """Every key, folded."""
    if not run.config:
        return ""
    table = markup.listing(list(run_files.flat(run.config)), "Configuration")
    return f"<details><summary>every key</summary>{table}</details>"


def provenance(run: run_files.Run) -> str:
    """Versions, devices, commit, command; of a resumed run also what was different from then on."""
    known = {key: value for key, value in run.environment.items() if key != "resumed_with"}
    rows = list(run_files.flat(known))
    for now in run.environment.get("resumed_with", []):
        changes = run_files.differences([known | {"command": None}, now | {"command": None}])
        rows += [(f"resumed with {key}", value) for key, (_, value) in changes]
        known = now
    return markup.listing(rows, "Provenance") if rows else ""
