"""Models of drawn weights whose cells together use every operation and aggregation, for what is made of programs."""

import functools

import jax
import numpy as np
import trained

from dvsnas_jax.core import types
from dvsnas_jax.nets import static_net
from dvsnas_jax.run import features, programs
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib

SIZE = (40, 72)


def every_layer(kind: str) -> list[dict]:
    """Layers that use every operation and aggregation, each on the output of the one before."""
    names, aggregations = list(genotype_lib.OPERATIONS), list(genotype_lib.AGGREGATIONS)
    own = "decoder" if kind == "refine" else "prev_decoder"
    return [
        {
            "in": [f"layer{i - 1}" if i else "prev_state", own if i % 2 else "stage1"],
            "ops": [names[(2 * i) % len(names)], names[(2 * i + 1) % len(names)]],
            "agg": aggregations[i % len(aggregations)],
        }
        for i in range(max((len(names) + 1) // 2, len(aggregations)))
    ]


def one_layer(kind: str, operation: str, aggregation: str) -> list[dict]:
    own = "decoder" if kind == "refine" else "prev_decoder"
    return [{"in": ["prev_state", own], "ops": [operation, operation], "agg": aggregation}]


def frames(count: int) -> np.ndarray:
    """u8 [count, H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


def make(kind: str, layers: list[dict], **changes) -> programs.Model:
    """A model of `trained.make_config(kind)` with these layers and changes of its section `space`."""
    config = trained.make_config(kind)
    config.data.update({"height": SIZE[0], "width": SIZE[1], "crop_height": SIZE[0], "crop_width": SIZE[1]})
    config.net.width = 0.07
    config.space.update({"num_layers": len(layers), **changes})
    settings, space = features.settings_of(config), features.space_of(config)
    genotype = genotype_lib.from_dict({"version": 1, "inputs": list(space.inputs), "layers": layers}, space)[1]
    net = static_net.make(config.net, settings.num_classes)
    variables = static_net.init(net, jax.random.key(0))
    cell = cell_lib.make(space, genotype, settings)
    leaves, tree = jax.tree.flatten(cell.init(jax.random.key(1)))
    drawn = [x + 0.1 * jax.random.normal(jax.random.key(index), x.shape) for index, x in enumerate(leaves)]
    params = jax.tree.unflatten(tree, drawn)
    found = static_net.infer(net, variables, frames(2))
    clip = types.Features(maps={name: x[None] for name, x in found.maps.items()}, logits=found.logits[None])
    params = cell_lib.freeze_norm(params, cell.moments(params, clip))
    return programs.Model(net, static_net.fold(variables), cell, params, settings, SIZE)


@functools.cache
def everything(kind: str) -> programs.Model:
    """Of a kind, with a cell that uses all there is."""
    return make(kind, every_layer(kind))


def state_of(model: programs.Model, batch: int) -> dict:
    """The state of so many videos before their first frames."""
    values = programs.initial_state(model).items()
    return {name: np.broadcast_to(np.asarray(value), (batch, *value.shape[1:])) for name, value in values}
