"""Writes the programs of a model for JAX: serialised `jax.export.Exported`s, their weights beside them or inside.

The batch size is symbolic: a program takes any number of videos at a time (but the ones for single regions). The image
size is not: interpolation weights, the borders of regions and the grid are computed from it when a program is traced
(`nets.kernels.layers`), and a symbolic size has no numbers to compute with. Export once for each size.

There is a program for CPUs and one for accelerators (CUDA, ROCm, TPU), since they have other variants of the layers.
With `lax.platform_dependent` at every layer one program could hold both, at twice the size and slower to compile; a
file each keeps the choice out of the layers, and a device reads only its own.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from dvsnas_jax.core import compilation, progress
from dvsnas_jax.infer import artifact, programs

BACKENDS = {"cpu": "cpu", "accelerator": "gpu"}
"""The backend whose layers a target of `artifact.TARGETS` gets."""


def write(
    path: pathlib.Path,
    model: programs.Model,
    *,
    is_baked: bool = False,
    targets: Mapping[str, Sequence[str]] = artifact.TARGETS,
) -> dict[str, Any]:
    """Writes all programs into a folder that exists, and their weights unless these are baked in.

    `targets` are all of `artifact.TARGETS`, or some.

    Returns:
      `programs`, `platforms` and `files` of the manifest.
    """
    made, tensors, entries, files = programs.make(model), dict[str, np.ndarray](), {}, {}
    with progress.bar(len(made) * len(targets), "export") as bar:
        for name, program in made.items():
            named = program.named_weights()
            tensors |= named
            entries[name] = {"weights": None if is_baked else list(named), "is_batched": program.is_batched}
            for target, platforms in targets.items():
                data = bytes(exported(program, target, platforms, is_baked=is_baked).serialize())
                files[artifact.program_file(name, target)] = data
                bar.update()
    if not is_baked:
        import safetensors.numpy

        files[artifact.TENSORS] = safetensors.numpy.save(tensors)
    for file, data in files.items():
        (path / file).write_bytes(data)
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    return {"programs": entries, "platforms": targets, "files": hashes}


def exported(
    program: programs.Program, target: str, platforms: Sequence[str], *, is_baked: bool = False
) -> jax.export.Exported:
    """One program, traced for a target of `artifact.TARGETS` to run on some platforms.

    Its first argument is the list of the weights in the order of their names, unless they are baked in.
    """
    fn, args = program.of_listed_weights(), program.args
    if program.is_batched:
        (batch,) = jax.export.symbolic_shape("b")
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), args)
    weights = list(program.named_weights().values())
    if is_baked:
        fn = functools.partial(fn, weights)
    else:
        args = ([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in weights], *args)
    with compilation.target(BACKENDS[target]):
        return jax.export.export(compilation.jit(fn), platforms=platforms)(*args)
