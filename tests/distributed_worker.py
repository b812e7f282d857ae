"""What tests/test_distributed.py runs in several processes: `distributed_worker.py MODE FOLDER`.

Modes: `work` writes, adds up and saves, then ends; `restore` reads what `work` saved; `together` and `apart` go on
until they are killed, the one with collectives, the other without; `stop` ends when any process has got SIGTERM.
"""

import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals


def tree(value: float) -> dict:
    mesh = mesh_lib.make()
    return {
        "everywhere": mesh_lib.replicate(mesh, {"w": np.full((5, 3), value, np.float32)}),
        "here": jnp.full(7, value, jnp.bfloat16),
        "step": int(value),
    }


def work(folder: pathlib.Path) -> int:
    run, mesh = workdir.Workdir(folder), mesh_lib.make()
    number, num = mesh_lib.host_shard(8)
    rows = np.arange(8, dtype=np.float32)[number::num]  # this process' share of a batch
    batch = mesh_lib.put_batch({"x": rows}, 8)
    weights = mesh_lib.replicate_for_batch(np.float32([3.0]), 8)
    total = jax.jit(lambda w, x: (w * x, jnp.sum(w * x)))(weights, batch["x"])
    run.append("log.jsonl", {"total": float(total[1]), "rows": rows.tolist()})
    found = {
        "total": float(total[1]),
        "rows": rows.tolist(),
        "shards": {
            str(shard.index[0].start or 0): np.asarray(shard.data).tolist() for shard in batch["x"].addressable_shards
        },
        "agree": [distributed.agree(distributed.process_id() == 1), distributed.agree(False)],
    }
    add = mesh_lib.map_shards(lambda tree: mesh_lib.sum_over_mesh(tree), mesh, mesh_lib.REPLICATED, mesh_lib.REPLICATED)
    found["sum"] = float(jax.jit(add)({"a": np.ones(3, np.float32), "b": np.float32(2)})["b"])
    saver = run.checkpointer("stage")
    for step in (1, 2):
        saver.save(step, tree(step))
    back = saver.restore(tree(0))
    found["back"] = [float(np.asarray(back["everywhere"]["w"])[4, 2]), float(back["here"][6]), back["step"]]
    found["ahead"] = save_ahead(run)
    (folder / f"{distributed.process_id()}.json").write_text(json.dumps(found))
    return errors.EXIT_DONE


def save_ahead(run: workdir.Workdir) -> list[float]:
    """The first process saves, its step waiting for the second one, while that one looks for checkpoints."""
    saver, mesh = run.checkpointer("ahead"), mesh_lib.make()
    add = mesh_lib.map_shards(lambda x: mesh_lib.sum_over_mesh(x @ x), mesh, mesh_lib.REPLICATED, mesh_lib.REPLICATED)
    step, value = jax.jit(add), mesh_lib.replicate(mesh, 0.5 * np.eye(256, dtype=np.float32))
    jax.block_until_ready(step(value))
    if not distributed.is_main():
        time.sleep(2)
    start = saver.latest_step() or 0
    for _ in range(2):
        value = step(value)
    saver.save(start + 2, value)
    return [start, float(value[7, 7])]


def restore(folder: pathlib.Path) -> int:
    back = workdir.Workdir(folder).checkpointer("stage").restore(tree(0))
    found = [float(np.asarray(back["everywhere"]["w"])[4, 2]), float(back["here"][6]), back["step"]]
    if distributed.is_main():
        (folder / "restored.json").write_text(json.dumps(found))
    return errors.EXIT_DONE


def go_on(folder: pathlib.Path, is_together: bool) -> int:
    mesh = mesh_lib.make()
    add = jax.jit(mesh_lib.map_shards(mesh_lib.sum_over_mesh, mesh, mesh_lib.REPLICATED, mesh_lib.REPLICATED))
    np.asarray(add(np.ones(3, np.float32)))
    (folder / f"{distributed.process_id()}.pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)
        if is_together:
            np.asarray(add(np.ones(3, np.float32)))


def stop(folder: pathlib.Path) -> int:
    with signals.stop_on_signal() as flag:
        (folder / f"{distributed.process_id()}.pid").write_text(str(os.getpid()))
        step = 1
        while not flag.is_due(step, every=5):
            time.sleep(0.02)
            step += 1
    (folder / f"{distributed.process_id()}.json").write_text(json.dumps(step))
    return errors.EXIT_STOPPED


def main() -> int:
    mode, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    launch = distributed.detect(os.environ)
    if launch is not None:
        distributed.start(launch, distributed.start_seconds(os.environ))
        mesh_lib.connect(mesh_lib.make())
    if mode in ("together", "apart"):
        return go_on(folder, mode == "together")
    return {"work": work, "restore": restore, "stop": stop}[mode](folder)


if __name__ == "__main__":
    sys.exit(distributed.guard(main))
