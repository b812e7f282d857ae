"""What each part of a trained cell is worth: the loss where it is switched off, as data, on held-out clips.

Nothing is trained again. One compiled program counts every variant: the cell's own weights stand in a supernet of the
few operations that it has, `none` and `skip`. What is switched off:

- an input: its projected map is held at its mean (the scale of its normalisation, which has running statistics, is 0);
  of `stageN` and `prev_stageN`, which have one projection, each by the other where a cell reads both.
- a layer: the best of nothing in its place, its source a passed on, its source b passed on.
- a part of the end (`cell_end.without`); the past logits; all history; all that was learned, which leaves the baseline.

Noise is a standard error over clips, of the difference to the whole cell on the same clips: the jackknife (Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapter 11), as the scores are not means over clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.search import reward
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, cell_frame, projections
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import clip_scores, feature_store, features

INPUT, LAYER, END, WHOLE, BASELINE = "input", "layer", "end", "whole", "baseline"
"""Kinds of parts."""
SCORES = ("reward", "miou", "flicker")
"""What a part is worth: the reward without its factor of cost, mIoU, and flicker, of which less is better."""
NOTHING, SOURCE_A, SOURCE_B = "nothing in its place", "source a passed on", "source b passed on"
PASSING = "warp"
"""The aggregation by which a layer passes on what it is given beside `none`, whatever its weights are."""
_ROWS = 8  # clips of a call: of one shape, and few in memory
_ALWAYS = 40.0  # log-odds of a gate that is 1 in float32


class Trained(NamedTuple):
    """A trained cell: its space, genotype i32 [L, 5] and weights with running statistics."""

    space: genotype_lib.Space
    genotype: np.ndarray
    params: types.Params


class Variant(NamedTuple):
    """A cell with a part switched off; several of one part may stand for it, the best does."""

    kind: str
    name: str
    how: str
    genotype: np.ndarray
    params: types.Params


class Bench:
    """Counts variants of one trained cell on the clips of a store, each clip by itself.

    Attributes:
      space: of the variants: the inputs that the cell reads, its layers, its operations and what replaces them.
      genotype: the cell's, i32 [L, 5] of that space.
      params: its weights in a supernet of that space.
      settings: of the run.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        trained: Trained,
        store: feature_store.AnyStore,
        baseline: clip_scores.Baseline | None = None,
    ) -> None:
        """`baseline`: what the gain in rewards is measured from, on the same features; None: they ask for none."""
        self.settings, self._store, self._config = features.settings_of(config), store, config
        self.space, self.genotype = _small_space(trained.space, trained.genotype)
        supernet = supernet_lib.make(self.space, self.settings)
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(supernet.init, jax.random.key(0)))
        self.params = cell_lib.scatter_params(self.space, self.genotype, trained.params, empty)

        def of_cell(variant: tuple[types.Params, types.Array], frames: types.Features) -> jax.Array:
            params, genotype = variant
            return supernet.unroll(params, jnp.asarray(genotype), frames)

        with compilation.effort(config.compile_effort):
            self._do_follow = baseline is not None
            self._count_fn = _make_count(of_cell, self.settings.num_ages, self._do_follow)
        self._base = None if baseline is None else self.count_network(baseline.logits_fn)

    def count(self, genotype: np.ndarray, params: types.Params | None = None) -> clip_scores.ClipScores:
        """What a variant counts on every clip, N = clips; None: with the cell's own weights."""
        return self._counted(self._count_fn, (self.params if params is None else params, jnp.asarray(genotype)))

    def count_network(self, logits_fn: Callable[[jax.Array], jax.Array]) -> clip_scores.ClipScores:
        """Likewise of logits [T, B, h, w, K] that are made of the static network's alone."""
        with compilation.effort(self._config.compile_effort):
            count_fn = _make_count(
                lambda _, frames: logits_fn(jnp.asarray(frames.logits)), self.settings.num_ages, self._do_follow
            )
        return self._counted(count_fn, {})

    def _counted(self, count_fn: Any, variant: Any) -> clip_scores.ClipScores:
        num = self._store.num_clips
        groups = np.minimum(np.arange(-(-num // _ROWS) * _ROWS, dtype=np.int32), num - 1).reshape(-1, _ROWS, 1)
        found = [count_fn(variant, *feature_store.anywhere(self._store, group)) for group in groups]
        return jax.tree.map(lambda *xs: np.concatenate(xs)[:num], *jax.device_get(found))

    def compare(
        self, whole: clip_scores.ClipScores, part: clip_scores.ClipScores
    ) -> dict[str, dict[str, float | None]]:
        """Scores without a part, what it is `worth` and the `noise` of that, each by the names of `SCORES`."""
        return compare(whole, part, clip_scores.rule(self._config.search), self._base)

    def values(self, counted: clip_scores.ClipScores) -> dict[str, float]:
        """The `SCORES` of a variant."""
        return values(counted, clip_scores.rule(self._config.search), self._base)


def _make_count(unroll_fn: Callable[[Any, types.Features], jax.Array], ages: int, do_follow: bool) -> Any:
    """The jitted `(variant, store, clips i32 [R, 1]) -> ClipScores` of each clip, N = R."""
    return compilation.jit(
        lambda variant, store, clips: clip_scores.each_batch(
            lambda frames: unroll_fn(variant, frames), store, clips, ages, do_follow
        )
    )


def _small_space(space: genotype_lib.Space, genotype: np.ndarray) -> tuple[genotype_lib.Space, np.ndarray]:
    """A space of what a genotype has and what replaces it, and the genotype in it."""
    named = genotype_lib.to_dict(space, genotype)
    inputs = cell_lib.used_inputs(space, genotype) or space.inputs[:1]
    used = {name for layer in named["layers"] for name in (*layer["ops"], layer["agg"])} | {"none", "skip", PASSING}
    kinds = {
        kind: tuple(name for name in genotype_lib.vocabulary(kind) if name in used)
        for kind in ("operations", "aggregations")
    }
    for layer in named["layers"]:  # what `none` reads may be no input any more
        layer["in"] = [inputs[0] if node in set(space.inputs) - set(inputs) else node for node in layer["in"]]
    small = genotype_lib.Space(inputs, space.num_layers, **kinds)
    return small, genotype_lib.from_dict({**named, "inputs": list(inputs)}, small)[1]


def values(
    counted: clip_scores.ClipScores, rule: clip_scores.Rule, base: clip_scores.ClipScores | None = None
) -> dict[str, float]:
    """The `SCORES` of counts with a leading axis N of clips, over all of them; nan where they have none.

    `base` are those of the baseline on the same clips, where the reward asks for the gain.
    """
    if base is not None:
        rule = rule._replace(base=clip_scores.accuracy(clip_scores.shares(_together(base))))
    found = reward.compute(_together(counted), rule._replace(cost=0.0))[0]
    return {name: float("nan") if found["reward"] is None else float(found[name]) for name in SCORES}


def _together(counted: clip_scores.ClipScores) -> clip_scores.ClipScores:
    """The counts of clips, N, added up: N = 1."""
    return jax.tree.map(lambda x: np.asarray(x)[None], clip_scores.total(counted))


def compare(
    whole: clip_scores.ClipScores,
    part: clip_scores.ClipScores,
    rule: clip_scores.Rule,
    base: clip_scores.ClipScores | None = None,
) -> dict[str, dict[str, float | None]]:
    """See `Bench.compare`: `worth` is above 0 where the part helps; `noise` is None where there is one clip alone."""
    num = len(whole.counts)

    def worth(chosen: np.ndarray) -> np.ndarray:
        own, other, beside = (jax.tree.map(lambda x: np.asarray(x)[chosen], each) for each in (whole, part, base))
        scores = [values(each, rule, beside) for each in (own, other)]
        return np.array([scores[0][name] - scores[1][name] for name in SCORES]) * _SIGNS

    everyone = np.arange(num)
    found, noise = worth(everyone), [None] * len(SCORES)
    if num > 1:
        others = np.stack([worth(np.delete(everyone, clip)) for clip in everyone])
        noise = (np.sqrt((num - 1) / num * ((others - others.mean(axis=0)) ** 2).sum(axis=0))).tolist()
    return {
        "without": values(part, rule),
        "worth": dict(zip(SCORES, found.tolist(), strict=True)),
        "noise": dict(zip(SCORES, noise, strict=True)),
    }


_SIGNS = np.array([1.0, 1.0, -1.0])


def is_worth_something(found: Mapping[str, Any]) -> bool:
    """Whether one of the worths that `compare` found is more than its noise."""
    return any(not worth <= (found["noise"][name] or 0.0) for name, worth in found["worth"].items())


def measure(
    config: ml_collections.ConfigDict,
    trained: Trained,
    store: feature_store.AnyStore,
    baseline: clip_scores.Baseline | None = None,
) -> dict[str, Any]:
    """What every part of a trained cell is worth on the clips of a store; `baseline`: see `Bench`.

    Returns:
      `num_clips`, `scores` of the whole cell, and `parts`, each with `kind`, `name`, `how` it was switched off, and
      what `compare` gives.
    """
    bench = Bench(config, trained, store, baseline)
    whole = bench.count(bench.genotype)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for variant in variants(bench):
        row: dict[str, Any] = {"kind": variant.kind, "name": variant.name, "how": variant.how}
        row |= bench.compare(whole, bench.count(variant.genotype, variant.params))
        known = best.setdefault((variant.kind, variant.name), row)
        if row["worth"]["reward"] < known["worth"]["reward"]:
            best[variant.kind, variant.name] = row
    networks = {"static network": lambda x: x, "its labels, a frame late": lambda x: jnp.concatenate([x[:1], x[:-1]])}
    rows = [
        {"kind": BASELINE, "name": name, "how": "", **bench.compare(whole, bench.count_network(logits_fn))}
        for name, logits_fn in networks.items()
    ]
    return {"num_clips": store.num_clips, "scores": bench.values(whole), "parts": [*best.values(), *rows]}


def variants(bench: Bench) -> Iterator[Variant]:
    """The cell without each of its parts."""
    tokens, params, settings = bench.genotype, bench.params, bench.settings
    for name in cell_lib.used_inputs(bench.space, tokens):
        yield Variant(INPUT, name, *without_inputs(bench.space, tokens, params, [name]))
    for layer in range(len(tokens)):
        for how, rows in without_layer(bench.space, tokens, layer):
            yield Variant(LAYER, f"layer{layer}", how, rows, params)
    yield from _ends(bench.space, tokens, params, settings)


def at_mean(params: types.Params, names: Sequence[str]) -> types.Params:
    """Weights with which some inputs are what they are on average, wherever they are read."""
    inputs = dict(params["ports"]["inputs"])
    for name in map(projections.weights_of, names):
        norm = inputs[name]["norm"]
        inputs[name] = {**inputs[name], "norm": {**norm, "scale": jnp.zeros_like(norm["scale"])}}
    return {**params, "ports": {**params["ports"], "inputs": inputs}}


def without_inputs(
    space: genotype_lib.Space, tokens: np.ndarray, params: types.Params, names: Sequence[str]
) -> tuple[str, np.ndarray, types.Params]:
    """How a cell does without some inputs, and the genotype i32 [L, 5] and the weights then."""
    used, changed, held = cell_lib.used_inputs(space, tokens), tokens.copy(), []
    for name in names:
        twins = [each for each in used if each != name and projections.weights_of(each) == projections.weights_of(name)]
        if twins:
            places = changed[:, :2] == space.inputs.index(name)
            changed[:, :2] = np.where(places, space.inputs.index(twins[0]), changed[:, :2])
        else:
            held.append(name)
    how = "held at its mean" if held else "the same stage of the other frame in its place"
    return how, changed, at_mean(params, held)


def without_layer(space: genotype_lib.Space, tokens: np.ndarray, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    """How a layer can be taken out, and the genotype i32 [L, 5] then: it is there, but has nothing of its own."""
    none, skip = (space.operations.index(name) for name in ("none", "skip"))
    (a, b), read = tokens[layer, :2].tolist(), cell_lib.nodes_read(space, tokens[layer])
    # Both sources stay read, if by `none`: they would be loose ends otherwise.
    ways = {NOTHING: (a, b, none, none)}
    ways |= {SOURCE_A: (b, a, none, skip)} if a in read else {}
    ways |= {SOURCE_B: (a, b, none, skip)} if b in read and b != a else {}
    for how, row in ways.items():
        changed = tokens.copy()
        changed[layer] = *row, space.aggregations.index(PASSING)
        yield how, changed


def _ends(
    space: genotype_lib.Space, tokens: np.ndarray, params: types.Params, settings: cell_frame.CellSettings
) -> Iterator[Variant]:
    """The cell without what its end consists of, and without its history."""
    if settings.end != cell_end.HEADS:
        return
    ports, parts = params["ports"], cell_end.parts(is_propagating=settings.is_propagating)
    hows = {"offsets": "nothing moves", "gate": "one share everywhere", "correction": "nothing is added"}
    for part in parts:
        yield Variant(END, part, hows[part], tokens, {**params, "ports": cell_end.without(ports, part)})
    nothing = ports
    for part in parts:
        nothing = cell_end.without(nothing, part)
    if not settings.is_propagating:
        now = cell_end.without(ports, "gate")
        now = {**params, "ports": {**now, "share": jnp.full_like(now["share"], _ALWAYS)}}
        yield Variant(END, "past logits", "the current ones alone", tokens, now)
        past = [
            name for name in cell_lib.used_inputs(space, tokens) if name.startswith("prev_") or name == "image_diff"
        ]
        _, rows, now = without_inputs(space, tokens, now, past)
        yield Variant(WHOLE, "all history", "past logits off, past inputs at their mean", rows, now)
    name = "key frame held (hold)" if settings.is_propagating else "running average (ema)"
    left = {**params, "ports": nothing}
    yield Variant(WHOLE, "all that was learned", f"the {name} is left", tokens, left)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two cells are apart on the scored clips.

    Attributes:
      logits: the largest difference of two logits.
      scale: the largest logit.
      labels: pixels of the grid whose label differs.
      total: all of them.
    """

    logits: float
    scale: float
    labels: int
    total: int


def difference(
    config: ml_collections.ConfigDict, first: Trained, second: Trained, store: feature_store.AnyStore
) -> Difference:
    """Compares the logits of two trained cells, each as a static graph, on all clips and frames of a store."""
    settings = features.settings_of(config)
    cells = [cell_lib.make(each.space, each.genotype, settings) for each in (first, second)]

    def of_clips(params: Sequence[types.Params], store: types.FeatureStore, clips: jax.Array) -> tuple[jax.Array, ...]:
        frames, _ = feature_store.take(store, feature_store.number(clips))
        one, other = (cell.unroll(own, frames) for cell, own in zip(cells, params, strict=True))
        is_counted = jnp.broadcast_to((clips >= 0)[:, None, None], one.shape[:-1])
        is_other = (one.argmax(axis=-1) != other.argmax(axis=-1)) & is_counted
        return jnp.abs(one - other).max(), jnp.abs(one).max(), is_other.sum(), is_counted.sum()

    with compilation.effort(config.compile_effort):
        compare_fn = compilation.jit(of_clips)
    num, found = store.num_clips, []
    for start in range(0, num, _ROWS):
        clips = np.arange(start, start + _ROWS, dtype=np.int32)
        clips = np.where(clips < num, clips, ~np.int32(0))
        found.append(compare_fn((first.params, second.params), *feature_store.anywhere(store, clips)))
    gaps, sizes, labels, total = (np.array(column) for column in zip(*jax.device_get(found), strict=True))
    return Difference(float(gaps.max()), float(sizes.max()), int(labels.sum()), int(total.sum()))
