"""The parts of `dvsnas bench accelerator`: each measures something on the default device, on arrays made in memory."""

from __future__ import annotations

import functools
import importlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.bench import (
    compile_sizes,
    kernel_variants,
    lowered,
    nets_speed,
    propagate_speed,
    search_speed,
    stopwatch,
)
from dvsnas_jax.core import compilation, presets
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import json_text, workdir
from dvsnas_jax.deploy import load, run_model, stablehlo
from dvsnas_jax.infer import artifact, jitted
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo

_CROP = 321
_TINY = {
    "compile_effort": "quick", "data.height": "32", "data.width": "64", "data.crop_height": "32",
    "data.crop_width": "32", "data.num_frames": "2", "net.encoder": "resnet18", "net.width": "0.125",
    "net.decoder_channels": "8", "space.inputs": "decoder,logits", "space.num_layers": "1",
    "space.operations": "skip,conv_3x3", "space.aggregations": "sum", "space.channels": "8", "controller.hidden": "8",
    "controller.buffer": "4", "search.batch_size": "2", "search.reward_clips": "2", "search.genotypes_per_step": "2",
    "search.shared_steps": "2", "search.warmup_steps": "2", "search.num_random": "2", "search.cache_clips": "2",
}  # fmt: skip
_MEMBER = "dff"
"""The cell that is exported: key frames and others, a warp between them."""
_OPTIONAL = {"safetensors": "weights are constants of the exported programs"}


def measure(name: str, *, is_tiny: bool) -> dict[str, Any]:
    """One part of `accelerator.PARTS`.

    Returns:
      `result`, what it found; `notes`, a line for each thing that is not there; `backend`, `device`, `git_commit`;
      `peak_bytes`, the most memory of the device that its process held, 0 where it does not tell.
    """
    effort, device = "quick" if is_tiny else "full", jax.devices()[0]
    with compilation.effort(effort):
        result = _TABLE[name](is_tiny)
    stats = device.memory_stats() or {}
    return {
        "result": result,
        "notes": result.pop("notes", []),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "git_commit": workdir.environment()["git_commit"],
        "peak_bytes": int(stats.get("peak_bytes_in_use", 0)),
    }


def paper_config(is_tiny: bool) -> ml_collections.ConfigDict:
    """The search of `configs/cityscapes_search.py`, whose data set is not read; or a small one."""
    if is_tiny:
        return config_lib.load(None, _TINY)
    config = config_lib.defaults()
    presets.cityscapes(config, height=512, num_frames=3)
    presets.paper_networks(config)
    presets.paper_search(config)
    config.search.update({"reward_clips": 64})
    return compile_sizes.paper_size(config, _CROP)


def _device(is_tiny: bool) -> dict[str, Any]:
    """What there is, and the peaks that shares are taken of."""
    found = workdir.environment()
    size = 1 << (22 if is_tiny else 28)
    values = jnp.zeros(size, jnp.float32)
    copy = compilation.jit(lambda x: x + 1).lower(values).compile()
    seconds = min(stopwatch.seconds(lambda: copy(values)) for _ in range(6))
    sizes = (128, 256) if is_tiny else None
    stats = jax.devices()[0].memory_stats() or {}
    notes = [f"{name} is not installed: {what}" for name, what in _OPTIONAL.items() if not _has(name)]
    if jax.default_backend() != "gpu":
        notes.append(f"JAX computes on {jax.default_backend()} here: these figures say nothing about a GPU")
        if pathlib.Path("/dev/nvidia0").exists():
            notes.append("a GPU is here, but JAX does not use it: pip install 'jax[cuda12]'")
    if not stats:
        notes.append(f"{jax.default_backend()} keeps no count of memory: peaks are missing")
    return {
        "environment": found,
        "matrix_peak_gflops": {dtype: nets_speed.matrix_peak(dtype, sizes) for dtype in ("float32", "bfloat16")},
        "copy_gb_per_s": 2 * values.nbytes / seconds / 1e9,
        "memory_bytes": int(stats.get("bytes_limit", 0)),
        "notes": notes,
    }


def _has(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.import_module(package) is not None
    except ModuleNotFoundError:
        return False


def _kernels(is_tiny: bool) -> dict[str, Any]:
    sizes = kernel_variants.Sizes(2, 9, 8, 8, 16, 1) if is_tiny else kernel_variants.Sizes()
    return {"kernels": kernel_variants.run(sizes)}


def _search(is_tiny: bool) -> dict[str, Any]:
    """The supernet's step, and an iteration of a search."""
    with tempfile.TemporaryDirectory() as folder:
        groups, repeats = (1, 1) if is_tiny else (4, 2)
        effort = search_speed.Effort(groups, repeats, profile=folder, has_collectives=False)
        return search_speed.run(paper_config(is_tiny), effort=effort)


def _net(dtype: str, **changes: Any) -> Callable[[bool], dict[str, Any]]:
    """A static network in one type: forward, training step, and how far its logits are from those in float32."""

    def run(is_tiny: bool) -> dict[str, Any]:
        config = paper_config(is_tiny).net.copy_and_resolve_references()
        config.update({"dtype": dtype, **({} if is_tiny else changes)})
        sizes: dict[str, Any] = {"size": (360, 480), "train_size": (_CROP, _CROP), "train_batch": 16}
        if is_tiny:
            sizes = {"size": (32, 32), "train_size": (32, 32), "train_batch": 2 * (dtype == "float32"), "repeats": 2}
        name = f"{config.encoder} x {config.width:g}, {dtype}"
        found = nets_speed.run({name: config}, has_profile=True, **sizes)
        return {**found, **(_distance(config, (64, 96)) if dtype != "float32" else {})}

    return run


def _distance(config: ml_collections.ConfigDict, size: tuple[int, int]) -> dict[str, float]:
    """Of a network's logits to those of the same weights in float32, relative to their largest; which share of the
    labels is equal."""
    logits = []
    for dtype in ("float32", config.dtype):
        own = config.copy_and_resolve_references()
        own.dtype = dtype
        fn, arguments = nets_speed.forward(static_net.make(own, nets_speed.NUM_CLASSES), size)
        logits.append(np.asarray(compilation.jit(fn)(*arguments), np.float64))
    exact, rounded = logits
    return {
        "logits_difference": float(np.abs(rounded - exact).max() / np.abs(exact).max()),
        "equal_labels": float((rounded.argmax(-1) == exact.argmax(-1)).mean()),
    }


def _export(is_tiny: bool) -> dict[str, Any]:
    """A network and a cell of drawn weights: exported, read back, run beside the programs of this process."""
    config = _export_config(is_tiny)
    space, genotype = zoo.genotype(zoo.get(_MEMBER))
    model = propagate_speed.drawn(config, space, genotype)
    rng, num = np.random.default_rng(0), 2 * config.schedule.interval
    frames = rng.integers(0, 256, (num, *model.size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path, is_baked = pathlib.Path(folder), not _has("safetensors")
        manifest = run_model.describe(config, model, genotype_lib.to_dict(space, genotype))
        manifest |= stablehlo.write(path, model, is_baked=is_baked)
        (path / artifact.MANIFEST).write_text(json_text.dumps(manifest))
        exported = _followed(load.load(path).dispatch, frames)
        sizes = {file.name: file.stat().st_size for file in path.iterdir()}
        cuda = _stored(path, manifest)
    own = _followed(jitted.Jitted(model), frames)
    is_run = jax.default_backend() != "cpu"
    return {
        "size": list(model.size),
        "interval": config.schedule.interval,
        "files": sizes,
        "platforms": cuda,
        "equal_labels": float((exported["labels"] == own["labels"]).mean()),
        "labels_found": int(np.unique(own["labels"]).size),
        **{f"{who}_{part}_ms": found[part] for who, found in (("exported", exported), ("own", own)) for part in _TIMES},
        "notes": [] if is_run else ["the CUDA programs were written and read back, and not run: there is no GPU"],
    }


_TIMES = ("static", "key", "other")


def _export_config(is_tiny: bool) -> ml_collections.ConfigDict:
    changes = {"space.mode": "propagate", "schedule.kind": "fixed", "schedule.interval": "5", "space.inputs": ""}
    changes |= {"data.height": "360", "data.width": "480", "net.width": "1.0", "net.decoder_channels": "256"}
    if is_tiny:
        small = {key: value for key, value in _TINY.items() if key.startswith(("compile", "data", "net"))}
        changes |= {**small, "space.channels": "8", "schedule.interval": "2"}
    changes["space.inputs"] = ",".join(zoo.get(_MEMBER).genotype["inputs"])
    return config_lib.load(None, changes)


def _followed(dispatch: Any, frames: np.ndarray) -> dict[str, Any]:
    """Labels u8 [T, H, W] of a video, and the median milliseconds of its kinds of frames and of the network alone."""
    times: dict[str, list[float]] = {part: [] for part in _TIMES}
    for turn in range(2):  # the first compiles
        state, labels = dispatch.initial_state(), []
        for frame in frames:
            times["static"].append(stopwatch.seconds(functools.partial(dispatch.static_step, frame[None])))
            started = time.perf_counter()
            state, found = jax.block_until_ready(dispatch.step(state, frame[None]))
            times["key" if dispatch.key_share(state) else "other"].append(time.perf_counter() - started)
            labels.append(np.asarray(found)[0])
        if turn == 0:
            times = {part: [] for part in _TIMES}
    return {"labels": np.stack(labels), **{part: 1e3 * statistics.median(each) for part, each in times.items()}}


def _stored(path: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """The platforms of the programs for accelerators, as their files say."""
    files = {name: path / artifact.program_file(name, "accelerator") for name in manifest["programs"]}
    return {name: list(jax.export.deserialize(bytearray(file.read_bytes())).platforms) for name, file in files.items()}


def _programs(is_tiny: bool) -> dict[str, Any]:
    """What is handed to CUDA, read as text: nothing of it has to run."""
    return {"programs": {name: described(text) for name, text in cuda_texts(is_tiny).items()}}


def cuda_texts(is_tiny: bool) -> dict[str, str]:
    """The steps of a search, and a network in bfloat16, lowered for CUDA."""
    config = compile_sizes.without_data(paper_config(is_tiny))
    made = compile_sizes.make(config, compile_sizes.make_mesh(config.search), train_clips=4, val_clips=2)
    texts = {
        name: lowered.cuda_text(getattr(made.steps, f"{name}_shared"), *getattr(made, name))
        for name in ("train", "evaluate")
    }
    net_config = config.net.copy_and_resolve_references()
    net_config.update({"dtype": "bfloat16"})
    net = static_net.make(net_config, nets_speed.NUM_CLASSES)
    size = 32 if is_tiny else _CROP
    for name, (fn, arguments) in {
        "net_forward": nets_speed.forward(net, (size, size)), "net_training": nets_speed.training(net, (2, size, size))
    }.items():  # fmt: skip
        texts[name] = lowered.cuda_text(compilation.jit(fn), *arguments)
    return texts


def described(text: str) -> dict[str, Any]:
    """A program in numbers: its problems, how many products it has, and which shares of them fit tensor cores."""
    found = lowered.inspect(text)
    return {
        "problems": found.problems(),
        "convolutions": sum(each.kind == "convolution" for each in found.products),
        "depthwise": sum(each.kind == "depthwise" for each in found.products),
        "products": sum(each.kind == "product" for each in found.products),
        "share_bfloat16": found.share(lambda each: each.dtype == "bf16"),
        "share_aligned": found.share(lambda each: each.is_aligned),
    }


_TABLE: dict[str, Callable[[bool], dict[str, Any]]] = {
    "device": _device,
    "kernels": _kernels,
    "search": _search,
    "net_float32": _net("float32"),
    "net_bfloat16": _net("bfloat16"),
    "export": _export,
    "programs": _programs,
    "net_resnet50": _net("bfloat16", encoder="resnet50"),
}
