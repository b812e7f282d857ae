"""The cost model against XLA's analysis of the unoptimised program, and against the parameters themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets.kernels import layers, local_attention, sampling
from dvsnas_jax.search import reward
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, cost, operation_cost, operations, schedule
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import clip_scores, features

SIZE = (18, 22)
CHANNELS = 16
SPACE = genotype_lib.Space(inputs=genotype_lib.REFINE_INPUTS, num_layers=4)
SETTINGS = cell_frame.CellSettings(
    channels=CHANNELS,
    feature_channels={
        "decoder": 24, "logits": 11, "image": 3, "stage1": 12, "stage2": 16, "stage3": 20, "stage4": 28, "patches": 48,
    },
)  # fmt: skip
TOLERANCE = 0.05


def xla_flops(fn, *shapes) -> float:
    """Of the program before optimisation: what a CPU's library does in a custom call would not be counted after it."""
    return jax.jit(fn).lower(*shapes).cost_analysis().get("flops", 0.0)


def use_backend(monkeypatch, backend: str) -> None:
    """Traces the variants of another backend; the analysis needs no such device.

    Where a CPU loops over a window, the analysis counts one turn of the loop: there the accelerator's variant is taken.
    """
    monkeypatch.setattr(layers, "is_cpu", lambda: (compilation._target.get() or backend) == "cpu")
    for module, name in ((local_attention, "attend"), (local_attention, "cosines"), (sampling, "deform_conv")):
        monkeypatch.setattr(module, name, compilation.target("gpu")(getattr(module, name)))


def retrained(params):
    """The parameters of a cell once its running statistics are known, as shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]
    return cell_lib.freeze_norm(params, {path[:-1]: (leaf, leaf) for path, leaf in paths if path[-1] == "scale"})


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def feature_shapes() -> types.Features:
    maps = {
        name: jax.ShapeDtypeStruct((1, *SIZE, channels), jnp.float32)
        for name, channels in SETTINGS.feature_channels.items()
    }
    logits = maps.pop("logits")
    return types.Features(maps=maps, logits=logits)


def built(genotype):
    """Step of the static graph, its parameters and its arguments as shapes."""
    cell = cell_lib.make(SPACE, genotype, SETTINGS)
    params = retrained(jax.eval_shape(cell.init, jax.random.key(0)))
    frame = feature_shapes()
    return cell.step, (params, jax.eval_shape(cell.initial_state, frame), frame)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", [*operations.OPERATIONS, *operations.AGGREGATIONS])
def test_each_operation_costs_what_xla_counts(name, backend, monkeypatch):
    use_backend(monkeypatch, backend)
    is_pair = name in operations.AGGREGATIONS
    member = operations.AGGREGATIONS[name] if is_pair else operations.OPERATIONS[name]
    scope = SETTINGS.scope()
    params = retrained(jax.eval_shape(lambda rng: member.init(rng, CHANNELS, scope), jax.random.key(0)))
    x = jax.ShapeDtypeStruct((1, *SIZE, CHANNELS), jnp.float32)
    found = xla_flops(lambda params, *maps: member.apply(params, *maps, scope), params, *[x] * (1 + is_pair))
    expected = member.cost(cost.sizes_of(SETTINGS, SIZE, is_sliced=backend == "cpu"))
    assert expected.flops == pytest.approx(found, rel=TOLERANCE, abs=1)
    assert expected.params == count(params)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_random_genotypes_cost_what_xla_counts(backend, monkeypatch):
    use_backend(monkeypatch, backend)
    for genotype in genotype_lib.random(SPACE, np.random.default_rng(7), 6):
        step, shapes = built(genotype)
        found = cost.of(SPACE, genotype, SETTINGS, SIZE, backend=backend)
        where = genotype_lib.to_dict(SPACE, genotype)
        assert found.flops == pytest.approx(xla_flops(step, *shapes), rel=TOLERANCE), where
        assert found.params == count(shapes[0]), where


@pytest.mark.parametrize(("kind", "reduction"), [("fixed", 1), ("adaptive", 1), ("adaptive", 2)])
def test_a_frame_between_key_frames_costs_what_xla_counts(kind, reduction, monkeypatch):
    backend = "gpu" if reduction == 1 else "cpu"  # there an interpolation is a sum of few taps, as counted
    use_backend(monkeypatch, backend)
    settings = dataclasses.replace(
        SETTINGS, mode="propagate", schedule=schedule.Schedule(kind=kind), reduction=reduction
    )
    space = genotype_lib.Space(inputs=settings.provided(), num_layers=3)
    size = reduction * SIZE[0], reduction * SIZE[1]
    frame = dataclasses.replace(feature_shapes(), logits=jax.ShapeDtypeStruct((1, *size, 11), jnp.float32))
    cheap = {name: frame.maps[name] for name in ("stage1", "stage2", "image", "patches")}
    between = types.Features(maps=cheap, logits=jax.ShapeDtypeStruct((1, *size, 0), jnp.float32))
    for genotype in genotype_lib.random(space, np.random.default_rng(1), 2):
        cell = cell_lib.make(space, genotype, settings)
        params = retrained(jax.eval_shape(cell.init, jax.random.key(0)))
        state = jax.eval_shape(cell.initial_state, frame)

        def step(params, state, features, cell=cell):
            return cell.due(params, state, features), cell.advance(params, state, features)

        found = cost.of(space, genotype, settings, size, backend=backend)
        assert found.flops == pytest.approx(xla_flops(step, params, state, between), rel=TOLERANCE)
        assert found.params == count(params)


def test_a_known_cell_by_hand():
    """One layer: a 3x3 convolution of `decoder`, nothing, summed."""
    space = genotype_lib.Space(inputs=("prev_state", "decoder"), num_layers=1)
    names = space.operations.index
    rows = [[1, 0, names("conv_3x3"), names("none"), 0]]
    found = cost.of(space, rows, SETTINGS, SIZE)
    pixels = 18 * 22
    # The projection of `decoder` (24 channels), the convolution, the output, the heads: motion 3x3, correction 1x1.
    assert found.macs == pixels * (24 * 16 + 9 * 16 * 16 + 16 * 16 + 9 * 16 * 3 + 16 * 11)
    # Each convolution reads and writes; the sum reads the map and the zeros of `none` and writes.
    inner = (24 + 16) + 2 * 16 + 3 * 16 + 2 * 16
    # The sample reads logits and offsets and writes; the mean reads it and the static network's logits.
    assert found.bytes == 4 * pixels * (inner + (16 + 3) + (11 + 2 + 11) + (11 + 11) + (16 + 11))
    # A tap beside the border: 17 of 18 rows, 21 of 22 columns.
    assert found.padding == (9 * pixels - (18 + 2 * 17) * (22 + 2 * 21)) * 16 * 16


def test_a_baseline_costs_what_xla_counts():
    """Refine: a mean of two maps of logits; propagate: nothing."""
    settings = dataclasses.replace(SETTINGS, end="none")
    cell = cell_lib.make(SPACE, np.zeros((4, 5), np.int32), settings)
    params, frame = jax.eval_shape(cell.init, jax.random.key(0)), feature_shapes()
    found = cost.of(SPACE, np.zeros((4, 5), np.int32), settings, SIZE)
    step = cell.step, params, jax.eval_shape(cell.initial_state, frame), frame
    assert found.flops == pytest.approx(xla_flops(*step), rel=TOLERANCE)
    assert (found.macs, found.params) == (0, count(params)) == (0, 1)
    held = dataclasses.replace(settings, mode="propagate")
    assert cost.of(SPACE, np.zeros((4, 5), np.int32), held, SIZE) == operation_cost.Cost()


def test_what_only_none_reads_costs_nothing_but_its_parameters():
    names = SPACE.operations.index
    none, skip, conv = names("none"), names("skip"), names("conv_3x3")
    decoder, stage4 = SPACE.inputs.index("decoder"), SPACE.inputs.index("stage4")
    num = SPACE.num_inputs
    dead = [[stage4, stage4, conv, conv, 0], [num, decoder, none, skip, 0], [num + 1, decoder, skip, skip, 0]]
    rows = np.asarray([*dead, [num + 2, decoder, skip, skip, 0]], np.int32)
    found = cost.of(SPACE, rows, SETTINGS, SIZE)
    assert cost.live_layers(SPACE, rows) == {1, 2, 3}
    assert found.macs == 18 * 22 * (24 * 16 + 16 * 16 + 9 * 16 * 3 + 16 * 11)
    step, shapes = built(rows)
    assert found.params == count(shapes[0])
    assert found.flops == pytest.approx(xla_flops(step, *shapes), rel=TOLERANCE)


def test_the_own_state_needs_the_projection_of_the_decoder():
    space = genotype_lib.Space(inputs=("prev_state", "decoder"), num_layers=1)
    skip = space.operations.index("skip")
    one = cost.of(space, [[0, 0, skip, skip, 0]], SETTINGS, SIZE)
    both = cost.of(space, [[0, 1, skip, skip, 0]], SETTINGS, SIZE)
    other = cost.of(space, [[1, 1, skip, skip, 0]], SETTINGS, SIZE)
    assert one == both
    assert one.macs - other.macs == 18 * 22 * 16 * 16


def test_costs_add_up_and_grow_with_the_grid():
    parts = operation_cost.Cost(1, 2, 3, 4, 5) + operation_cost.Cost(10, 20, 30, 40, 50)
    assert parts == operation_cost.Cost(macs=11, params=22, bytes=33, elementwise=44, padding=55)
    assert operation_cost.Cost(macs=100, elementwise=7, padding=10).flops == 187
    genotype = genotype_lib.random(SPACE, np.random.default_rng(3), 1)[0]
    small, large = (cost.of(SPACE, genotype, SETTINGS, size) for size in ((10, 10), (20, 20)))
    assert large.params == small.params
    assert 3.9 < large.macs / small.macs <= 4


def test_the_settings_of_the_default_config_are_understood():
    config = config_lib.defaults()
    space, settings = features.space_of(config), features.settings_of(config)
    found = [cost.of(space, g, settings, (24, 32)) for g in genotype_lib.random(space, np.random.default_rng(0), 5)]
    assert all(item.macs > 24 * 32 * 24 * 24 and item.bytes > 0 for item in found)


# --- the factor of the reward -------------------------------------------------------------------------------------


def test_a_cell_above_the_target_is_paid_less():
    counts = np.array([[[4, 0], [0, 4]]] * 4)
    macs = [1_000_000, 2_000_000, 8_000_000, 8_000_000]
    nothing, is_finite = np.zeros((4, 2)), np.array([True, True, True, False])
    found = clip_scores.ClipScores(counts, nothing, np.zeros((4, 3)), is_finite)
    records = reward.compute(found, clip_scores.Rule(cost=0.5, cost_target=2.0), macs)
    assert [record["reward"] for record in records[:3]] == pytest.approx([1.0, 1.0, 0.5])
    assert [record["macs"] for record in records[:3]] == macs[:3]
    assert records[3]["reward"] is None
    free = reward.compute(found, clip_scores.Rule(cost=0.0, cost_target=2.0), macs)
    assert [record["reward"] for record in free[:3]] == pytest.approx([1.0] * 3)
    assert free[2]["macs"] == 8_000_000
    with pytest.raises(ValueError, match="zip"):
        reward.compute(found, clip_scores.Rule(), macs[:3])
