"""Run folders with a network and a cell of drawn weights: as a finished run leaves them, without its training."""

import functools
import json
import pathlib
import shutil
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, mesh, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data.loading import whole_videos
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.nets import forward, static_net
from dvsnas_jax.search import loop, steps
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.space import supernet
from dvsnas_jax.train import features, pretrain, winners

SIZE = (34, 70)  # no multiples of 4
KINDS = ("refine", "fixed", "adaptive", "regions")


def make_config(kind: str):
    """Of two videos of six frames; `kind` is "refine", or the kind of a schedule."""
    config = config_lib.defaults()
    config.compile_effort = "quick"
    config.data.update({"height": SIZE[0], "width": SIZE[1], "crop_height": SIZE[0], "crop_width": SIZE[1]})
    config.data.update({"num_train_clips": 2, "num_frames": 2, "num_val_clips": 2, "val_frames": 6})
    config.net.update({"encoder": "resnet18", "width": 0.125, "decoder_channels": 8})
    config.pretrain.steps = 1
    own = ("decoder", "logits") if kind == "refine" else ("prev_decoder",)
    config.space.update({"channels": 4, "num_layers": 2, "inputs": ("prev_state", "stage1", "image_diff", *own)})
    if kind != "refine":
        config.space.update({"mode": "propagate", "cut": "stage1"})
        config.schedule.update({"kind": kind, "interval": 4, "threshold": 0.5, "grid": (1, 2)})
    config.evaluate.update({"vc_frames": (2, 4), "latency_frames": 0})
    return config


def write(path: pathlib.Path, kind: str, config=None) -> pathlib.Path:
    """Writes a run folder, and returns its path. The config is that of the kind, or one that differs from it little."""
    config = make_config(kind) if config is None else config
    key = kind, json.dumps(config_lib.to_json_dict(config), sort_keys=True)
    if key not in _WRITTEN:  # once for each config: drawing the weights compiles a network and a cell
        _WRITTEN[key] = _draw(pathlib.Path(_folder().name) / f"drawn_{len(_WRITTEN)}", kind, config)
    return pathlib.Path(shutil.copytree(_WRITTEN[key], path, dirs_exist_ok=True))


_WRITTEN: dict[tuple[str, str], pathlib.Path] = {}


def _draw(path: pathlib.Path, kind: str, config) -> pathlib.Path:
    settings, space = features.settings_of(config), features.space_of(config)
    own = "decoder" if kind == "refine" else "prev_decoder"
    layers = [
        {"in": ["prev_state", "stage1"], "ops": ["skip", "conv_1x1"], "agg": "sum"},
        {"in": ["layer0", own], "ops": ["sep_conv_3x3", "skip"], "agg": "gate"},
        {"in": ["layer1", "image_diff"], "ops": ["skip", "none"], "agg": "max"},
    ][: config.space.num_layers]
    genotype = genotype_lib.from_dict({"version": 1, "inputs": list(space.inputs), "layers": layers}, space)[1]
    net = static_net.make(config.net, settings.num_classes)
    variables = static_net.init(net, jax.random.key(0))
    cell = cell_lib.make(space, genotype, settings)
    params = compilation.jit_once(cell.init)(jax.random.key(1))
    videos = whole_videos.find(config.data, "val")
    with compilation.effort(config.compile_effort):  # by the program that evaluation takes
        (batch,) = forward.batches(net)(variables, videos[0].frames)
    found = jax.tree.map(lambda x: np.asarray(x)[: len(videos[0].frames)], batch)
    clip = types.Features(maps={name: x[None] for name, x in found.maps.items()}, logits=found.logits[None])
    params = cell_lib.freeze_norm(params, compilation.jit_once(cell.moments)(params, clip))
    # The heads start at zero: corrections and motions that change labels.
    for name, spread in (("head", found.logits.std() * 0.5), ("motion", 0.2)):
        kernel = params["ports"][name]["kernel"]
        params["ports"][name]["kernel"] = spread * jax.random.normal(jax.random.key(2), kernel.shape)
    if settings.is_propagating and settings.schedule.is_learned:  # predictions that vary
        head = params["ports"]["schedule"]
        head["output"] = head["output"] + 1.0
        maps = found.maps["stage1"]
        log_odds = schedule_lib.predict_error(head, maps[1:], jnp.broadcast_to(maps[:1], maps[1:].shape))
        head["output_bias"] = head["output_bias"] - jnp.median(log_odds)
    folder = workdir.Workdir(path)
    folder.claim(config)
    optimizer = pretrain.make_optimizer(config.pretrain)
    state = compilation.jit_once(lambda: pretrain.init(variables, optimizer))()
    folder.checkpointer(pretrain.STAGE).save(1, state)
    winners.save(folder, space, genotype, params)
    return path


def finish_search(path: pathlib.Path) -> None:
    """Makes a run folder that of a finished search: with its last checkpoint, of drawn shared weights, and its cell."""
    folder = workdir.Workdir(path)
    winners.mark_search(folder)
    folder.write_json(winners.BEST, {**folder.read_json(winners.BEST), "made_by": winners.SEARCH})
    config = folder.config()
    space, rng = features.space_of(config), jax.random.key(0)
    strategy = strategies.make(config.search.strategy, space, config.controller)
    made = steps.make(supernet.make(space, features.settings_of(config)), config.search, mesh.make())
    state = loop.LoopState(strategy=strategy.init(rng), shared=made.init(rng))
    folder.checkpointer(loop.STAGE).save(config.search.steps, state)


class Evaluated(NamedTuple):
    """A run folder, what `evaluate.run` returned, and the labels [static or cell, T, H, W] of each video."""

    path: pathlib.Path
    result: dict[str, Any]
    labels: list[np.ndarray]


@functools.cache
def evaluated(kind: str) -> Evaluated:
    """A run folder that all tests of the session share, evaluated."""
    path = write(pathlib.Path(_folder().name) / kind, kind)
    folder, labels = workdir.Workdir(path), []
    result = evaluation.run(folder.config(), folder, watch_fn=lambda *seen: labels.append(np.stack(seen[2:])))
    return Evaluated(path, result, labels)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # deletes itself when the interpreter ends


def frames(kind: str) -> np.ndarray:
    """The frames of the first video, u8 [6, H, W, 3]."""
    return whole_videos.find(make_config(kind).data, "val")[0].frames
