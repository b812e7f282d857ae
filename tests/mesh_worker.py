"""What tests/test_mesh.py runs in a process of its own, on 8 virtual devices: `mesh_worker.py CASE OUTPUT`."""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dvsnas_jax.bench import collectives
from dvsnas_jax.core import compilation, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.nets import static_net
from dvsnas_jax.search import steps
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import pretrain, pretrain_loss

SPACE = genotype_lib.Space(
    inputs=("prev_state", "prev_logits", "decoder", "logits"),
    num_layers=2,
    operations=("none", "skip", "conv_1x1", "sep_conv_3x3"),
    aggregations=("sum", "gate"),
)
SETTINGS = cell_frame.CellSettings(channels=8, feature_channels={"decoder": 5, "logits": 3, "image": 3})
NUM_CLIPS = 24


def make_store() -> types.FeatureStore:
    rng = np.random.default_rng(0)

    def draw(channels: int) -> np.ndarray:
        return rng.normal(size=(NUM_CLIPS, 2, 8, 8, channels)).astype(jnp.bfloat16)

    features = types.Features(maps={"decoder": draw(5), "image": draw(3)}, logits=draw(3))
    labels = np.asarray(features.maps["decoder"][..., :3], np.float32).argmax(axis=-1).astype(np.uint8)
    labels = labels.repeat(4, axis=2).repeat(4, axis=3)
    labels[:, :, 0] = types.IGNORE
    labels[:5, :, 3:9] = types.IGNORE  # parts with fewer labels than others
    return types.FeatureStore(features=features, labels=labels)


def section(num_parts: int):
    found = config_lib.defaults().search
    found.batch_parts = num_parts
    return found


def draw_clips(num_genotypes: int, num_parts: int, size: int, num_rows: int) -> np.ndarray:
    """Clips [G, B] of which part p has those of its own share of the rows."""
    own = num_rows // num_parts
    drawn = np.random.default_rng(2).integers(0, own, (num_genotypes, num_parts, size // num_parts), np.int32)
    return (drawn + own * np.arange(num_parts, dtype=np.int32)[None, :, None]).reshape(num_genotypes, size)


def run_steps(mesh: jax.sharding.Mesh, num_parts: int, num_genotypes: int, size: int, spec: str) -> dict:
    """Loss, norm, gradient and counts of one step on a mesh; and the losses of three steps."""
    rows = {"replicated": mesh_lib.REPLICATED, "by_data": mesh_lib.BY_DATA}[spec]
    with compilation.effort("quick"):
        made = steps.make(supernet_lib.make(SPACE, SETTINGS), section(num_parts), mesh, train_rows=rows, val_rows=rows)
    store = jax.tree.map(lambda x: mesh_lib.put(x, mesh_lib.sharding(mesh, rows)), make_store())
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(1), num_genotypes)
    clips = draw_clips(num_genotypes, num_parts, size, NUM_CLIPS)
    state = made.init(jax.random.key(0))
    # Weights that matter: the head starts at zero.
    params = jax.tree.map(lambda x: x + 0.1, state.params)
    state = dataclasses.replace(state, params=params)
    batches = draw_clips(3, num_parts, size, NUM_CLIPS)
    batches[2, -1] = ~batches[2, -1]
    train = made.train_shared.lower(state, genotypes, store, clips).compile()
    evaluate = made.evaluate_shared.lower(state.params, genotypes, store, batches).compile()
    scores = evaluate(state.params, genotypes, store, batches)
    found = {
        "counts": np.asarray(scores.counts).tolist(),
        "flicker": np.asarray(scores.flicker).tolist(),
        "changes": np.asarray(scores.changes).tolist(),
        "is_finite": np.asarray(scores.is_finite).tolist(),
        "losses": [],
        "train": [(item.kind, item.is_entry) for item in collectives.find(train.as_text())],
        "evaluate": [(item.kind, item.is_entry) for item in collectives.find(evaluate.as_text())],
    }
    for step in range(3):
        state, metrics = train(state, genotypes, store, clips)
        found["losses"].append(float(metrics["loss"]))
        if step == 0:
            found["norm"] = float(metrics["gradient_norm"])
            moments = optax.tree_utils.tree_get(state.opt_state, "mu")
            found["gradient"] = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(moments)]).tolist()
    return found


def shared(cases: list[list]) -> dict:
    """`[arch, data, parts, genotypes, spec] -> results`, the batch has 2 clips a part."""
    found = {}
    for arch, data, parts, genotypes, spec in cases:
        mesh = mesh_lib.make(data, jax.devices()[: arch * data])
        found[f"{arch}x{data} {parts} {genotypes} {spec}"] = run_steps(mesh, parts, genotypes, 2 * parts, spec)
    return found


def pretraining() -> dict:
    """Two steps of the static network on one device and on all, with a batch of 8 and of 6 frames."""
    config = config_lib.defaults()
    config.net.update({"encoder": "resnet18", "width": 0.125, "decoder_channels": 8})
    net = static_net.make(config.net, 3)
    optimizer = pretrain.make_optimizer(config.pretrain)
    rng = np.random.default_rng(0)
    found: dict = {"places": {}}
    for size in (8, 6):
        clip = types.Clip(
            frames=rng.integers(0, 256, (size, 1, 32, 32, 3), np.uint8),
            labels=rng.integers(0, 3, (size, 1, 32, 32), np.uint8),
        )
        for devices in (1, 8):
            with compilation.effort("quick"):
                step = pretrain.make_step(pretrain_loss.make(config.pretrain, net), optimizer, 0.9, jax.random.key(1))
            state = pretrain.init(static_net.init(net, jax.random.key(0)), optimizer)
            batch = clip
            if devices == 8:
                state, batch = mesh_lib.replicate_for_batch(state, size), mesh_lib.put_batch(clip, size)
                found["places"][size] = sorted({shard.index[0].start or 0 for shard in batch.frames.addressable_shards})
            losses = []
            for _ in range(2):
                state, metrics = step(state, batch, None)
                losses.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
            found[f"{size} {devices}"] = losses
            if devices == 8:
                found[f"sharding {size}"] = str(jax.tree.leaves(state.variables)[0].sharding.is_fully_replicated)
    return found


def main() -> None:
    case, output = sys.argv[1:]
    assert jax.device_count() == 8
    run = {"pretraining": pretraining}.get(case) or functools.partial(shared, json.loads(case))
    pathlib.Path(output).write_text(json.dumps(run()))


if __name__ == "__main__":
    main()
