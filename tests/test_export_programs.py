"""What a search can find can be exported: every operation, aggregation, mode and schedule, with equal labels."""

import functools

import jax
import numpy as np
import pytest
import trained
from exported_models import every_layer, everything, frames, lite_program, make, result_tree, simple, state_of

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.deploy import onnx_files, savedmodel, stablehlo
from dvsnas_jax.infer import artifact, dispatch, programs
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import genotype as genotype_lib

KINDS = trained.KINDS


@functools.cache
def _exported(kind, name, target):
    """A program of `everything(kind)`; its target is the key in `artifact.TARGETS`."""
    return stablehlo.exported(programs.make(everything(kind))[name], target, artifact.TARGETS[target])


@pytest.mark.parametrize("kind", ["refine", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_every_operation_and_aggregation_is_exported_for_every_target(kind):
    names = {name for layer in every_layer(kind) for name in (*layer["ops"], layer["agg"])}
    assert names == {*genotype_lib.vocabulary("operations"), *genotype_lib.vocabulary("aggregations")}
    made = programs.make(everything(kind))
    for name in made.keys() - {"static", "key"}:
        for target, platforms in artifact.TARGETS.items():
            found = _exported(kind, name, target)
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
    weights = list(program.named_weights().values())
    with compilation.effort("quick"):
        direct = compilation.jit(program.fn)
        exported = compilation.jit(_exported("refine", "step", "cpu").call)
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
        weights = list(program.named_weights().values())
        args = jax.tree.map(lambda x: np.ones((2, *x.shape[1:]), x.dtype), program.args)
        with compilation.effort("quick"):
            found = compilation.jit(stablehlo.exported(program, "cpu", ("cpu",)).call)(weights, *args)
            expected = compilation.jit(program.fn)(program.weights, *args)
        np.testing.assert_array_equal(found[1], expected[1])


def _host(model, programs_by_name):
    """What an exported folder does with its programs: in propagate mode the host chooses among them."""
    return dispatch.Dispatch(programs.describe(model), programs_by_name)


def _expected(model, num_frames):
    """Labels of the programs as an exported folder puts them together."""

    def bound(program):
        fn = compilation.jit(program.fn)
        return lambda *args: fn(program.weights, *args)

    made = {name: bound(program) for name, program in programs.make(model).items()}
    with compilation.effort("quick"):
        return _follow(_host(model, made).step, model, 1, num_frames)


@functools.cache
def _simple_labels(kind):
    return _expected(simple(kind), 6)


@pytest.mark.parametrize("kind", ["fixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])])
def test_one_program_that_decides_itself_gives_the_labels_of_the_host_that_decides(kind):
    model = simple(kind)
    program = programs.next_frame(model)
    with compilation.effort("quick"):
        step = compilation.jit(program.fn)
        found = _follow(lambda *args: step(program.weights, *args), model, 1, 6)
    np.testing.assert_array_equal(found, _simple_labels(kind))


def _lite(model):
    """The signatures of a model's TensorFlow Lite file, put together as an exported folder does."""
    tf = pytest.importorskip("tensorflow")
    interpreter = tf.lite.Interpreter(model_content=savedmodel.lite(savedmodel.lite_signatures(model)))
    made, listed = programs.make(model), interpreter.get_signature_list()
    assert listed.keys() == made.keys() | ({savedmodel.SERVING} if "step" in made else set())
    return _host(model, {name: lite_program(interpreter, name, program) for name, program in made.items()})


def test_a_tensorflow_lite_file_gives_the_same_labels_where_the_host_chooses():
    model = simple("fixed")
    assert (_follow(_lite(model).step, model, 1, 6) == _simple_labels("fixed")).mean() > 0.999  # another order of sums


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensorflow_lite_file_of_every_operation_gives_the_same_labels(kind):
    model = everything(kind)
    assert (_follow(_lite(model).step, model, 1, 5) == _expected(model, 5)).mean() > 0.999  # another order of sums


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_maps_of_one_pixel_are_taken_by_tensorflow_lite(backend):
    """As the pooled map of DeepLab, and the deepest one of small frames."""
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    kernel, x = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 1, 6, 5), (1, 2, 1, 6)))
    program = programs.Program(
        compilation.target(backend)(lambda weights, x: layers.conv(x, weights["kernel"], stride=2)), {"kernel": kernel},
        (jax.ShapeDtypeStruct(x.shape, x.dtype),), inputs=("x",), outputs=("y",),
    )  # fmt: skip
    content = savedmodel.lite({"conv": program})
    found = tf.lite.Interpreter(model_content=content).get_signature_runner("conv")(x=x)["y"]
    np.testing.assert_allclose(found, x[:, ::2] @ kernel[0, 0], atol=1e-5)


@pytest.mark.slow
def test_what_the_converter_to_tensorflow_lite_does_not_take_is_refused_in_one_line():
    shape = jax.ShapeDtypeStruct((4, 4), np.float32)
    program = programs.Program(
        lambda weights, x: jax.numpy.linalg.qr(x)[0], {}, (shape,), inputs=("x",), outputs=("y",)
    )
    with pytest.raises(errors.UserError, match="--tflite: TensorFlow Lite's converter fails") as caught:
        savedmodel.lite({"serving_default": program})
    assert "\n" not in str(caught.value)


def _onnx(model):
    """`Dispatch.step` of the ONNX files of a model."""
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
            return jax.tree.unflatten(result_tree(program), found)

        return call

    return _host(model, {name: bound(name, program) for name, program in programs.make(model).items()})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_files_of_every_operation_give_the_same_labels(kind):
    model = everything(kind)
    assert (_follow(_onnx(model).step, model, 1, 4) == _expected(model, 4)).mean() > 0.999  # another order of sums


def test_an_onnx_file_of_a_propagated_frame_has_names_and_the_same_labels():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    model = simple("fixed")
    program = programs.make(model)["other"]
    data, described = onnx_files.convert("other", program)
    names = [entry["name"] for entry in described["inputs"]]
    fields = ("age", "decoder", "is_first", "logits", "state")
    assert names == [*(f"state_{field}" for field in fields), "frame"]
    changed = [name for name in names[:-1] if name != "state_decoder"]  # that of the last key frame stays
    assert [entry["name"] for entry in described["outputs"]] == [*(f"next_{name}" for name in changed), "labels"]
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
