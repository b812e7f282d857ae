"""What a search can find can be exported: every operation, aggregation, mode and schedule, with equal labels."""

import jax
import numpy as np
import pytest
import trained
from exported_models import every_layer, everything, frames, make, one_layer, state_of

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.data import savedmodel
from dvsnas_jax.run import artifact, export, onnx_files, programs
from dvsnas_jax.space import genotype as genotype_lib

KINDS = trained.KINDS

@pytest.mark.parametrize("kind", ["refine", "regions", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:3])])
def test_every_operation_and_aggregation_is_exported_for_every_target(kind):
    names = {name for layer in every_layer(kind) for name in (*layer["ops"], layer["agg"])}
    assert names == {*genotype_lib.OPERATIONS, *genotype_lib.AGGREGATIONS}
    made = programs.make(everything(kind))
    for name in made.keys() - {"static", "key"}:
        for target, platforms in artifact.TARGETS.items():
            found = export.exported(made[name], target, platforms)
            assert found.platforms == platforms
            assert str(found.in_avals[-1].shape[0]) == ("b" if made[name].is_batched else "6")


def _follow(call_fn, model, batch, num_frames):
    state, shown, labels = state_of(model, batch), frames(num_frames + batch), []
    for index in range(num_frames):
        state, found = call_fn(state, shown[index : index + batch])
        labels.append(np.asarray(found))
    return np.stack(labels)


def test_an_exported_cell_of_all_there_is_gives_the_same_labels_for_one_and_for_two_videos():
    model = everything("refine")
    program = programs.make(model)["step"]
    weights = list(export.flatten(program.weights).values())
    with compilation.effort("quick"):
        direct = compilation.jit(program.fn)
        exported = compilation.jit(export.exported(program, "cpu", ("cpu",)).call)
        for batch in (1, 2):
            expected = _follow(lambda *args: direct(program.weights, *args), model, batch, 1)
            found = _follow(lambda *args: exported(weights, *args), model, batch, 1)
            np.testing.assert_array_equal(found, expected)
            assert len(np.unique(expected)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("window, heads, channels", [(3, 1, 4), (7, 2, 4), (9, 1, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_of_any_window_is_exported(kind, window, heads, channels):
    changes = {"attention_window": window, "attention_heads": heads, "channels": channels}
    model = make(kind, every_layer(kind), **changes)
    made = programs.make(model)
    for name in made.keys() & {"step", "other", "join"}:
        program = made[name]
        weights = list(export.flatten(program.weights).values())
        args = jax.tree.map(lambda x: np.ones((2, *x.shape[1:]), x.dtype), program.args)
        with compilation.effort("quick"):
            found = compilation.jit(export.exported(program, "cpu", ("cpu",)).call)(weights, *args)
            expected = compilation.jit(program.fn)(program.weights, *args)
        np.testing.assert_array_equal(found[1], expected[1])


def _expected(model, num_frames):
    """Labels of the programs as an exported folder puts them together: the decision is taken on the host."""
    made = programs.make(model)

    def bound(program):
        fn = compilation.jit(program.fn)
        return lambda *args: fn(program.weights, *args)

    schedule = model.settings.schedule
    manifest = {
        "schedule": export._schedule(model) if model.settings.is_propagating else None,
        "regions": [[region._asdict() for region in row] for row in programs.regions(model)],
    }
    runner = artifact.Model(manifest, {name: bound(program) for name, program in made.items()}, schedule.interval)
    with compilation.effort("quick"):
        return _follow(runner.step, model, 1, num_frames)


@pytest.mark.parametrize("kind", ["fixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])])
def test_one_program_that_decides_itself_gives_the_labels_of_the_host_that_decides(kind):
    model = make(kind, one_layer(kind, "skip", "gate"))
    program = programs.next_frame(model)
    with compilation.effort("quick"):
        step = compilation.jit(program.fn)
        found = _follow(lambda *args: step(program.weights, *args), model, 1, 6)
    np.testing.assert_array_equal(found, _expected(model, 6))


@pytest.mark.slow
def test_a_tensorflow_lite_file_gives_the_same_labels():
    tf = pytest.importorskip("tensorflow")
    model = everything("refine")
    runner = tf.lite.Interpreter(model_content=export.tflite(model)).get_signature_runner(export.SERVING)

    def step(state, frame):
        named = dict(zip(programs.leaf_names("state", state), jax.tree.leaves(state), strict=True))
        found = runner(frame=frame, **named)
        return {name: found[f"state_{name}"] for name in state}, found["labels"]

    assert (_follow(step, model, 1, 6) == _expected(model, 6)).mean() > 0.999  # another order of sums


@pytest.mark.slow
def test_what_the_converter_to_tensorflow_lite_does_not_take_is_refused_in_one_line():
    function = savedmodel.Function(
        fn=lambda weights, x: jax.numpy.linalg.qr(x)[0], weights=(), args=(jax.ShapeDtypeStruct((4, 4), np.float32),),
        is_batched=False, inputs=("x",), outputs=("y",),
    )  # fmt: skip
    with pytest.raises(errors.UserError, match="--tflite: TensorFlow Lite's converter fails") as caught:
        savedmodel.lite({"serving_default": function}, {})
    assert "\n" not in str(caught.value)


def _onnx(model):
    """`artifact.Model.step` of the ONNX files of a model."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")

    def bound(name, program):
        data, described = onnx_files.convert(name, program)
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == [entry["name"] for entry in described["inputs"]]
        outputs = [entry["name"] for entry in described["outputs"]]

        def call(*args):
            names = [value.name for value in session.get_inputs()]
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(args)]
            found = session.run(outputs, dict(zip(names, leaves, strict=True)))
            shape = jax.eval_shape(program.fn, program.weights, *program.args)
            return jax.tree.unflatten(jax.tree.structure(shape), found)

        return call

    manifest = {
        "schedule": export._schedule(model) if model.settings.is_propagating else None,
        "regions": [[region._asdict() for region in row] for row in programs.regions(model)],
    }
    called = {name: bound(name, program) for name, program in programs.make(model).items()}
    return artifact.Model(manifest, called, model.settings.schedule.interval)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_files_of_every_operation_give_the_same_labels(kind):
    model = everything(kind)
    assert (_follow(_onnx(model).step, model, 1, 4) == _expected(model, 4)).mean() > 0.999  # another order of sums


def test_an_onnx_file_of_a_propagated_frame_has_names_and_the_same_labels():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    model = make("fixed", one_layer("fixed", "max_pool_3x3", "local_attention"))
    program = programs.make(model)["other"]
    data, described = onnx_files.convert("other", program)
    names = [entry["name"] for entry in described["inputs"]]
    fields = ("age", "decoder", "image", "is_first", "logits", "state")
    assert names == [*(f"state_{field}" for field in fields), "frame"]
    assert [entry["name"] for entry in described["outputs"]] == [*(f"next_{name}" for name in names[:-1]), "labels"]
    rng = np.random.default_rng(0)
    state = {name: rng.normal(size=x.shape).astype(x.dtype) for name, x in state_of(model, 1).items()}
    given = dict(zip(names, [*jax.tree.leaves(state), frames(1)], strict=True))
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = session.run(["labels", "next_state_state"], given)
    with compilation.effort("quick"):
        after, labels = compilation.jit(program.fn)(program.weights, state, frames(1))
    assert (found[0] == np.asarray(labels)).mean() > 0.999 and found[0].dtype == np.uint8
    np.testing.assert_allclose(found[1], after["state"], atol=1e-4)


def test_what_the_converter_to_onnx_does_not_take_is_refused_in_one_line():
    pytest.importorskip("jax2onnx")
    shape = jax.ShapeDtypeStruct((1, 4), np.float32)
    program = programs.Program(
        lambda weights, x: jax.pure_callback(np.sin, x, x), {}, (shape,), inputs=("x",), outputs=("y",)
    )
    with pytest.raises(errors.UserError, match="--onnx: jax2onnx cannot convert the program odd") as caught:
        onnx_files.convert("odd", program)
    assert "\n" not in str(caught.value)
