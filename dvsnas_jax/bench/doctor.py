"""The command `doctor`: whether this machine can run the program, and what to do where it cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import psutil

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import camvid, frames
from dvsnas_jax.data.loading import tf_loader
from dvsnas_jax.nets import encoders
from dvsnas_jax.nets.encoders import encoder
from dvsnas_jax.nets.weights import pretrained
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import losses

OK, NOTE, BROKEN = "ok", "note", "broken"
REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "matplotlib", "av")
OPTIONAL = ("tensorflow", "tensorflow-datasets", "array_record", "tensorboardX")
_ALIASES = {"tensorflow": ("tensorflow", "tensorflow-cpu")}
_LOW_MEMORY = 3 << 30
_GPU_DEVICE = pathlib.Path("/dev/nvidia0")
_INSTALL = "install the package again: pip install -e . -c constraints.txt"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, in words and in numbers, and what to do ("": nothing).

    `status` is `OK`; `NOTE`, worth knowing; `BROKEN`, something needed does not work.
    """

    name: str
    status: str
    found: str
    advice: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(config: ml_collections.ConfigDict | None = None) -> list[Check]:
    """Looks at everything, and at what the config of a run that is planned needs, in the order of the table."""
    found = devices()
    checks = [python(), versions(), found, memory(), tensorflow(is_needed=config is not None and _reads_by_tf(config))]
    names = [name for name, each in datasets.on_disk().items() if each.on_disk.variable]
    checks += [compile_cache(), *map(dataset, names), *(needs(config) if config is not None else [])]
    return checks if found.status == BROKEN else [*checks, self_test()]


def table(checks: Sequence[Check]) -> str:
    """The checks for people, and below what to do."""
    width = max(len(check.name) for check in checks)
    lines = [f"{check.status:<7} {check.name:<{width}}  {check.found}" for check in checks]
    advice = [f"{check.name}: {check.advice}" for check in checks if check.advice]
    num_broken = sum(check.status == BROKEN for check in checks)
    verdict = f"{num_broken} of {len(checks)} checks failed" if num_broken else "everything needed works"
    return "\n".join([*lines, "", *advice, verdict])


def is_fine(checks: Sequence[Check]) -> bool:
    """Whether nothing needed is broken."""
    return all(check.status != BROKEN for check in checks)


def python() -> Check:
    """The interpreter and the machine."""
    return Check("python", OK, f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")


def versions() -> Check:
    """What is installed."""
    found = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name in REQUIRED if found[name] is None]
    if missing:
        return Check("versions", BROKEN, f"missing: {', '.join(missing)}; {shown}", _INSTALL, found)
    return Check("versions", OK, shown, values=found)


def _version(name: str) -> str | None:
    for alias in _ALIASES.get(name, (name,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(alias)
    return None


def devices() -> Check:
    """What JAX computes on."""
    try:
        found = jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names a backend that does not start
        advice = "unset JAX_PLATFORMS, or install JAX for the accelerator: pip install 'dvsnas-jax[cuda]' or [tpu]"
        return Check("devices", BROKEN, _first_line(error), advice)
    kinds = [f"{device.platform}:{device.id} {device.device_kind}" for device in found]
    values = {"backend": jax.default_backend(), "devices": kinds}
    if jax.default_backend() == "cpu" and _GPU_DEVICE.exists():
        advice = "a GPU is here, but JAX does not use it: pip install 'dvsnas-jax[cuda]'"
        return Check("devices", NOTE, ", ".join(kinds), advice, values)
    return Check("devices", OK, ", ".join(kinds), values=values)


def memory() -> Check:
    """Memory of the host and, where they tell it, of the devices."""
    host = psutil.virtual_memory()
    values: dict[str, Any] = {"host_total": host.total, "host_available": host.available}
    found = f"{_size(host.available)} of {_size(host.total)} free"
    try:
        stats = {str(device): device.memory_stats() or {} for device in jax.local_devices()}
    except RuntimeError:  # told by `devices`
        stats = {}
    for name, row in stats.items():
        if "bytes_limit" in row:
            values[name] = {key: row[key] for key in ("bytes_limit", "bytes_in_use") if key in row}
            found += f"; {name}: {_size(row['bytes_limit'])}"
    if host.available < _LOW_MEMORY:
        return Check("memory", NOTE, found, "little memory is free; close other programs or lower batch sizes", values)
    return Check("memory", OK, found, values=values)


def tensorflow(*, is_needed: bool) -> Check:
    """Whether TensorFlow, which only reads files, stays off the accelerators."""
    try:
        tf = tf_loader.tensorflow()
    except errors.UserError as error:
        status = BROKEN if is_needed else NOTE
        advice = "install it, or set data.loader to 'numpy'" if is_needed else ""
        return Check("tensorflow", status, f"{error}; embedded clips and `segment` work without", advice)
    physical, visible = (
        [device.name for device in fn() if device.device_type != "CPU"]
        for fn in (tf.config.list_physical_devices, tf.config.get_visible_devices)
    )
    values = {"version": tf.__version__, "accelerators": physical, "visible": visible}
    if visible:
        advice = "something used TensorFlow before it was told to leave the GPU alone; start a fresh process"
        return Check("tensorflow", BROKEN, f"{tf.__version__} would take {', '.join(visible)}", advice, values)
    seen = f"does not touch the {len(physical)} it could see" if physical else "sees none"
    return Check("tensorflow", OK, f"{tf.__version__}, off the accelerators: {seen}", values=values)


def compile_cache() -> Check:
    """Where compiled programs are kept between runs."""
    settings = jax.config.values
    folder = str(settings["jax_compilation_cache_dir"] or "")
    if not folder or not settings["jax_enable_compilation_cache"]:
        return Check("compile cache", NOTE, "off: every run compiles anew", "", {"path": folder})
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        advice = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written, or use --no-compile-cache"
        return Check("compile cache", BROKEN, f"{path}: {error.strerror}", advice, {"path": folder})
    sizes = [entry.stat().st_size for entry in os.scandir(path) if entry.is_file()]
    values = {"path": folder, "files": len(sizes), "bytes": sum(sizes)}
    return Check("compile cache", OK, f"{path}: {len(sizes)} files, {_size(sum(sizes))}, writable", values=values)


def dataset(name: str) -> Check:
    """The folder that the environment variable of a data set names: layout and counts, no pixel is read."""
    variable = datasets.TABLE[name].on_disk.variable
    folder = os.environ.get(variable, "")
    if not folder:
        return Check(name, NOTE, f"{variable} is not set")
    options = datasets.options(config_lib.defaults().data)
    try:
        opened = datasets.recognise(folder, name, options)
        splits = {split: opened.scan(split) for split in opened.present()}
    except errors.UserError as error:
        return Check(name, BROKEN, str(error), f"set {variable} to the folder, or unset it")
    counts = {
        split: {"frames": len(scan.frames), "labelled": frames.num_labelled(scan.frames.values())}
        for split, scan in splits.items()
    }
    values = {"folder": folder, "layout": opened.layout, "splits": counts}
    problems = [str(problem) for scan in splits.values() for problem in scan.fatal]
    if problems or not splits:
        first = problems[0] if problems else f"{folder}: no split is here; {opened.dataset.on_disk.expected}"
        return Check(name, BROKEN, first, f"look at all of it: dvsnas data check {folder}", values)
    shown = ", ".join(f"{split} {row['frames']} frames ({row['labelled']} labelled)" for split, row in counts.items())
    return Check(name, OK, f"{opened.layout} in {folder}: {shown}", values=values)


def needs(config: ml_collections.ConfigDict) -> Iterator[Check]:
    """What a config needs beside the program: its dataset and the folders that it names."""
    data = config.data
    if data.prepared:
        yield _folder("data.prepared", data.prepared, "write it: dvsnas data prepare --config=CONFIG --output=DIR")
    elif datasets.of(data).is_computed:
        yield Check("config: data", OK, "embedded clips, no files needed")
    else:
        try:
            splits = dict.fromkeys(("train", config.evaluate.split))
            counts = ", ".join(f"{split} {len(datasets.find(data, split).frames)} frames" for split in splits)
            yield Check("config: data", OK, f"{data.name}: {counts}")
        except errors.UserError as error:
            yield Check("config: data", BROKEN, str(error), "set data.dir, or check the folder: dvsnas data check DIR")
    if config.net.weights == config_lib.IMAGENET:
        yield _imagenet(encoders.TABLE[config.net.encoder])
    elif config.net.weights:
        yield _folder("net.weights", config.net.weights, "make it: dvsnas weights import FILE --output=DIR")
    if config.pretrain.teacher:
        yield _folder("pretrain.teacher", config.pretrain.teacher, "give the folder of a run with a static network")


def _imagenet(record: encoder.Encoder) -> Check:
    """Whether the package of an encoder's weights is installed, and its file the published one."""
    try:
        return Check("config: net.weights", OK, str(pretrained.find(record)))
    except errors.UserError as error:
        problem, _, advice = str(error).partition("; ")
        return Check("config: net.weights", BROKEN, problem, advice)


def _folder(key: str, path: str, advice: str) -> Check:
    """Whether a folder that a key of the config names is there."""
    if pathlib.Path(path).is_dir():
        return Check(f"config: {key}", OK, path)
    return Check(f"config: {key}", BROKEN, f"{path} is no folder", advice)


def _reads_by_tf(config: ml_collections.ConfigDict) -> bool:
    """Whether the clips of a config come from tf.data."""
    return config.data.loader == "tf" or (config.data.loader == "auto" and not datasets.of(config.data).is_computed)


def self_test() -> Check:
    """One step of a small supernet, forward and backward: compiles, runs, is finite."""
    space = genotype_lib.Space(
        inputs=("prev_state", "decoder", "logits"), num_layers=2,
        operations=("skip", "conv_3x3", "sep_conv_3x3"), aggregations=("sum", "gate"),
    )  # fmt: skip
    num_classes = camvid.CLASSES.num_classes
    settings = cell_frame.CellSettings(channels=8, feature_channels={"decoder": 8, "logits": num_classes, "image": 3})
    supernet = supernet_lib.make(space, settings)
    rng = np.random.default_rng(0)
    shape = (2, 1, 8, 8)  # T, B, h, w
    maps = {
        name: jnp.asarray(rng.normal(size=(*shape, count)), jnp.float32)
        for name, count in settings.feature_channels.items()
    }
    batch = types.Features(logits=maps.pop("logits"), maps=maps)
    labels = rng.integers(0, num_classes, (2, 1, 8, 8), np.uint8)

    def loss(params: types.Params, genotype: jax.Array) -> jax.Array:
        return losses.cross_entropy(supernet.unroll(params, genotype, batch), labels)[0]

    try:
        params = compilation.jit_once(supernet.init)(jax.random.key(0))
        with compilation.effort("quick"):
            step_fn = compilation.jit(jax.value_and_grad(loss))
        genotype = jnp.asarray(genotype_lib.random(space, rng, 1)[0])
        call = functools.partial(step_fn, params, genotype)
        compile_seconds, _ = _timed(call)
        seconds, (value, grads) = _timed(call)
    except RuntimeError as error:
        advice = "JAX cannot compute here; try JAX_PLATFORMS=cpu, and check the driver of the accelerator"
        return Check("self-test", BROKEN, _first_line(error), advice)
    norm = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))))
    values = {"loss": float(value), "gradient_norm": norm, "first_s": compile_seconds, "step_s": seconds}
    if not (np.isfinite(values["loss"]) and np.isfinite(norm) and norm > 0):
        advice = "JAX computes wrong numbers here; try JAX_PLATFORMS=cpu, and other versions of jax and jaxlib"
        return Check("self-test", BROKEN, f"loss {values['loss']}, gradient norm {norm}", advice, values)
    found = f"loss {value:.3f}, gradient norm {norm:.3f}; compiled and ran in {compile_seconds:.1f} s, again in "
    return Check("self-test", OK, f"{found}{1e3 * seconds:.1f} ms", values=values)


def _timed(fn: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call and its result."""
    started = time.perf_counter()
    result = jax.block_until_ready(fn())
    return time.perf_counter() - started, result


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
