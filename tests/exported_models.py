"""Models of drawn weights, for what is made of programs.

Their cells together use every operation, aggregation and kind of input.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import trained

from dvsnas_jax.core import compilation, types
from dvsnas_jax.infer import programs
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import features

SIZE = (40, 72)


def every_layer(kind: str) -> list[dict]:
    """Layers that use every operation and aggregation, each on the output of the one before."""
    names, aggregations = list(genotype_lib.vocabulary("operations")), list(genotype_lib.vocabulary("aggregations"))
    own = "decoder" if kind == "refine" else "prev_decoder"
    return [
        {
            "in": [f"layer{i - 1}" if i else "prev_state", ("stage1", own, "prev_stage1")[i % 3]],
            "ops": [names[(2 * i) % len(names)], names[(2 * i + 1) % len(names)]],
            "agg": aggregations[i % len(aggregations)],
        }
        for i in range(max((len(names) + 1) // 2, len(aggregations)))
    ]


def frames(count: int) -> np.ndarray:
    """u8 [count, H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


def make(kind: str, layers: list[dict], **changes) -> programs.Model:
    """A model of `trained.make_config(kind)` with these layers and changes of its section `space`."""
    config = trained.make_config(kind)
    config.data.update({"height": SIZE[0], "width": SIZE[1], "crop_height": SIZE[0], "crop_width": SIZE[1]})
    config.net.width = 0.07
    inputs = (*config.space.inputs, "prev_stage1")
    config.space.update({"num_layers": len(layers), "inputs": inputs, **changes})
    settings, space = features.settings_of(config), features.space_of(config)
    genotype = genotype_lib.from_dict({"version": 1, "inputs": list(space.inputs), "layers": layers}, space)[1]
    net = static_net.make(config.net, settings.num_classes)
    variables = static_net.init(net, jax.random.key(0))
    cell = cell_lib.make(space, genotype, settings)

    def normalized(params: Any, shown: np.ndarray) -> Any:
        found = static_net.infer(net, variables, shown)
        clip = jax.tree.map(lambda x: x[:, None], types.Features(maps=found.maps, logits=found.logits))
        return cell_lib.freeze_norm(params, cell.moments(params, clip))

    with compilation.effort("quick"):  # as two programs: operation by operation takes longer
        leaves, tree = jax.tree.flatten(compilation.jit(cell.init)(jax.random.key(1)))
        rng = np.random.default_rng(1)
        drawn = [np.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype) for x in leaves]
        params = compilation.jit(normalized)(jax.tree.unflatten(tree, drawn), frames(2))
    return programs.Model(net, variables, cell, params, settings, SIZE)


@functools.cache
def everything(kind: str) -> programs.Model:
    """Of a kind, with a cell that uses all there is."""
    return make(kind, every_layer(kind))


@functools.cache
def simple(kind: str) -> programs.Model:
    """Of a kind, with one layer of what is hardest to convert."""
    own = "decoder" if kind == "refine" else "prev_decoder"
    return make(kind, [{"in": ["prev_state", own], "ops": ["max_pool_3x3", "skip"], "agg": "local_attention"}])


def state_of(model: programs.Model, batch: int) -> dict:
    """The state of so many videos before their first frames."""
    values = model.initial_state().items()
    return {name: np.broadcast_to(np.asarray(value), (batch, *value.shape[1:])) for name, value in values}


def result_tree(program: programs.Program) -> Any:
    """The structure of its results."""
    return jax.tree.structure(jax.eval_shape(program.fn, program.weights, *program.args))


def lite_program(interpreter: Any, name: str, program: programs.Program) -> Callable[..., Any]:
    """A signature of a TensorFlow Lite file as the program that it was made of."""
    runner, tree = interpreter.get_signature_runner(name), result_tree(program)

    def call(*args: Any) -> Any:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(args)]
        found = runner(**dict(zip(program.input_names(), leaves, strict=True)))
        return jax.tree.unflatten(tree, [found[name] for name in program.result_names()])

    return call
