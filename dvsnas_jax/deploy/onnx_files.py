"""Writes the programs of a model as ONNX files, by the package jax2onnx (imported only here).

`onnx/NAME.onnx` is one program of `infer.programs` for one video, its weights inside. Inputs and outputs have names:
`frame` u8 [1, H, W, 3] RGB, `labels` u8 [1, H, W], and the state as `state_NAME`; the first frame takes what the
manifest's `state` says (a shape and a value for each). An output `next_state_NAME` is the next input `state_NAME`,
and a part of the state without such an output stays as it was.
Refine: `step`. Propagate: `key` for key frames and `other` for the rest; with a learned schedule `look` first, see
`dispatch.Dispatch.step`.
"""

from __future__ import annotations

import importlib.util
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import compilation, errors, progress
from dvsnas_jax.deploy import inlined
from dvsnas_jax.infer import programs

FOLDER = "onnx"


def require() -> None:
    """A UserError where the converter is not installed."""
    try:
        is_installed = importlib.util.find_spec("jax2onnx") is not None
    except ValueError:  # marked as absent
        is_installed = False
    if not is_installed:
        raise errors.UserError(
            "--onnx: needs the package jax2onnx, which is not installed; pip install jax2onnx==0.13.0 onnxruntime, or "
            "leave the option out"
        )


def write(path: pathlib.Path, model: programs.Model) -> dict[str, Any]:
    """Makes the folder, and writes a file for each program; returns its inputs and outputs: name, shape and type.

    Raises:
      UserError: the converter does not take a program.
    """
    path.mkdir()
    made, found = programs.make(model), {}
    with progress.bar(len(made), "onnx") as bar:
        for name, program in made.items():
            data, found[f"{name}.onnx"] = convert(name, program)
            (path / f"{name}.onnx").write_bytes(data)
            bar.update()
    return found


def convert(name: str, program: programs.Program) -> tuple[bytes, dict[str, Any]]:
    """One program as the contents of an ONNX file, and its inputs and outputs; a UserError where it cannot be."""
    # It tells of every example of its own that it cannot load.
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)
    import jax2onnx

    inputs, leaves = program.input_names(), jax.tree.leaves(program.args)
    outputs = [f"next_{output}" if output in inputs else output for output in program.result_names()]
    tree = jax.tree.structure(program.args)

    def fn(*values: Any) -> Any:
        return program.fn(program.weights, *jax.tree.unflatten(tree, values))

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    with compilation.target("gpu"):  # plain convolutions
        written = inlined.write_out(fn, *shapes)
    try:
        model = jax2onnx.to_onnx(lambda *values: tuple(written(*values)), shapes, model_name=name)
    except Exception as error:  # the converter raises what its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise errors.UserError(f"--onnx: jax2onnx cannot convert the program {name}: {reason}; leave it out") from None
    _rename(model.graph, inputs, outputs)
    results = jax.tree.leaves(jax.eval_shape(fn, *shapes))
    described = {"inputs": _described(inputs, leaves), "outputs": _described(outputs, results)}
    return model.SerializeToString(), described


def _described(names: list[str], leaves: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
        for name, leaf in zip(names, leaves, strict=True)
    ]


def _rename(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Gives the inputs and outputs of a graph these names, inside and out."""
    given = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    for value in graph.input:
        value.name = given[value.name]
    for node in graph.node:
        node.input[:] = [given.get(name, name) for name in node.input]
    for value, name in zip(graph.output, outputs, strict=True):
        graph.node.add(op_type="Identity", input=[given.get(value.name, value.name)], output=[name], name=f"out_{name}")
        value.name = name
