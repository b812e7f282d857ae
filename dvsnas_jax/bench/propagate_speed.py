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


def run(config: ml_collections.ConfigDict, word: str, repeats: int = 20) -> dict[str, Any]:
    """Times with drawn weights and random frames at the config's size, batch 1, all in turns.

    `word`: the cell, `zoo:NAME` or a genotype's file; a member of the zoo brings its schedule.

    Returns:
      `frames` (what a kind of frame takes) and `parts`, each a list of `name`, `ms` (median), `p95` and `of_static`;
      `mean_ms` and `p95_ms` over frames of which every k-th is a key frame, where a learned schedule's decisions are
      paid on all but these; `of_static`, the mean's share of the static network's time.

    Raises:
      UserError: the mode is not propagate, or the config does not fit the cell.
    """
    if config.space.mode != "propagate":
        raise errors.UserError(f"bench cell: space.mode is {config.space.mode!r}, only propagate has parts to time")
    config = config.copy_and_resolve_references()
    if word.startswith(zoo.PREFIX):
        config.schedule.kind = zoo.get(word).schedule
    model = drawn(config, *zoo.read(word, name="--genotype"))
    interval = model.settings.schedule.interval
    made = jitted.Jitted(model)
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, *model.size, 3), np.uint8)
    kinds = _frames(made, frames)
    samples = _in_turns({**kinds, **_parts(model, frames[1])}, repeats)
    other = "other frame" if "other frame" in samples else "look, other frame"
    stream = np.concatenate([samples["key frame"], np.repeat(samples[other], interval - 1)])
    alone = float(np.median(samples["static network"]))
    rows = [_row(name, values, alone) for name, values in samples.items()]
    mean = (float(np.median(samples["key frame"])) + (interval - 1) * float(np.median(samples[other]))) / interval
    return {
        "genotype": word, "schedule": model.settings.schedule.kind, "interval": interval, "size": list(model.size),
        "backend": jax.default_backend(), "frames": rows[: len(kinds)], "parts": rows[len(kinds) :],
        "mean_ms": mean, "p95_ms": float(np.percentile(stream, 95)), "of_static": mean / alone,
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The times, for a terminal."""
    height, width = result["size"]
    lines = [f"{result['genotype']}, schedule {result['schedule']}, {width}x{height}, batch 1, {result['backend']}"]
    lines.append(f"{'':28}{'ms':>8}{'95 %':>8}{'of static':>11}")
    for row in (*result["frames"], *result["parts"]):
        lines.append(f"{row['name']:28}{row['ms']:8.2f}{row['p95']:8.2f}{row['of_static']:11.2f}")
    mean = f"mean, key frame every {result['interval']}"
    lines.append(f"{mean:28}{result['mean_ms']:8.2f}{result['p95_ms']:8.2f}{result['of_static']:11.2f}")
    return "\n".join(lines)


def _row(name: str, values: np.ndarray, alone: float) -> dict[str, Any]:
    ms = float(np.median(values))
    return {"name": name, "ms": ms, "p95": float(np.percentile(values, 95)), "of_static": ms / alone}


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

    def looked(name: str) -> Any:
        maps, shares = run["look"](state, frame)
        np.asarray(shares)  # the host decides
        return run[name](state, maps)

    def region() -> Any:
        maps, shares = run["look"](state, frame)
        is_due = np.zeros(np.asarray(shares).shape, bool)
        is_due[0, 0, 0] = True
        return run["join"](state, maps, made.paint(state, maps, is_due[0]), is_due)

    calls |= {"look, key frame": lambda: looked("rest"), "look, other frame": lambda: looked("other")}
    return {**calls, "look, one region": region} if "join" in run else calls


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
