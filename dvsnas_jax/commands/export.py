"""The command that writes a trained cell as a folder that runs with JAX alone."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common


def register(add: common.Add) -> None:
    """Adds the command."""
    command = add(
        "export",
        _export,
        "write the network and cell of a run folder as programs that run with JAX alone",
        "--workdir=runs/smoke --output=exported/smoke",
    )
    command.add_argument(
        "--workdir", metavar="DIR", required=True, help="run folder with a trained cell or static network"
    )
    command.add_argument("--output", metavar="DIR", required=True, help="folder to write")
    command.add_argument("--bake", action="store_true", help="put the weights into the programs, not beside them")
    command.add_argument("--savedmodel", action="store_true", help="write a TensorFlow SavedModel into the folder, too")
    command.add_argument(
        "--tflite", action="store_true",
        help="write model.tflite, too: the programs as signatures; refine: serving_default is the next frame, "
        "propagate: call key for key frames and other for the rest (learned schedules: look first)",
    )  # fmt: skip
    command.add_argument(
        "--onnx", action="store_true",
        help="write onnx/PROGRAM.onnx, too: inputs frame and state_*, outputs labels and next_state_* (manifest.json "
        "lists shapes and the first state); needs jax2onnx",
    )  # fmt: skip
    common.add_compile_cache(command)


def _export(arguments: argparse.Namespace) -> None:
    common.existing(arguments.workdir, "--workdir")
    from dvsnas_jax.deploy import export

    written = export.run(
        arguments.workdir,
        arguments.output,
        is_baked=arguments.bake,
        has_savedmodel=arguments.savedmodel,
        has_tflite=arguments.tflite,
        has_onnx=arguments.onnx,
    )
    common.print_summary(written)
