"""Why a found cell is as it is: what each part of it is worth, and what the same budget gives without a search.

The first is measured on the meta-validation clips (`search.worth`). The second are uniformly drawn and hand-designed
cells, trained and evaluated as `dvsnas compare` does it. Both are kept in the run folder and not done again.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.evaluate import figures
from dvsnas_jax.search import simplify as simplify_lib
from dvsnas_jax.search import worth as worth_lib
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import ablate_variants, compare, compare_rows, study_report
from dvsnas_jax.train import averaging, clip_scores, features, joint, winners

NAME, WORTH = "ablation_worth", "worth"
FOLDER, RANDOM = "why", "random_"
"""Where the genotypes of the drawn cells are, and how their files begin."""
_MAX_DRAWS = 1000  # for each distinct cell that is wanted: small spaces may have fewer


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> None:
    """What section `why` of the configuration asks for, of a folder with a winner; after a search.

    A run of several processes leaves it to the commands `ablate --what=worth` and `compare` on one.
    """
    if distributed.num_processes() > 1 or not winners.has_cell(folder):
        return
    if config.why.worth:
        measure(config, folder)
    names = [*_random_cells(config, folder), *config.why.hand_designed]
    if names:
        compare.run(config, folder, names, num_seeds=config.why.num_seeds)


def open_cell(
    config: ml_collections.ConfigDict, folder: workdir.Workdir
) -> tuple[worth_lib.Trained, types.FeatureStore, Any | None]:
    """The trained cell of a run folder, features of its meta-validation clips, and the static network of its own.

    Raises:
      UserError: the folder holds no trained cell, or a baseline, of which nothing is trained; or its data is not there.
    """
    winners.require(folder)
    if not features.settings_of(config).has_output:
        raise errors.UserError(f"{folder.path}: its cell is a baseline; give a run whose cell is trained")
    _, params, space, genotype = winners.load(config, folder)
    own = joint.restore(config, folder, genotype_lib.digest(space, genotype))
    variables = ablate_variants.static_network(config, folder) if own is None else own
    with compilation.effort(config.compile_effort):
        store = ablate_variants.validation_features(config, space, variables, None)
    return worth_lib.Trained(space, genotype, params), jax.tree.map(jax.numpy.asarray, store), own


def _baseline(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> clip_scores.Baseline | None:
    return averaging.baseline(config, ablate_variants.static_network(config, folder), folder)


def measure(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> study_report.Report:
    """What each part of the run's cell is worth, in `ablation_worth.json`, `.md` and a figure.

    Raises:
      UserError: see `open_cell`.
    """
    winner = winners.read(folder)
    known = folder.read_json(f"{NAME}.json") if (folder.path / f"{NAME}.json").is_file() else {}
    if winner is not None and known.get("digest") == winner.digest:
        return study_report.Report(known, text(known), [])
    trained, store, _ = open_cell(config, folder)
    measured = worth_lib.measure(config, trained, store, _baseline(config, folder))
    named = genotype_lib.to_dict(trained.space, trained.genotype)
    digest = genotype_lib.digest(trained.space, trained.genotype)
    found = {"what": WORTH, "digest": digest, "genotype": named, **measured}
    return study_report.write(folder.path, NAME, found, text(found), lambda path: draw(found, path), figures="figures")


def simplify(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, *, is_measured: bool
) -> tuple[dict[str, Any], bool]:
    """Puts the simplified cell in the place of a run's, see `search.simplify`; the weights of both stay in the folder.

    Returns:
      The record of `simplify.Simplified`, and whether the cell is another one now.

    Raises:
      UserError: see `open_cell`; or noise cannot be told.
    """
    trained, store, own = open_cell(config, folder)
    found, record = simplify_lib.run(
        config, trained, store, is_measured=is_measured, baseline=_baseline(config, folder)
    )
    digest, before = (genotype_lib.digest(each.space, each.genotype) for each in (found, trained))
    if digest != before:
        if own is not None:
            joint.keep(folder, digest, own)
        best = folder.read_json(winners.BEST)
        about = {key: best[key] for key in ("made_by", "scores", "found") if key in best}
        about = {"found": record["before"]["genotype"]} | about | {"simplified": record}
        winners.save(folder, found.space, found.genotype, found.params, about)
    return record, digest != before


def _random_cells(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> list[str]:
    """Files of distinct uniformly drawn cells, of the operations that the search may choose; they follow from the seed.

    A UserError where the space has fewer.
    """
    space, num = features.space_of(config), config.why.num_random
    mask = strategies.operation_mask(space, tuple(config.controller.masked_operations))
    rng, found = np.random.default_rng((config.seed, 9)), dict[canonical.Form, np.ndarray]()
    for _ in range(_MAX_DRAWS * num):
        if len(found) == num:
            break
        genotype = genotype_lib.random(space, rng, 1, op_mask=mask)[0]
        found.setdefault(canonical.of(space, genotype), genotype)
    if len(found) < num:
        raise errors.UserError(f"config key 'why.num_random': the space has {len(found)} distinct cells; lower it")
    paths = []
    for index, genotype in enumerate(found.values()):
        path = folder.path / FOLDER / f"{RANDOM}{index}.json"
        path.parent.mkdir(exist_ok=True)
        own = simplify_lib.genotype_of(config, space, genotype)
        folder.write_json(f"{FOLDER}/{path.name}", genotype_lib.to_dict(*own))
        paths.append(str(path))
    return paths


# --- how it is told -----------------------------------------------------------------------------------------------


def told(record: Mapping[str, Any]) -> list[str]:
    """What simplifying a cell did (`simplify.Simplified.record`), in lines."""
    before, after, dead, noise = (record[name] for name in ("before", "after", "dead", "noise"))
    counts = " -> ".join(
        f"{len(each['genotype']['layers'])} layers, {each['parameters']} parameters, {each['macs']} multiply-adds"
        for each in ([before] if before == after else [before, after])
    )
    lines = [counts if before != after else f"nothing to remove: {counts}"]
    lines.append(
        f"what is dead: labels differ in {dead['labels']} of {dead['total']} pixels of {record['num_clips']} "
        f"meta-validation clips, logits by at most {dead['logits']:.1e}"
    )
    if noise is not None:
        losses = ", ".join(f"{name} {shown(noise, name)}" for name in worth_lib.SCORES)
        lines.append(f"what is worth nothing within its noise; losses without it, in hundredths: {losses}")
    return lines


HEAD = ("part", "switched off", "worth in reward", "in mIoU", "less flicker")


def title(row: Mapping[str, Any]) -> str:
    """A part by its kind and name."""
    kinds = {worth_lib.INPUT: "input ", worth_lib.END: "end: ", worth_lib.LAYER: ""}
    name = row["name"].replace("layer", "layer ") if row["kind"] == worth_lib.LAYER else row["name"]
    return kinds.get(row["kind"], "") + name


def cells(content: Mapping[str, Any]) -> list[list[str]]:
    """A line for each part: `HEAD`, worths in hundredths with their noise."""
    return [
        [title(row), row["how"] or "in place of the cell", *(shown(row, name) for name in worth_lib.SCORES)]
        for row in content["parts"]
    ]


def shown(row: Mapping[str, Any], name: str) -> str:
    """A worth in hundredths, `+1.25 ± 0.40`."""
    worth, noise = row["worth"][name], row["noise"][name]
    if worth is None:
        return "-"
    return f"{100 * worth:+.2f}" + ("" if noise is None else f" ± {100 * noise:.2f}")


def labels(content: Mapping[str, Any]) -> dict[str, str]:
    """What each input, layer and part of the end is worth in reward, by its name, for a drawing."""
    kinds = (worth_lib.INPUT, worth_lib.LAYER, worth_lib.END)
    return {row["name"]: shown(row, "reward") for row in content["parts"] if row["kind"] in kinds}


def caption(content: Mapping[str, Any]) -> str:
    """What was measured on."""
    whole = ", ".join(f"{name} {100 * content['scores'][name]:.2f}" for name in worth_lib.SCORES)
    return (
        f"What each part of the trained cell is worth: the loss where it is switched off and nothing is trained again, "
        f"in hundredths ± a standard error over {content['num_clips']} meta-validation clips; the whole cell: {whole}"
    )


def verdicts(content: Mapping[str, Any]) -> list[str]:
    """What is worth nothing within its noise, in sentences."""
    parts = content["parts"]
    lines = []
    for kind, words in ((worth_lib.LAYER, "Layers"), (worth_lib.INPUT, "Inputs"), (worth_lib.END, "Parts of the end")):
        idle = [row["name"] for row in parts if row["kind"] == kind and not worth_lib.is_worth_something(row)]
        if idle:
            lines.append(f"{words} worth nothing within their noise: {', '.join(idle)}.")
    whole = [row for row in parts if row["kind"] == worth_lib.WHOLE]
    idle = [row["name"] for row in whole if not worth_lib.is_worth_something(row)]
    lines += [f"Worth nothing within its noise: {name}." for name in idle]
    if lines and any(line.startswith(("Layers", "Inputs")) for line in lines):
        lines.append("`dvsnas simplify --within-noise` removes what can go together.")
    return lines or ["Every part is worth more than its noise."]


def text(content: Mapping[str, Any]) -> str:
    """The table in Markdown, and what it says."""
    return "\n".join([caption(content), "", *study_report.markdown(HEAD, cells(content)), "", *verdicts(content)])


def draw(content: Mapping[str, Any], path: str | pathlib.Path) -> None:
    """Bars of what each part is worth in reward, with their noise."""
    rows: Sequence[Mapping[str, Any]] = content["parts"]
    with figures.canvas(path, 8, 1.1 + 0.34 * len(rows)) as figure:
        axes = figure.add_subplot()
        values = [100 * (row["worth"]["reward"] or 0.0) for row in rows]
        noises = [100 * (row["noise"]["reward"] or 0.0) for row in rows]
        colors = [figures.BLUE if worth_lib.is_worth_something(row) else figures.GREY for row in rows]
        axes.barh(range(len(rows)), values, 0.7, color=colors, xerr=noises, ecolor=figures.INK, capsize=3)
        axes.axvline(0, color=figures.INK, lw=1.0)
        axes.set_yticks(range(len(rows)), [title(row) for row in rows])
        axes.set(xlabel="worth in reward, hundredths", ylim=(len(rows) - 0.45, -0.55))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title("What each part is worth (grey: nothing within its noise)")


@dataclasses.dataclass(frozen=True)
class Rival:
    """What the same budget gives otherwise: a name, the number of cells, and values of scores by their name."""

    name: str
    num: int
    scores: Mapping[str, Sequence[float]]


def rivals(comparison: Mapping[str, Any]) -> list[Rival]:
    """The drawn cells together, then each hand-designed one, best mIoU first; of what `compare` found in a folder."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in comparison.get("rows", [])[1:]:
        if not row["num_ok"]:
            continue
        is_drawn = any(pathlib.Path(name).name.startswith(RANDOM) for name in row["names"])
        name = RANDOM if is_drawn else row["names"][0] if row.get("source") else ""
        if name:
            found.setdefault(name, []).append(row)
    vc = [f"vc_{num}" for num in comparison.get("vc_frames", [])]
    made = [
        Rival(name, len(rows), {key: _means(rows, key) for key in (*compare_rows.SCORES, *vc)})
        for name, rows in found.items()
    ]
    return sorted(made, key=lambda rival: (rival.name != RANDOM, -float(np.mean(rival.scores["miou"]))))


def _means(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key]["mean"] for row in rows if row.get(key)]
