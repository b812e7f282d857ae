"""What a search decides and compiles before its static network is trained: the mesh, where features lie, the steps."""

from __future__ import annotations

import sys

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data.loading import mixture
from dvsnas_jax.search import steps
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import cell_loss, feature_store, features, pretrain


def place(config: ml_collections.ConfigDict, space: genotype_lib.Space) -> feature_store.Placement:
    """Chooses the mesh and where features lie, and says why."""
    names, cached = features.needed_maps(space, config), config.search.cache_clips
    num_train, num_val = map(len, pretrain.split_clips(config))
    num_clips = mixture.rows(config, cached or num_train).total
    shapes = {
        "training": features.shapes(config, names, num_clips, None, is_augmented=bool(cached), is_training=True),
        "validation": features.shapes(config, names, num_val, None),
    }
    found = feature_store.plan(config.search, shapes)
    if distributed.is_main():
        print(found.reason, file=sys.stderr, flush=True)
    return found


def compile_steps(
    config: ml_collections.ConfigDict,
    space: genotype_lib.Space,
    placement: feature_store.Placement | None = None,
    *,
    groups: np.ndarray,
    class_weights: np.ndarray | None = None,
) -> steps.Steps:
    """The steps on the shared weights, compiled in threads while the static network trains.

    `placement` is from `place`, None: every device holds all clips; `groups` are batches of the clips of a reward, i32
    [groups, R, B]; `class_weights` are of `cell_training.class_weights`.
    """
    section, placement = config.search, placement or feature_store.everywhere(config.search)
    mesh = placement.mesh
    supernet = supernet_lib.make(space, features.settings_of(config))
    rows = {"train_rows": placement.train_rows, "val_rows": placement.val_rows}
    loss = cell_loss.make(config, section.label_stride, class_weights)
    made = steps.make(supernet, section, mesh, **rows, loss=loss)
    if section.mode == "scratch":
        return made
    names = features.needed_maps(space, config)
    num_train, num_val = map(len, pretrain.split_clips(config))
    where = mesh_lib.sharding(mesh, placement.train_rows)
    num_clips = mixture.rows(config, section.cache_clips or num_train).total
    num_rows = placement.train_row_count(num_clips, *batch_shape(section))
    is_augmented = bool(section.cache_clips)
    train_store = features.shapes(config, names, num_rows, where, is_augmented=is_augmented, is_training=True)
    where = mesh_lib.sharding(mesh, placement.val_rows)
    val_store = features.shapes(config, names, placement.val_row_count(num_val, *groups[0].shape), where)
    where = mesh_lib.replicated(mesh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), made.state)

    def tokens(num: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num, space.num_layers, len(genotype_lib.FIELDS)), np.int32)

    clips = jax.ShapeDtypeStruct(batch_shape(section), np.int32)
    return made._replace(
        train_shared=compilation.Ahead(made.train_shared, state, tokens(section.shared_genotypes), train_store, clips),
        evaluate_shared=compilation.Ahead(
            made.evaluate_shared, state.params, tokens(section.genotypes_per_step), val_store, groups[0]
        ),
    )


def batch_shape(section: ml_collections.ConfigDict) -> tuple[int, int]:
    """Genotypes and clips of an optimizer step on the shared weights."""
    return section.shared_genotypes, section.batch_size
