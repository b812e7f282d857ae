"""The configs of paper scale: what they hold fits, and their programs are built for 8 devices, without data."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dvsnas_jax.bench import compile_sizes
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import held_out
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import features

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAIN_CLIPS = {"cityscapes": 2975, "camvid": 367}
SEARCHES = ("cityscapes_search", "camvid_search", "cityscapes_propagate")
CONFIGS = (*SEARCHES, "cityscapes_train", "camvid_train")
# 10^9 bytes on one device: features kept, and all that a compiled program needs (an H100 has 80).
STORE_LIMIT, PROGRAM_LIMIT = 30, 60


def load(name: str):
    return config_lib.load(str(ROOT / "configs" / f"{name}.py"), {})


def gigabytes(shapes) -> float:
    return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) / 1e9


def num_clips(config) -> tuple[int, int]:
    """Clips of the two stores."""
    total = TRAIN_CLIPS[config.data.name]
    val = held_out.count(total, config.search.meta_val_fraction)
    return config.search.cache_clips or total - val, val


# --- what is asked on 8 virtual devices, in a process of its own --------------------------------------------------


def search_programs(config) -> dict:
    """Both steps of a search, lowered."""
    train, val = num_clips(config)
    programs = compile_sizes.make(config, compile_sizes.make_mesh(config.search), train_clips=train, val_clips=val)
    return {"train": lambda: programs.lower("train"), "evaluate": lambda: programs.lower("evaluate")}


def training_programs(config) -> dict:
    """The training steps of the static network, data parallel, and of a cell, lowered."""
    from dvsnas_jax.core import mesh as mesh_lib
    from dvsnas_jax.core import types
    from dvsnas_jax.nets import static_net
    from dvsnas_jax.space import cell as cell_lib
    from dvsnas_jax.train import cell_loss, cell_training, optim, pretrain, pretrain_loss

    space, settings = features.space_of(config), features.settings_of(config)

    def static() -> jax.stages.Lowered:
        section, data = config.pretrain, config.data
        frames = 1 if data.history == "stills" else data.num_frames
        size = section.batch_size // frames
        net, optimizer = static_net.make(config.net, settings.num_classes), pretrain.make_optimizer(section)
        step = pretrain.make_step(pretrain_loss.make(section, net), optimizer, section.polyak, jax.random.key(0))
        where = mesh_lib.batch_sharding(size)
        copied = jax.sharding.NamedSharding(where.mesh, mesh_lib.REPLICATED)
        state = jax.eval_shape(lambda variables: pretrain.init(variables, optimizer), static_net.shapes(net))
        shape = (size, frames, data.crop_height, data.crop_width)
        clip = types.Clip(
            frames=jax.ShapeDtypeStruct((*shape, 3), np.uint8, sharding=where),
            labels=jax.ShapeDtypeStruct(shape, np.uint8, sharding=where),
        )
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), state)
        return step.lower(state, clip, None)

    def cell() -> jax.stages.Lowered:
        (genotype,) = genotype_lib.random(space, np.random.default_rng(0), 1)
        static_cell = cell_lib.make(space, genotype, settings)
        optimizer = optim.make(config.train)
        loss = cell_loss.make(config, config.train.label_stride, None)
        state = cell_training.init(static_cell, optimizer, 0)
        where = mesh_lib.replicated(mesh_lib.make())
        names = features.needed_maps(space, config)
        store = features.shapes(config, names, num_clips(config)[0], where, is_augmented=True)
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state)
        clips = jax.ShapeDtypeStruct((config.train.batch_size,), np.int32)
        return cell_training.make_step(static_cell, optimizer, loss, config.train.polyak).lower(state, store, clips)

    return {"static": static, "cell": cell}


def child(name: str, programs: list[str], do_compile: bool) -> None:
    """Prints one JSON line: for each program the all-reduces of its StableHLO or, compiled, the bytes on a device."""
    config = load(name).copy_and_resolve_references()
    config.compile_effort = "quick"
    made = search_programs(config) if name in SEARCHES else training_programs(config)
    found = {}
    for program in programs:
        lowered = made[program]()
        found[program] = (
            compile_sizes.memory(lowered.compile()) if do_compile else lowered.as_text().count("stablehlo.all_reduce")
        )
    print(json.dumps({"devices": jax.device_count(), "found": found}))


def on_8_devices(name: str, programs: list[str], *, do_compile: bool) -> dict:
    code = f"import test_paper_configs as t; t.child({name!r}, {programs!r}, {do_compile})"
    environ = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["devices"] == 8
    return answer["found"]


# --- the tests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_config_fits_its_data_and_a_device(name, monkeypatch):
    config = load(name)
    variable = {"cityscapes": "DVSNAS_CITYSCAPES", "camvid": "DVSNAS_CAMVID"}[config.data.name]
    monkeypatch.setenv(variable, "/somewhere")
    assert config.data.dir == "" and datasets.root(config.data) == "/somewhere"
    assert config.data.crop_height <= config.data.height and config.data.crop_width <= config.data.width
    assert (config.space.channels, config.space.num_layers) == (64, 7)
    train, val = num_clips(config)
    names = features.needed_maps(features.space_of(config), config)
    stores = [features.shapes(config, names, train, None, is_augmented=True)]
    if name in SEARCHES:
        stores.append(features.shapes(config, names, val, None))
        assert val >= config.search.reward_clips
        # 1,000 candidates, spread without a rest over up to 8 devices.
        assert config.search.steps * config.search.genotypes_per_step == 1000
        assert config.search.genotypes_per_step == config.search.shared_genotypes == 8
        frames = 1 if config.data.history == "stills" else config.data.num_frames
        assert config.pretrain.batch_size % (8 * frames) == 0
    total = gigabytes(stores)
    print(f"{name}: {total:.1f} GB of features")
    assert 10 < total < STORE_LIMIT


def test_programs_are_built_for_8_devices():
    """Lowered only; with one sum of the gradients over the devices. The slow test compiles."""
    assert on_8_devices("camvid_search", ["train"], do_compile=False) == {"train": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_programs_fit_a_device(name):
    programs = ["train", "evaluate"] if name in SEARCHES else ["static", "cell"]
    found = on_8_devices(name, programs, do_compile=True)
    for program, memory in found.items():
        parts = {part: round(value / 1e9, 2) for part, value in memory.items()}
        print(f"{name} {program}: GB a device of 8, as compiled for a CPU: {parts}")
        assert 1e8 < memory["total"] < PROGRAM_LIMIT * 1e9
