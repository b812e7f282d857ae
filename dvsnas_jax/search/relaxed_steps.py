"""Training by gradients through the relaxed cell: the shared weights and the distribution of the choices together.

One level, as in SNAS: both gradients come from the same loss on the same batch. A relaxed step computes all branches
of the space, 2 operations + aggregations of every layer, where a genotype's step computes 3. By that count an
iteration takes as many relaxed steps as cost what the ordinary steps of other strategies cost, at least one; then it
draws, scores and logs as many candidates as theirs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import PartitionSpec

from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.controller.strategies import gumbel
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.search import loop, search_cost, steps
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import relaxed as relaxed_lib
from dvsnas_jax.train import cell_loss, feature_store, features, optim
from dvsnas_jax.train import cell_training as train_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """How the choices are relaxed in a step.

    Attributes:
      noise: f32 [G, L, 5, V], of G relaxed draws.
      op_mask: bool [num_ops].
      temperature: f32 [].
      is_learning: bool [], the choices take a step, too.
    """

    noise: types.Array
    op_mask: types.Array
    temperature: types.Array
    is_learning: types.Array


class StepFn(Protocol):
    """A step of both optimizers on the mean over G relaxed draws; the shared state is donated."""

    def __call__(
        self,
        shared: optim.TrainState,
        choices: gumbel.GumbelState,
        draws: Draws,
        store: types.FeatureStore,
        clips: types.Array,
        *,
        relaxation: strategy_lib.Relaxation,
    ) -> tuple[optim.TrainState, gumbel.GumbelState, steps.Metrics]:
        """Clips are i32 [G, B], the relaxation is static."""


class Trainer(NamedTuple):
    """The jitted relaxed step, which all searches on the same features share, and its devices."""

    mesh: jax.sharding.Mesh
    step: StepFn


def make(
    config: ml_collections.ConfigDict,
    space: genotype_lib.Space,
    mesh: jax.sharding.Mesh,
    train_rows: PartitionSpec,
    class_weights: np.ndarray | None = None,
) -> Trainer:
    """Builds the relaxed step; nothing is compiled before its first call.

    `train_rows` says how the rows of the store lie on the mesh; `class_weights` are of `cell_training.class_weights`.
    """
    section = config.search
    loss = cell_loss.make(config, section.label_stride, class_weights)
    relaxed = relaxed_lib.make(space, features.settings_of(config))
    optimizer = optim.make(section, is_constant=True)

    def step(
        shared: optim.TrainState,
        choices: gumbel.GumbelState,
        draws: Draws,
        store: types.FeatureStore,
        clips: jax.Array,
        *,
        relaxation: strategy_lib.Relaxation,
    ) -> tuple[optim.TrainState, gumbel.GumbelState, steps.Metrics]:
        def unroll(trained: Any, flat: jax.Array, frames: types.Features) -> jax.Array:
            params, logits = trained
            weights = relaxation.relax(logits, flat.reshape(logits.shape), draws.op_mask, draws.temperature)
            return relaxed.unroll(params, weights, frames)

        gradient_fn = steps.make_gradient(steps.autodiff(unroll), section, mesh, train_rows, loss)
        rows = jnp.asarray(draws.noise).reshape(*draws.noise.shape[:2], -1)  # [G, L, 5 V], the rank of genotypes
        gradients, step_metrics = gradient_fn((shared.params, choices.params), rows, store, clips)
        shared = optim.descend(optimizer, shared, gradients[0])
        descended, metrics = relaxation.descend(choices, gradients[1], draws.op_mask)
        choices = jax.tree.map(lambda new, old: jnp.where(draws.is_learning, new, old), descended, choices)
        return shared, choices, {**metrics, **step_metrics, "gradient_norm": optax.tree.norm(gradients[0])}

    where = mesh_lib.replicated(mesh)
    return Trainer(mesh, compilation.jit(step, donate_argnums=0, out_shardings=where, static_argnames="relaxation"))


def train(
    trainer: Trainer | None,
    config: ml_collections.ConfigDict,
    strategy: strategy_lib.Strategy,
    store: feature_store.AnyStore,
    state: loop.LoopState,
    step: int,
) -> tuple[loop.LoopState, dict[str, float]]:
    """The relaxed steps of iteration `step`, a function of (config, state, step).

    The config's steps set the pace of the temperature. Returns the state, and means of the metrics; `relaxed_work` is
    the work of these steps by that of the ordinary ones.
    """
    relaxation = strategy.functions.relaxation
    assert trainer is not None and relaxation is not None, "this strategy needs the relaxed step"
    section, space = config.search, features.space_of(config)
    num_steps, key = steps_per_iteration(section, space), (config.seed, 4, step)
    shape = (num_steps, section.shared_genotypes)
    drawn = train_lib.draw_clips(key, store.num_clips, (*shape, section.batch_size))
    clips = feature_store.deal(drawn, store.num_clips, section.batch_parts)
    noise = np.random.default_rng((*key, 1)).gumbel(size=(*shape, *state.strategy.params.shape)).astype(np.float32)
    temperature = gumbel.temperature(config.controller, step / max(section.steps - 1, 1))
    is_learning = np.asarray(step >= section.controller_warmup)
    # The choices are of one device, the step is of all.
    shared, choices = state.shared, mesh_lib.replicate(trainer.mesh, jax.device_get(state.strategy))
    logged = []
    for index in range(num_steps):
        draws = Draws(noise[index], strategy.op_mask, np.asarray(temperature, np.float32), is_learning)
        found = feature_store.training(store, clips[index])
        shared, choices, metrics = trainer.step(shared, choices, draws, *found, relaxation=relaxation)
        logged.append(metrics)
    done = num_steps * branch_ratio(space) / section.shared_steps
    means = loop.means(logged) | {"temperature": temperature, "relaxed_work": done}
    return loop.LoopState(strategy=jax.device_put(jax.device_get(choices)), shared=shared), means


def branch_ratio(space: genotype_lib.Space) -> float:
    """What a relaxed step costs in steps of one genotype: the branches of both, 3 a layer in a genotype's cell."""
    return relaxed_lib.num_branches(space) / (3 * space.num_layers)


def steps_per_iteration(section: ml_collections.ConfigDict, space: genotype_lib.Space) -> int:
    """Relaxed steps of an iteration: `search.relaxed_steps`, or as many as cost what `search.shared_steps` cost."""
    return section.relaxed_steps or max(1, round(section.shared_steps / branch_ratio(space)))


def check(config: ml_collections.ConfigDict, space: genotype_lib.Space, strategy: strategy_lib.Strategy) -> None:
    """Whether a strategy that learns from gradients can run with a config; says nothing of other strategies.

    Raises:
      UserError: candidates do not share weights, several processes, or a step would hold too many values.
    """
    if not strategy.record.is_relaxed:
        return
    section = config.search
    if section.mode != "share":
        raise errors.UserError(
            "search.strategy gumbel: learns from gradients through the shared weights; set search.mode to 'share', "
            f"it is {section.mode!r}"
        )
    if distributed.num_processes() > 1:
        raise errors.UserError("search.strategy gumbel: runs in one process (with all of its devices); start it alone")
    branches = relaxed_lib.num_branches(space)
    height, width = search_cost.grid(search_cost.image_sizes(config)[0])
    maps = section.shared_genotypes * section.batch_size * config.data.num_frames * branches
    millions = maps * height * width * config.space.channels / 1e6
    if millions > section.relaxed_limit:
        raise errors.UserError(
            f"search.strategy gumbel: a step computes all {branches} branches of the space, {millions:.3g} million "
            f"values, more than search.relaxed_limit ({section.relaxed_limit:g}); shorten space.operations, lower "
            "space.num_layers, space.channels or search.batch_size, or raise the limit"
        )
