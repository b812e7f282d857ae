"""The jitted steps of a search with their arguments as shapes: lowered, compiled and weighed without any data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.data import datasets
from dvsnas_jax.search import steps
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import cell_loss, features


class Programs(NamedTuple):
    """The two jitted steps on the shared weights of a search, and the shapes of their arguments."""

    space: genotype_lib.Space
    steps: steps.Steps
    train: tuple[Any, ...]
    evaluate: tuple[Any, ...]

    def lower(self, name: str) -> jax.stages.Lowered:
        """The program `train` or `evaluate` as StableHLO."""
        program: Any = getattr(self.steps, f"{name}_shared")
        return program.lower(*getattr(self, name))


def paper_size(config: ml_collections.ConfigDict, crop: int) -> ml_collections.ConfigDict:
    """A copy of a configuration at the size of a paper's search: batch 32, C = 64, L = 7, square crops."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.search.batch_size = 32
        changed.space.channels, changed.space.num_layers = 64, 7
        changed.data.crop_height = changed.data.crop_width = crop
        changed.search.cache_clips = max(changed.search.cache_clips, 1)  # crops exist among augmented clips only
    return changed


def without_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy that names no data set but has as many classes: reading their names may need the data or a package."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.data.prepared = ""
        if num_classes := datasets.of(config.data).num_classes:
            changed.data.name = "folder"
            changed.data.folder.classes = tuple(f"class{index}" for index in range(num_classes))
            changed.data.folder.colors = ()
            changed.data.folder.ids = ()
    return changed


def make_mesh(section: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """All devices, spread so that a step takes the fewest turns; `section` is `search` of the configuration."""
    sizes = (section.shared_genotypes, section.genotypes_per_step)
    return mesh_lib.make(mesh_lib.best_num_data(jax.device_count(), section.batch_parts, sizes))


def scored_shape(section: ml_collections.ConfigDict) -> tuple[int, int]:
    """Batches of clips behind one reward, and clips of a batch."""
    return -(-section.reward_clips // section.batch_size), section.batch_size


def make(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, *, train_clips: int, val_clips: int) -> Programs:
    """The steps of the search that a config describes, for stores of so many clips."""
    section, space = config.search, features.space_of(config)
    with compilation.effort(config.compile_effort):
        settings = features.settings_of(config)
        # Of any values: only labels that are read would tell them.
        weights = np.ones(settings.num_classes, np.float32) if config.pretrain.class_weights else None
        loss = cell_loss.make(config, section.label_stride, weights)
        made = steps.make(supernet_lib.make(space, settings), section, mesh, loss=loss)
    where = mesh_lib.replicated(mesh)
    names = features.needed_maps(space, config)
    stores = [
        features.shapes(config, names, train_clips, where, is_augmented=bool(section.cache_clips), is_training=True),
        features.shapes(config, names, val_clips, where),
    ]
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), made.state)

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.int32)

    def genotypes(num: int) -> jax.ShapeDtypeStruct:
        return integers(num, space.num_layers, len(genotype_lib.FIELDS))

    num = section.shared_genotypes
    return Programs(
        space=space,
        steps=made,
        train=(state, genotypes(num), stores[0], integers(num, section.batch_size)),
        evaluate=(state.params, genotypes(section.genotypes_per_step), stores[1], integers(*scored_shape(section))),
    )


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device that a compiled program needs: arguments, results, its own buffers, and in all."""
    found = compiled.memory_analysis()
    parts = {part: int(getattr(found, f"{part}_size_in_bytes", 0)) for part in ("argument", "output", "temp", "alias")}
    return {**parts, "total": parts["argument"] + parts["output"] + parts["temp"] - parts["alias"]}
