"""Where the time of one propagating cell goes: kinds of frames, and the parts that they are made of, one at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.bench import stopwatch
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.infer import jitted, programs
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo
from dvsnas_jax.train import features

Calls = dict[str, Callable[[], Any]]


def run(config: ml_collections.ConfigDict, word: str, repeats: int = 60) -> dict[str, Any]:
    """Times with drawn weights and random frames at the config's size, batch 1, in turns.

    Kinds of frames, parts, and stretches of a video have turns of their own: whatever runs between two frames has its
    part of the caches. `word`: the cell, `zoo:NAME` or a genotype's file; a member of the zoo brings its schedule.

    Returns:
      `frames` (what a kind of frame takes), `parts` and `means`, each a list of `name`, `ms` (median), `p95` and
      `of_static`, the share of the static network's time. Means are over frames of which every k-th is a key frame: a
      frame of stretches from one to the next, beside as many frames by the static network. Of a learned schedule: of
      the kinds' medians, where nothing else is due, and where all is.

    Raises:
      UserError: the mode is not propagate, or the config does not fit the cell.
    """
    if config.space.mode != "propagate":
        raise errors.UserError(
            f"bench cell: space.mode is {config.space.mode!r}, only propagate has parts to time; set it so"
        )
    config = config.copy_and_resolve_references()
    if word.startswith(zoo.PREFIX):
        config.schedule.kind = zoo.get(word).schedule
    model = drawn(config, *zoo.read(word, name="--genotype"))
    interval = model.settings.schedule.interval
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, *model.size, 3), np.uint8)
    kinds = _frames(jitted.Jitted(model), frames)
    samples = _in_turns(kinds, repeats) | _in_turns(_parts(model, frames[1]), repeats)
    alone = float(np.median(samples["static network"]))

    def row(name: str, values: np.ndarray, ms: float) -> dict[str, Any]:
        return {"name": name, "ms": ms, "p95": float(np.percentile(values, 95)), "of_static": ms / alone}

    def mean(name: str, other: str) -> dict[str, Any]:
        pair = samples["key frame"], samples[other]
        ms = float(np.median(pair[0]) + (interval - 1) * np.median(pair[1])) / interval
        return row(name, np.concatenate([pair[0], np.repeat(pair[1], interval - 1)]), ms)

    rows = [row(name, values, float(np.median(values))) for name, values in samples.items()]
    if model.settings.schedule.is_learned:
        means = [mean("mean, nothing due", "look, nothing due"), mean("mean, all due", "look, all due")]
    else:
        stretches = _in_turns(_stretches(kinds, interval), repeats)
        share = float(np.median(stretches["cell"] / stretches["network"]))
        means = [
            mean("mean", "other frame") | {"ms": float(np.median(stretches["cell"])) / interval, "of_static": share}
        ]
    return {
        "genotype": word, "schedule": model.settings.schedule.kind, "interval": interval, "size": list(model.size),
        "backend": jax.default_backend(), "frames": rows[: len(kinds)], "parts": rows[len(kinds) :], "means": means,
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The times, for a terminal."""
    height, width = result["size"]
    rule = f"schedule {result['schedule']}, key frame every {result['interval']}"
    lines = [f"{result['genotype']}, {rule}, {width}x{height}, batch 1, {result['backend']}"]
    lines.append(f"{'':28}{'ms':>8}{'95 %':>8}{'of static':>11}")
    for row in (*result["frames"], *result["means"], *result["parts"]):
        lines.append(f"{row['name']:28}{row['ms']:8.2f}{row['p95']:8.2f}{row['of_static']:11.2f}")
    return "\n".join(lines)


def _in_turns(calls: Calls, repeats: int) -> dict[str, np.ndarray]:
    """Milliseconds [repeats] of each, after a call that compiles it."""
    for call_fn in calls.values():
        jax.block_until_ready(call_fn())
    turns = [{name: 1e3 * stopwatch.seconds(call_fn) for name, call_fn in calls.items()} for _ in range(repeats)]
    return {name: np.array([turn[name] for turn in turns]) for name in calls}


def _frames(made: jitted.Jitted, frames: np.ndarray) -> Calls:
    """What each kind of frame needs, as `infer.dispatch` puts it together."""
    run, (first, frame) = made.programs, frames
    start = made.initial_state()
    state = run["key"](start, first)[0]
    calls: Calls = {
        "static network": functools.partial(run["static"], frame),
        "key frame": functools.partial(run["key"], start, frame),
    }
    if "look" not in run:
        return {**calls, "other frame": functools.partial(run["other"], state, frame)}

    def looked(num: int) -> Any:
        maps, shares = run["look"](state, frame)
        is_due = np.zeros_like(np.asarray(shares), bool)  # the host waits for them to decide
        is_due.flat[:num] = True
        return made.decided(state, frame, maps, is_due)

    num = state["age"].size
    dues = {"nothing": 0, **({"one region": 1} if "join" in run else {}), "all": num}
    return {**calls, **{f"look, {name} due": functools.partial(looked, due) for name, due in dues.items()}}


def _stretches(kinds: Calls, interval: int) -> Calls:
    """A key frame and the frames to the next one, and as many frames by the static network, each frame synchronised."""

    def run(names: list[str]) -> None:
        for name in names:
            jax.block_until_ready(kinds[name]())

    names = {"network": ["static network"] * interval, "cell": ["key frame", *["other frame"] * (interval - 1)]}
    return {label: functools.partial(run, each) for label, each in names.items()}


def _parts(model: programs.Model, frame: np.ndarray) -> Calls:
    """The parts that frames are made of, each a program of its own."""
    net, folded, cell = model.net, model.folded, model.cell
    assert cell is not None, "a model with a cell"
    calls: Calls = {}
    for last in static_net.STAGES:
        weights = static_net.needed(net, folded, last)
        calls[f"encoder to {last}"] = functools.partial(_encoder(net, last), weights, frame)
    whole = compilation.jit(functools.partial(static_net.infer, net))(folded, frame)
    start = jax.jit(cell.initial_state)(whole)
    state = jax.jit(cell.restart)(model.params, start, whole)
    names = {*static_net.STAGES, "image"}  # a map `decoder` would make it a frame of the static network
    cheap = types.Features(maps={name: whole.maps[name] for name in names}, logits=whole.logits[..., :0])
    labels_fn = compilation.jit(model.predict)
    calls["cell"] = functools.partial(compilation.jit(cell.advance), model.params, state, cheap)
    calls["labels"] = functools.partial(labels_fn, whole.logits)
    labels = labels_fn(whole.logits)
    calls["transfer of a frame"] = lambda: jax.device_put(frame)
    calls["transfer of labels"] = lambda: np.array(labels)
    return calls


def _encoder(net: static_net.StaticNet, last: str) -> Any:
    return compilation.jit(lambda weights, frame: static_net.infer(net, weights, frame, last).maps)


def drawn(config: ml_collections.ConfigDict, space: genotype_lib.Space, genotype: np.ndarray) -> programs.Model:
    """A model of drawn weights, the statistics of every normalisation 0 and 1: no training, no data."""
    settings = features.settings_of(config)
    net, cell = static_net.make(config.net, settings.num_classes), cell_lib.make(space, genotype, settings)
    variables = static_net.init(net, jax.random.key(0))
    leaves, tree = jax.tree.flatten(compilation.jit_once(cell.init)(jax.random.key(1)))
    rng = np.random.default_rng(1)  # the heads start at zero, and would hide what is before them
    params = jax.tree.unflatten(tree, [np.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype) for x in leaves])
    frame = static_net.frame_shapes(net, (config.data.height, config.data.width))
    clip = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), frame)
    shapes = jax.eval_shape(cell.moments, params, clip)
    moments = {path: (jnp.zeros(mean.shape), jnp.ones(var.shape)) for path, (mean, var) in shapes.items()}
    return programs.model_of(config, settings, variables, cell, cell_lib.freeze_norm(params, moments))
