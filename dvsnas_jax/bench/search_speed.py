"""`dvsnas bench search`: what a search costs on the devices at hand, phase by phase, on random features in memory.

No data set is read and TensorFlow is not needed: JAX, Flax, Optax, Chex, NumPy and ml_collections are enough. On a
machine with a GPU, from the root of the repository:

    dvsnas bench search --config=configs/cityscapes_search.py --paper-size --no-compile-cache --output=search.json

measures crops of 321 and of 512 pixels with batch 32, C = 64, L = 7. On a CPU `--paper-size` only counts the work.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.bench import collectives, compile_sizes, nets_speed, profiles, stopwatch
from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.search import estimate, search_cost
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, clip_scores

PAPER_CROPS = (321, 512)
PHASES = ("sample", "input", "train", "evaluate", "update")
_PROFILED = 3
UNITS = {"sample": "iteration", "input": "optimizer step", "train": "optimizer step"}


class Effort(NamedTuple):
    """How much is timed: groups of random genotypes, calls of each (the median counts); the folder of a profile of
    three steps; whether the steps are compiled for more devices than there are, to see what these tell each other."""

    groups: int = 6
    repeats: int = 3
    profile: str = ""
    has_collectives: bool = True


def run(
    config: ml_collections.ConfigDict, *,
    links: estimate.Links | None = None, num_candidates: int = 1000, effort: Effort | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures the phases of a search on all devices, and estimates one of `num_candidates` from them.

    The config's data set is not read; `links` between devices are assumed. Found are device, sizes, the compiled
    programs (seconds, bytes of memory and of collectives), seconds of each phase, shares of the peak of matrix
    products, the largest costs of a profiled step, candidates per hour, and the estimate with all that it assumes.
    A UserError where the candidates do not share weights.
    """
    config, links, effort = _prepared(config), links or estimate.Links(), effort or Effort()
    section, mesh = config.search, compile_sizes.make_mesh(config.search)
    programs = compile_sizes.make(config, mesh, train_clips=2 * section.batch_size, val_clips=section.batch_size)
    compiled, described = _compile(programs)
    peak = nets_speed.matrix_peak("float32")
    with compilation.effort(config.compile_effort):
        timed = _Timed(config, programs, compiled, mesh, effort)
    phases = timed.phases()
    peak = max(peak, nets_speed.matrix_peak("float32"))  # on a shared machine one look may be too low
    counted = search_cost.of_search(config, num_candidates)
    if effort.has_collectives:
        _add_collectives(config, compiled, described)
    else:
        _count_collectives(search_cost.assumed(config, counted, _num_params(programs), search_cost.Device()), described)
    # Virtual CPU devices share the cores that the peak was measured on.
    flops = peak * 1e9 * (1 if jax.default_backend() == "cpu" else jax.device_count())
    measured = _measured(config, phases, described)
    rows = estimate.scaling(measured, links, num_candidates=num_candidates)
    return {
        **_machine(),
        "matrix_peak_gflops": peak,
        "sizes": _sizes(config),
        "programs": described,
        "phases": {name: statistics.mean(phases[name]) for name in PHASES},
        "features_from_host": timed.features_from_host(),
        "shares": {name: 2 * timed.macs[name] / sum(phases[name]) / flops for name in ("train", "evaluate")},
        "iteration_seconds": rows[0]["iteration_s"],
        "candidates_per_hour": rows[0]["candidates_per_hour"],
        "largest": timed.largest(),
        "estimate": {"rows": rows, "assumptions": estimate.assumptions(measured, links, num_candidates)},
        "counted": counted,
    }


def count(
    config: ml_collections.ConfigDict, *,
    links: estimate.Links | None = None, num_candidates: int = 1000, device: search_cost.Device | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Sizes and counted work of a search, and what it would take on assumed devices, without compiling or running."""
    config, links, device = _prepared(config), links or estimate.Links(), device or search_cost.Device()
    programs = compile_sizes.make(config, compile_sizes.make_mesh(config.search), train_clips=1, val_clips=1)
    num_params = _num_params(programs)
    counted = search_cost.of_search(config, num_candidates)
    assumed = search_cost.assumed(config, counted, num_params, device)
    assumptions = estimate.assumptions(assumed, links, num_candidates, is_assumed=True)
    rows = estimate.scaling(assumed, links, num_candidates=num_candidates)
    return {
        **_machine(),
        "sizes": _sizes(config),
        "num_params": num_params,
        "counted": counted,
        "estimate": {"rows": rows, "assumptions": assumptions},
    }


def _num_params(programs: compile_sizes.Programs) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(programs.steps.state.params))


def _prepared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    if config.search.mode != "share":
        raise errors.UserError(
            "bench search: measures a search whose candidates share weights; set search.mode to 'share', "
            f"it is {config.search.mode!r}"
        )
    if strategies.TABLE[config.search.strategy].is_relaxed:
        raise errors.UserError("bench search: does not measure relaxed steps; set search.strategy to another name")
    return compile_sizes.without_data(config)


def _machine() -> dict[str, Any]:
    device, cache_keys = jax.devices()[0], ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    return {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "peak_bytes_in_use": int((device.memory_stats() or {}).get("peak_bytes_in_use", 0)),
        "has_compile_cache": all(jax.config.values.get(key) for key in cache_keys),
    }


def _sizes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the cost of a search depends on."""
    section = config.search
    train_size, evaluate_size = search_cost.image_sizes(config)
    return {
        "train_size": list(train_size),
        "evaluate_size": list(evaluate_size),
        "frames": config.data.num_frames,
        "batch": section.batch_size,
        "channels": config.space.channels,
        "layers": config.space.num_layers,
        **{name: section[name] for name in ("shared_genotypes", "shared_steps", "genotypes_per_step")},
        "scored_clips": int(np.prod(compile_sizes.scored_shape(section))),
    }


def _compile(programs: compile_sizes.Programs) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The programs `train` and `evaluate`, and for each the seconds and the memory that it took."""
    compiled, described = {}, {}
    for name in ("train", "evaluate"):
        started = time.perf_counter()
        lowered = programs.lower(name)
        between = time.perf_counter()
        compiled[name] = lowered.compile()
        seconds = {"lower_s": between - started, "compile_s": time.perf_counter() - between}
        described[name] = {**seconds, "memory": compile_sizes.memory(compiled[name])}
    return compiled, described


def _add_collectives(
    config: ml_collections.ConfigDict, compiled: Mapping[str, Any], described: dict[str, dict[str, Any]]
) -> None:
    """Counts what the programs at hand tell each other, or, where one device has no one to talk to, those for more."""
    if jax.device_count() > 1:
        found = {name: collectives.find(program.as_text()) for name, program in compiled.items()}
        where = f"{jax.device_count()} devices"
    else:
        found = collectives.find_on_virtual_devices(config)
        where = f"{collectives.VIRTUAL_DEVICES} virtual CPU devices"
    for name, items in found.items():
        described[name] |= {
            "collectives": [[item.kind, item.num_bytes, item.is_entry] for item in items],
            "collective_bytes": sum(item.num_bytes for item in items),
            "compiled_for": where,
        }


def _count_collectives(assumed: estimate.Measured, described: dict[str, dict[str, Any]]) -> None:
    """The same by what has to be summed, without compiling."""
    for name, num_bytes in (("train", assumed.train_bytes), ("evaluate", assumed.evaluate_bytes)):
        described[name] |= {"collectives": [], "collective_bytes": num_bytes, "compiled_for": "counted, not compiled"}


def _measured(
    config: ml_collections.ConfigDict, phases: Mapping[str, list[float]], described: Mapping[str, dict[str, Any]]
) -> estimate.Measured:
    section = config.search
    return estimate.Measured(
        devices=jax.device_count(),
        train=tuple(phases["train"]),
        evaluate=tuple(phases["evaluate"]),
        sample=statistics.mean(phases["sample"]),
        update=statistics.mean(phases["update"]),
        input=statistics.mean(phases["input"]),
        candidates=section.genotypes_per_step,
        shared_steps=section.shared_steps,
        warmup_steps=section.warmup_steps,
        num_random=section.num_random,
        train_bytes=described["train"]["collective_bytes"],
        evaluate_bytes=described["evaluate"]["collective_bytes"],
        compile=sum(part["lower_s"] + part["compile_s"] for part in described.values()),
    )


class _Timed:
    """The parts of a search on random features and the seconds that each takes; `macs`: multiply-adds behind them."""

    def __init__(
        self, config: ml_collections.ConfigDict, programs: compile_sizes.Programs, compiled: Mapping[str, Any],
        mesh: jax.sharding.Mesh, effort: Effort,
    ) -> None:  # fmt: skip
        self._config, self._section, self._effort, self._compiled = config, config.search, effort, compiled
        self._mesh, self._space = mesh, programs.space
        self._strategy = strategies.make(config.search.strategy, programs.space, config.controller)
        self._stores = {
            name: _random_store(shapes[2], jax.random.key(index))
            for index, (name, shapes) in enumerate((("train", programs.train), ("evaluate", programs.evaluate)))
        }
        self._state = programs.steps.init(jax.random.key(2))
        self.macs: dict[str, float] = {}

    def phases(self) -> dict[str, list[float]]:
        """Seconds of each phase, a value for every group of genotypes (and for every call of the policy's)."""
        sample, update = self._policy()
        return {
            "sample": sample,
            "input": [self._median(self._input) for _ in range(self._effort.groups)],
            "train": self._train(),
            "evaluate": self._evaluate(),
            "update": update,
        }

    def features_from_host(self) -> dict[str, float]:
        """What reading one batch from host memory would take, where the features do not fit the device's."""
        store = self._stores["train"]
        batch = jax.tree.map(lambda x: np.asarray(x[: self._section.batch_size]), store)
        where = mesh_lib.replicated(self._mesh)
        seconds = self._median(lambda: jax.device_put(batch, where))
        return {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(batch)), "seconds": seconds}

    def largest(self) -> list[dict[str, Any]]:
        """What took most of the profiled optimizer steps, see `profiles.largest`; [] without a profile."""
        if not self._effort.profile:
            return []
        calls, text = min(_PROFILED, self._effort.groups), self._compiled["train"].as_text()
        return profiles.largest(self._effort.profile, text, calls=calls)

    def _median(self, call_fn: Callable[[], object]) -> float:
        return stopwatch.median_seconds(call_fn, self._effort.repeats)

    def _random(self, rng: np.random.Generator, num: int) -> np.ndarray:
        return genotype_lib.random(self._space, rng, num, op_mask=self._strategy.op_mask)

    def _groups(self, name: str, num: int, seed: int) -> list[np.ndarray]:
        """Groups of random genotypes, and how many multiply-adds they are of a program."""
        rng = np.random.default_rng(seed)
        groups = [self._random(rng, num) for _ in range(self._effort.groups)]
        self.macs[name] = search_cost.of_genotypes(self._config, np.concatenate(groups))[f"{name}_macs"]
        return groups

    def _input(self) -> tuple[np.ndarray, np.ndarray]:
        """The arguments of one optimizer step, on the host: the program's call moves them."""
        shape = (self._section.shared_genotypes, self._section.batch_size)
        clips = cell_training.draw_clips((0, 1, 2), self._stores["train"].num_clips, shape)
        return self._random(np.random.default_rng(0), shape[0]), clips

    def _train(self) -> list[float]:
        _, clips = self._input()

        def step(genotypes: np.ndarray) -> Any:
            self._state, metrics = self._compiled["train"](self._state, genotypes, self._stores["train"], clips)
            return jax.block_until_ready(metrics)

        groups = self._groups("train", self._section.shared_genotypes, 1)
        step(groups[0])
        found = [self._median(functools.partial(step, group)) for group in groups]
        if self._effort.profile:
            with jax.profiler.trace(self._effort.profile):
                for group in groups[:_PROFILED]:
                    step(group)
        return found

    def _evaluate(self) -> list[float]:
        batches, size = compile_sizes.scored_shape(self._section)
        clips = np.arange(batches * size, dtype=np.int32).reshape(batches, size) % self._stores["evaluate"].num_clips

        def score(genotypes: np.ndarray) -> Any:
            arguments = (self._state.params, genotypes, self._stores["evaluate"], clips)
            return clip_scores.add([self._compiled["evaluate"](*arguments)])

        groups = self._groups("evaluate", self._section.genotypes_per_step, 2)
        score(groups[0])
        return [self._median(functools.partial(score, group)) for group in groups]

    def _policy(self) -> tuple[list[float], list[float]]:
        """Seconds of drawing for an iteration, and of learning from one: a mean, as most calls only fill the buffer."""
        section, strategy = self._section, self._strategy
        state, rng = strategy.init(jax.random.key(3)), jax.random.key(4)
        num = section.genotypes_per_step
        rewards, valid = np.linspace(0.1, 0.9, num, dtype=np.float32), np.ones(num, bool)

        def draw() -> types.Samples:
            jax.block_until_ready(strategy.sample(state, rng, section.shared_steps * section.shared_genotypes))
            return jax.block_until_ready(strategy.sample(state, rng, num))

        samples = draw()
        sample = [self._median(draw)]
        state, _ = strategy.update(state, samples, rewards, valid, rng)
        num_calls = -(-2 * self._config.controller.buffer // num)
        started = time.perf_counter()
        for _ in range(num_calls):
            state, _ = strategy.update(state, samples, rewards, valid, rng)
        return sample, [(time.perf_counter() - started) / num_calls]


def _random_store(shapes: types.FeatureStore, rng: jax.Array) -> types.FeatureStore:
    """Normal features, and labels that are 0 or 1, of the given shapes and shardings."""

    def draw(index: int, leaf: Any) -> jax.Array:
        def values(rng: jax.Array) -> jax.Array:
            drawn = jax.random.normal(rng, leaf.shape, jnp.bfloat16)
            is_feature = jnp.issubdtype(leaf.dtype, jnp.floating)
            return (drawn if is_feature else drawn > 0).astype(leaf.dtype)

        return compilation.jit(values, out_shardings=leaf.sharding)(jax.random.fold_in(rng, index))

    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [draw(index, leaf) for index, leaf in enumerate(leaves)])


def table(result: Mapping[str, Any], device: search_cost.Device | None = None, num_candidates: int = 1000) -> str:
    """What `run` or `count` returned, as text."""
    size = result["sizes"]
    is_measured = "phases" in result
    found = result["estimate"]
    lines = [
        f"{result['devices']} x {result['backend']} ({result['device']}), JAX {result['jax']}",
        f"training {'x'.join(map(str, size['train_size']))}, scoring {'x'.join(map(str, size['evaluate_size']))}, "
        f"{size['frames']} frames, batch {size['batch']}, C = {size['channels']}, L = {size['layers']}, "
        f"{size['shared_genotypes']} genotypes an optimizer step, {size['shared_steps']} steps an iteration, "
        f"{size['genotypes_per_step']} candidates, each on {size['scored_clips']} clips",
    ]
    estimated = [estimate.table(found["rows"]), *(f"- {line}" for line in found["assumptions"])]
    if is_measured:
        lines += [*_measured_lines(result), "", "estimated, not measured:", *estimated]
    lines += ["", "counted work:", *search_cost.text(result["counted"], num_candidates, device or search_cost.Device())]
    if not is_measured:
        lines += ["", "on that device, estimated, nothing of it measured:", *estimated]
    return "\n".join(lines)


def _measured_lines(result: Mapping[str, Any]) -> list[str]:
    lines = ["", f"matrix product {result['matrix_peak_gflops']:.0f} GFLOP/s a device in float32", ""]
    for name in PHASES:
        share = f", {100 * result['shares'][name]:.1f} % of the peak" if name in result["shares"] else ""
        lines.append(f"{name:9}{result['phases'][name]:10.4f} s an {UNITS.get(name, 'iteration')}{share}")
    lines.append("")
    for name, part in result["programs"].items():
        lines.append(
            f"{name:9}compiled in {part['lower_s']:.0f} + {part['compile_s']:.0f} s; "
            f"{part['memory']['total'] / 1e9:.2f} GB a device ({part['memory']['temp'] / 1e9:.2f} of its own); "
            f"{part['collective_bytes'] / 1e6:.3f} MB in {len(part['collectives'])} collectives "
            f"({part['compiled_for']})"
        )
    if result["largest"]:
        lines.append(f"largest in an optimizer step: {profiles.text_of(result['largest'])}")
    if result["has_compile_cache"]:
        lines.append("compiled programs are kept: these seconds may be of reading them; see --no-compile-cache")
    moved = result["features_from_host"]
    lines.append(f"a batch of features from host memory: {moved['bytes'] / 1e6:.0f} MB in {moved['seconds']:.3f} s")
    rate, seconds = result["candidates_per_hour"], result["iteration_seconds"]
    return [*lines, "", f"{rate:.0f} candidates an hour, {seconds:.2f} s an iteration"]
