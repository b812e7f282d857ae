"""The canonical form: equal forms compute the same function, other forms another one."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.space import canonical, cell_frame, operation_cost, operations, zoo
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib


def toy(apply, **changes) -> operations.Operation:
    """An operation without weights that takes negative values."""
    return operations.Operation(
        apply=lambda params, x, scope: apply(x), cost=operation_cost.nothing, label="toy",
        is_weightless=True, ends_in_activation=False, **changes,
    )  # fmt: skip


TOYS = {"negate": toy(lambda x: -x, of_zeros="zeros"), "cosine": toy(jnp.cos)}
DIFFERENCE = operations.Aggregation(
    apply=lambda params, a, b, scope: a - b, cost=operation_cost.nothing, label="toy",
    is_weightless=True, of_zeros="zeros",
)  # fmt: skip


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    add_toys(monkeypatch)


def add_toys(patch: pytest.MonkeyPatch) -> None:
    """Newcomers beside the whole vocabulary."""
    for name, record in TOYS.items():
        patch.setitem(operations.OPERATIONS, name, record)
    patch.setitem(operations.AGGREGATIONS, "difference", DIFFERENCE)


with pytest.MonkeyPatch.context() as patch:
    add_toys(patch)
    SPACE = genotype_lib.Space(inputs=("prev_state", "decoder"), num_layers=3)
SMALL = genotype_lib.Space(
    inputs=("prev_state", "decoder"),
    num_layers=2,
    operations=("none", "skip", "conv_3x3"),
    aggregations=("sum", "gate"),
)
SETTINGS = cell_frame.CellSettings(channels=4, feature_channels={"decoder": 3, "logits": 3, "image": 3})
SHAPE = (2, 2, 5, 6)  # clips (two: the normalisation takes away what is constant over all), frames, grid


def features() -> types.Features:
    rng = np.random.default_rng(0)
    maps = {"decoder": rng.normal(size=(*SHAPE, 3)), "image": rng.normal(size=(*SHAPE, 3))}
    maps = {name: jnp.asarray(value, jnp.float32) for name, value in maps.items()}
    return types.Features(maps=maps, logits=jnp.asarray(rng.normal(size=(*SHAPE, 3)), jnp.float32))


def rows(*layers: tuple[str, str, str, str, str], space: genotype_lib.Space = SPACE) -> np.ndarray:
    """Layers as (aggregation, operation a, source a, operation b, source b)."""
    nodes = [genotype_lib.node_name(space, node) for node in range(space.num_nodes)]
    return np.asarray(
        [
            [nodes.index(a), nodes.index(b), space.operations.index(op_a), space.operations.index(op_b),
             space.aggregations.index(agg)]
            for agg, op_a, a, op_b, b in layers
        ],
        np.int32,
    )  # fmt: skip


def draw(tree: dict, *key: object) -> dict:
    """Random values for a tree of parameters, a function of the key and of the place of each leaf."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    values = []
    for path, leaf in leaves:
        seed = [ord(letter) for letter in repr((key, jax.tree_util.keystr(path)))]
        values.append(np.random.default_rng(seed).normal(0.3, 0.7, leaf.shape).astype(np.float32))
    return jax.tree_util.tree_unflatten(structure, values)


def swap_halves(kernel: np.ndarray) -> np.ndarray:
    first, second = np.split(kernel, 2, axis=2)
    return np.concatenate([second, first], axis=2)


def swapped(aggregation: str, params: dict) -> dict:
    """The weights of an aggregation whose two inputs are exchanged."""
    if aggregation == "sum":
        return {"weight_a": params["weight_b"], "weight_b": params["weight_a"]}
    if aggregation == "concat":
        return {**params, "kernel": swap_halves(params["kernel"])}
    if aggregation == "gate":
        norm = {**params["norm"], "bias": -params["norm"]["bias"]}
        return {"kernel": -swap_halves(params["kernel"]), "norm": norm}
    return params


def constant(params: dict, key: int) -> dict:
    """Weights with which any operation makes the same constant of zeros."""
    bias = draw({"bias": np.zeros(SETTINGS.channels)}, key, "constant")["bias"]
    return {**params, "bias": bias} if "bias" in params else {**params, "norm": {**params["norm"], "bias": bias}}


@functools.cache
def unroll():
    """The supernet, whose genotype is data, compiled once; and a set of weights for its parameters."""
    supernet = supernet_lib.make(SPACE, SETTINGS)
    batch = features()
    run_fn = compilation.jit_once(lambda params, genotype: supernet.unroll(params, genotype, batch)[-1])
    return run_fn, draw(jax.eval_shape(supernet.init, jax.random.key(0)), "shared")


def compute(genotype: np.ndarray) -> np.ndarray:
    """Logits with weights that follow from the canonical form alone: node k has the same wherever it is."""
    run_fn, shared = unroll()
    layers = [jax.tree.map(lambda x, index=index: x[index], shared["layers"]) for index in range(SPACE.num_layers)]
    form, places = canonical.trace(SPACE, genotype)
    for index, (node, place) in enumerate(zip(form.nodes, places, strict=True)):
        layer, tokens = layers[place.layer], genotype[place.layer]
        agg = SPACE.aggregations[tokens[4]]
        slots = ("b", "a") if place.is_swapped else ("a", "b")
        for branch, (operation, _) in enumerate(node.branches):
            slot = slots[branch]
            name = SPACE.operations[tokens[2 + "ab".index(slot)]]
            if operation != canonical.CONSTANT:
                layer[slot][name] = draw(layer[slot][name], index, branch)
            elif node.aggregation == canonical.PASS and operations.AGGREGATIONS[agg].of_zeros == "constant":
                layer["agg"][agg] = constant(layer["agg"][agg], index)
            else:
                layer[slot][name] = constant(layer[slot][name], index)
        if node.aggregation != canonical.PASS:
            weights = draw(layer["agg"][agg], index, "agg")
            layer["agg"][agg] = swapped(agg, weights) if place.is_swapped else weights
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *layers)
    return np.asarray(run_fn({"ports": shared["ports"], "layers": stacked}, genotype))


def groups(genotypes: Iterable[np.ndarray]) -> list[list[np.ndarray]]:
    """Genotypes by their form, only forms that several have."""
    found = collections.defaultdict(dict)
    for genotype in genotypes:
        found[canonical.of(SPACE, genotype)][genotype.tobytes()] = genotype
    return [list(group.values()) for group in found.values() if len(group) > 1]


def assert_same(first: np.ndarray, *others: np.ndarray) -> None:
    expected = compute(first)
    for other in others:
        np.testing.assert_allclose(compute(other), expected, rtol=1e-5, atol=1e-4, err_msg=f"{first} {other}")


def skips(aggregation: str, source: str) -> tuple[str, str, str, str, str]:
    return aggregation, "skip", source, "skip", source


EQUAL = {
    "order of layers": (
        [("sum", "skip", "decoder", "conv_1x1", "decoder"), ("warp", "skip", "prev_state", "skip", "decoder"),
         ("gate", "skip", "layer0", "conv_1x1", "layer1")],
        [("warp", "skip", "prev_state", "skip", "decoder"), ("sum", "skip", "decoder", "conv_1x1", "decoder"),
         ("gate", "conv_1x1", "layer0", "skip", "layer1")],
    ),
    "a layer that only none reads": (
        [("sum", "skip", "decoder", "conv_1x1", "decoder"), ("gate", "none", "layer0", "skip", "prev_state"),
         ("concat", "skip", "layer1", "conv_1x1", "decoder")],
        [("max", "conv_1x1", "decoder", "skip", "prev_state"), ("gate", "skip", "prev_state", "none", "layer0"),
         ("concat", "conv_1x1", "decoder", "skip", "layer1")],
    ),
    "layers that pass on": (
        [("warp", "none", "decoder", "skip", "prev_state"), skips("max", "layer0"),
         ("sum", "conv_1x1", "layer1", "skip", "decoder")],
        [skips("gate", "decoder"), ("local_attention", "none", "layer0", "skip", "layer0"),
         ("sum", "skip", "layer1", "conv_1x1", "prev_state")],
    ),
    "constants": (
        [("concat", "none", "decoder", "none", "decoder"), skips("max", "layer0"),
         ("gate", "skip", "layer1", "skip", "decoder")],
        [("sum", "none", "decoder", "none", "prev_state"), ("warp", "skip", "layer0", "sep_conv_3x3", "layer0"),
         ("gate", "skip", "decoder", "skip", "layer1")],
    ),
    "the same map three times in the mean": (
        [skips("max", "decoder"), skips("gate", "decoder"), ("warp", "none", "prev_state", "skip", "decoder")],
        [skips("max", "decoder"), skips("max", "layer0"), skips("max", "layer1")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_known_equals(name):
    first, second = (rows(*layers) for layers in EQUAL[name])
    assert canonical.of(SPACE, first) == canonical.of(SPACE, second)
    assert_same(first, second)


@pytest.mark.parametrize(
    "change",
    [
        [("warp", "skip", "decoder", "skip", "prev_state")],  # the inputs of a warp
        [("sum", "conv_1x1", "decoder", "skip", "prev_state")],  # an operation
        [("max", "none", "decoder", "skip", "prev_state")],  # a ReLU
        [("sum", "none", "decoder", "skip", "prev_state")],  # per-channel weights
    ],
)
def test_known_differences(change):
    space = genotype_lib.Space(inputs=SPACE.inputs, num_layers=1, operations=SPACE.operations)
    base = canonical.of(space, rows(("warp", "skip", "prev_state", "skip", "decoder"), space=space))
    passed = canonical.of(space, rows(("warp", "none", "decoder", "skip", "prev_state"), space=space))
    assert canonical.of(space, rows(*change, space=space)) not in (base, passed)
    assert passed == canonical.Form((), (("prev_state", 1),))


def test_equal_forms_compute_the_same():
    rng = np.random.default_rng(1)
    often = np.isin(SPACE.operations, ("none", "skip", "max_pool_3x3", "conv_1x1", "negate", "cosine"))
    drawn = genotype_lib.random(SPACE, np.random.default_rng(0), 9000, op_mask=often)
    chosen = [[group[index] for index in rng.permutation(len(group))[:2]] for group in groups(drawn)][:32]
    assert len(chosen) == 32
    for first, second in chosen:
        assert_same(first, second)


def patterns(aggregation: str, operation: str) -> Iterator[np.ndarray]:
    """An operation in an aggregation: beside another map, beside zeros, of zeros, and twice."""
    one, skip, none = (operation, "prev_state"), ("skip", "decoder"), ("none", "decoder")
    of_zeros = (operation, "layer0")
    for first, second in ((one, skip), (one, none), (one, one), (of_zeros, skip), (of_zeros, of_zeros)):
        for a, b in ((first, second), (second, first)):
            yield rows(("sum", *none, *none), (aggregation, *a, *b), skips("max", "layer1"))
    yield rows(("sum", *none, *none), ("warp", *none, *one), skips("max", "layer1"))


@pytest.mark.parametrize("aggregation", SPACE.aggregations)
def test_every_operation_in_every_aggregation(aggregation):
    """All that the form says is equal is equal, over the whole vocabulary at once."""
    every = [genotype for operation in SPACE.operations for genotype in patterns(aggregation, operation)]
    for group in groups(every):
        assert_same(*group)


def test_a_false_claim_would_merge_different_cells(monkeypatch):
    """`max` of zeros and a newcomer is the newcomer only if it is nowhere negative: its record has to say so."""
    none = ("none", "decoder")
    first = rows(("max", *none, "negate", "decoder"), skips("max", "layer0"), skips("max", "layer1"))
    second = rows(("warp", *none, "negate", "decoder"), skips("max", "layer0"), skips("max", "layer1"))
    assert canonical.of(SPACE, first) != canonical.of(SPACE, second)
    false = dataclasses.replace(TOYS["negate"], ends_in_activation=True)
    monkeypatch.setitem(operations.OPERATIONS, "negate", false)
    assert canonical.of(SPACE, first) == canonical.of(SPACE, second)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same(first, second)
    for claims in ({"ends_in_activation": True}, {"is_weightless": False}):
        fields = {"apply": TOYS["negate"].apply, "cost": operation_cost.nothing, "label": "toy", **claims}
        with pytest.raises(TypeError, match="missing 1 required"):
            operations.Operation(**fields)


def test_other_forms_compute_another_function():
    """With the same shared weights, one token changed: either the form is the same or the values differ."""
    run_fn, shared = unroll()
    other_weights = draw(shared, "other")
    rng = np.random.default_rng(2)
    num_compared = 0
    for genotype in genotype_lib.random(SPACE, rng, 60):
        other = genotype.copy()
        layer, field = rng.integers(SPACE.num_layers), rng.integers(len(genotype_lib.FIELDS))
        other[layer, field] = rng.integers(SPACE.limits()[layer, field])
        if canonical.of(SPACE, genotype) != canonical.of(SPACE, other):
            # Two sets of weights: with one of them, ReLUs may hide the difference.
            pairs = [(run_fn(params, genotype), run_fn(params, other)) for params in (shared, other_weights)]
            assert max(np.abs(first - second).max() for first, second in pairs) > 1e-3, f"{genotype} {other}"
            num_compared += 1
    assert num_compared >= 30


def test_enumeration():
    cells, index = canonical.enumerate_cells(SMALL)
    assert len(cells) == 1123 and index.shape == (SMALL.size(),) and index.max() == len(cells) - 1
    assert len({canonical.of(SMALL, cell) for cell in cells}) == len(cells)
    np.testing.assert_array_equal(index[canonical.codes(SMALL, cells)], np.arange(len(cells)))
    for genotype in genotype_lib.random(SMALL, np.random.default_rng(3), 50):
        row = index[canonical.codes(SMALL, genotype[None])[0]]
        assert canonical.of(SMALL, genotype) == canonical.of(SMALL, cells[row])


def test_forms_are_values_with_names():
    first, second = (canonical.of(SPACE, rows(*layers)) for layers in EQUAL["order of layers"])
    assert hash(first) == hash(second) and canonical.digest(first) == canonical.digest(second)
    assert canonical.digest(first) != canonical.digest(canonical.Form((), (("decoder", 1),)))
    with pytest.raises(errors.UserError, match="layer 0, field in_a"):
        canonical.of(SPACE, np.full((3, 5), 9))


NONE, CONV = ("none", "decoder"), ("conv_1x1", "decoder")
SIMPLIFIED = {  # the genotype, and how many layers it takes
    "a layer that only none reads": (rows(*EQUAL["a layer that only none reads"][0]), 2),
    "layers that pass on": (rows(*EQUAL["layers that pass on"][0]), 1),
    "constants": (rows(*EQUAL["constants"][0]), 2),
    "an operation on zeros": (
        rows(("sum", *NONE, *NONE), ("warp", "skip", "layer0", "sep_conv_3x3", "layer0"),
             ("gate", "skip", "decoder", "skip", "layer1")), 3,
    ),
    "a warp that passes a convolution on": (
        rows(("warp", *NONE, *CONV), skips("max", "layer0"), ("sum", "skip", "layer0", *CONV)), 3,
    ),
    "an output that is read, too": (
        rows(("concat", *CONV, *CONV), skips("max", "layer0"), ("concat", *CONV, "skip", "layer0")), 3,
    ),
    "the same map three times": (rows(*EQUAL["the same map three times in the mean"][1]), 1),
    "nothing at all": (rows(("sum", *NONE, *NONE), ("gate", *NONE, *NONE), ("max", *NONE, *NONE)), 1),
}  # fmt: skip


def check_simplified(genotype: np.ndarray) -> int:
    """The laws of a simplified genotype; gives its number of layers."""
    run_fn, drawn = unroll()
    shared = jax.tree.map(jnp.asarray, drawn)
    params = cell_lib.gather_params(SPACE, genotype, shared)
    space, tokens, layers = canonical.simplified(SPACE, genotype)
    assert canonical.of(space, tokens) == canonical.of(SPACE, genotype)
    assert canonical.simplified(space, tokens).space.num_layers == space.num_layers <= SPACE.num_layers
    carried = cell_lib.carry_params(space, tokens, layers, params)
    shapes = jax.eval_shape(cell_lib.make(space, tokens, SETTINGS).init, jax.random.key(0))
    assert jax.tree.map(np.shape, carried) == jax.tree.map(np.shape, shapes)
    # Both in the supernet, which is compiled once: the smaller one is filled up by layers that pass on.
    padded = zoo.embed(genotype_lib.to_dict(space, tokens), SPACE)
    filled = {f"layer{index}": {"a": {}, "b": {}, "agg": {}} for index in range(SPACE.num_layers)}
    whole = cell_lib.scatter_params(SPACE, padded, {**carried, "layers": filled | carried["layers"]}, shared)
    np.testing.assert_allclose(run_fn(whole, padded), run_fn(shared, genotype), rtol=1e-5, atol=1e-5)
    return space.num_layers


@pytest.mark.parametrize("name", SIMPLIFIED)
def test_what_is_dead_is_removed_and_the_logits_stay(name):
    genotype, num_layers = SIMPLIFIED[name]
    assert check_simplified(genotype) == num_layers


def test_simplified_genotypes_compute_the_same():
    often = np.isin(SPACE.operations, ("none", "skip", "max_pool_3x3", "conv_1x1", "negate", "cosine"))
    drawn = genotype_lib.random(SPACE, np.random.default_rng(4), 40, op_mask=often)
    sizes = [check_simplified(genotype) for genotype in drawn]
    assert min(sizes) == 1 and np.mean(sizes) < SPACE.num_layers
