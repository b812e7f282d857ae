"""How a search chooses its next genotypes: one interface, a table of members."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.controller import evolution, gumbel, ppo, predictor, reinforce, uniform
from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.space import genotype

State = Any
Metrics = dict[str, float]

NUM_CANDIDATES = 256
"""How many genotypes `probable` draws to find the most probable ones."""

MAX_DRAWS = 8
"""How often it draws again, each time at twice the temperature, while too few are distinct."""


class Strategy(NamedTuple):
    """A strategy as functions; its state is a pytree of arrays, without PRNG keys.

    Attributes:
      init: `(rng) -> state`.
      sample: `(state, rng, num) -> types.Samples` of num genotypes; compiled once per num.
      update: `(state, samples, rewards f32 [N], valid bool [N], rng) -> (state, metrics)`: learns from
        scored samples; rows that are not valid (a diverged candidate) are left out. The state that
        goes in is donated: use the one that comes out. Compiled once per N; metrics are floats.
      probable: `(state, rng, num) -> genotypes i32 [num, L, 5]`, distinct, what the strategy believes
        in most, best first; fewer rows only where the space holds fewer genotypes.
      op_mask: bool [num_ops], operations that it may choose.
      with_mask: `(op_mask) -> Strategy`, the same compiled functions under another mask, which leaves
        at least one operation.
      relaxation: of a strategy that learns from gradients of a relaxed cell, its functions; None: from rewards.
    """

    init: Callable[[jax.Array], State]
    sample: Callable[[State, jax.Array, int], types.Samples]
    update: Callable[..., tuple[State, Metrics]]
    probable: Callable[[State, jax.Array, int], np.ndarray]
    op_mask: np.ndarray
    with_mask: Callable[[np.ndarray], Strategy]
    relaxation: gumbel.Gumbel | None = None


def make(name: str, space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """Builds a strategy by name.

    Args:
      name: a key of `TABLE`.
      space: what it searches.
      controller_config: the section `controller` of the configuration.

    Returns:
      The strategy.

    Raises:
      UserError: unknown name, an operation mask that is unknown or leaves nothing, impossible sizes.
    """
    if name not in TABLE:
        raise _unknown("search.strategy", name)
    return TABLE[name](space, controller_config)


def check_names(names: Sequence[str], where: str = "--strategies") -> None:
    """Names to compare: distinct and known.

    Raises:
      UserError: they are not; `where` is named.
    """
    if not names or len(set(names)) < len(names):
        raise errors.UserError(f"{where}: needs distinct names separated by commas, got {','.join(names) or 'none'}")
    for name in names:
        if name not in TABLE:
            raise _unknown(where, name)


def _unknown(where: str, name: str) -> errors.UserError:
    close = difflib.get_close_matches(str(name).lower(), TABLE, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ","
    return errors.UserError(f"{where}: unknown name {name!r}{hint} allowed are {', '.join(TABLE)}")


def operation_mask(space: genotype.Space, masked: tuple[str, ...]) -> np.ndarray:
    """Which operations may be chosen, bool [num_ops].

    Args:
      space: names the operations.
      masked: names of those that may not be chosen.

    Raises:
      UserError: a name is not an operation of the space, or none is left.
    """
    for name in masked:
        if name not in space.operations:
            close = difflib.get_close_matches(str(name), space.operations, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ","
            raise errors.UserError(
                f"controller.masked_operations: unknown name {name!r}{hint} allowed are {', '.join(space.operations)}"
            )
    mask = np.asarray([name not in masked for name in space.operations])
    if not mask.any():
        raise errors.UserError("controller.masked_operations: masks every operation of the space; leave one out of it")
    return mask


class _Compiled(NamedTuple):
    """The jitted functions of a strategy with a policy, which strategies under several masks share."""

    init: Callable[..., Any]
    draw: Callable[..., Any]
    find_mode: Callable[..., Any]
    score: Callable[..., Any]
    learn: Callable[..., Any]
    relaxation: gumbel.Gumbel | None = None


def make_ppo(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """The recurrent policy trained with PPO."""
    return _make_learned(space, controller_config, ppo.make)


def make_reinforce(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """The recurrent policy trained with the plain policy gradient."""
    return _make_learned(space, controller_config, reinforce.make)


def make_gumbel(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """A distribution for every token, learnt from the gradients of the relaxed cell (SNAS)."""
    op_mask = operation_mask(space, tuple(controller_config.masked_operations))
    relaxation = gumbel.make(space, controller_config)
    compiled = _Compiled(
        init=compilation.jit_once(relaxation.init),
        draw=compilation.jit(relaxation.sample, static_argnames="num"),
        find_mode=compilation.jit(relaxation.greedy),
        score=compilation.jit(relaxation.score),
        learn=compilation.jit(relaxation.learn, donate_argnums=0),
        relaxation=relaxation,
    )
    return _masked_learned(space, compiled, op_mask)


def _make_learned(
    space: genotype.Space, controller_config: ml_collections.ConfigDict, make_fn: Callable[..., Any]
) -> Strategy:
    """The recurrent policy trained with an algorithm: `make_fn(policy, config)` has `init` and `learn`."""
    op_mask = operation_mask(space, tuple(controller_config.masked_operations))
    policy = policy_lib.make(
        space,
        hidden=controller_config.hidden,
        lstm_layers=controller_config.lstm_layers,
        init_scale=controller_config.init_scale,
    )
    algorithm = make_fn(policy, controller_config)
    compiled = _Compiled(
        init=compilation.jit_once(algorithm.init),
        draw=compilation.jit(policy.sample, static_argnames="num"),
        find_mode=compilation.jit(policy.greedy),
        score=compilation.jit(policy.score),
        learn=compilation.jit(algorithm.learn, donate_argnums=0),
    )
    return _masked_learned(space, compiled, op_mask)


def _masked_learned(space: genotype.Space, compiled: _Compiled, host_mask: np.ndarray) -> Strategy:
    """A trained policy under one mask."""
    init, draw, find_mode, score, learn, relaxation = compiled
    op_mask = jax.device_put(host_mask)

    def sample(state: Any, rng: jax.Array, num: int) -> types.Samples:
        samples = draw(state.params, rng, op_mask, num=num)
        chex.assert_shape(samples.genotypes, (num, space.num_layers, len(genotype.FIELDS)))
        chex.assert_shape([samples.log_prob, samples.entropy], (num,))
        return samples

    def update(
        state: Any, samples: types.Samples, rewards: types.Array, valid: types.Array, rng: jax.Array
    ) -> tuple[Any, Metrics]:
        state, metrics = learn(state, samples, *_on_device(rewards, valid), rng, op_mask)
        values = _floats(metrics)
        if not values["num_updates"]:
            values = {name: values[name] for name in ("num_updates", "baseline") if name in values}
        return state, values

    def probable(state: Any, rng: jax.Array, num: int) -> np.ndarray:
        first = find_mode(state.params, op_mask)[None]
        pool = {row.tobytes(): (row, value) for row, value in _scored(first, score(state.params, first, op_mask)[0])}
        num_candidates = max(NUM_CANDIDATES, num)
        for turn in range(MAX_DRAWS):
            turn_rng = jax.random.fold_in(rng, turn)
            samples = draw(state.params, turn_rng, op_mask, num=num_candidates, temperature=2.0**turn)
            pool.update({row.tobytes(): (row, value) for row, value in _scored(samples.genotypes, samples.log_prob)})
            if len(pool) >= num:
                break
        best = sorted(pool.values(), key=lambda pair: (-pair[1], pair[0].tobytes()))
        return np.stack([row for row, _ in best[:num]])

    return Strategy(
        init=init,
        sample=sample,
        update=update,
        probable=probable,
        op_mask=host_mask,
        with_mask=functools.partial(_masked_learned, space, compiled),
        relaxation=relaxation,
    )


def _on_device(rewards: types.Array, valid: types.Array) -> tuple[jax.Array, jax.Array]:
    return jax.device_put((np.asarray(rewards, np.float32), np.asarray(valid, bool)))


def _floats(metrics: dict[str, jax.Array]) -> Metrics:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _scored(genotypes: types.Array, log_prob: types.Array) -> list[tuple[np.ndarray, float]]:
    """Rows with their log-probabilities, on the host."""
    rows, values = jax.device_get((genotypes, log_prob))
    return [(row, float(value)) for row, value in zip(rows, values, strict=True)]


class _Breeding(NamedTuple):
    """The jitted functions of evolution, which strategies under several masks share."""

    init: Callable[..., Any]
    draw: Callable[..., Any]
    draw_uniform: Callable[..., Any]
    learn: Callable[..., Any]


def make_evolution(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """Regularised evolution: mutated winners of small tournaments, the oldest members die."""
    op_mask = operation_mask(space, tuple(controller_config.masked_operations))
    algorithm = evolution.make(space, controller_config)
    draw_uniform = functools.partial(uniform.draw, policy_lib.token_table(space))
    compiled = _Breeding(
        init=compilation.jit_once(algorithm.init),
        draw=compilation.jit(algorithm.sample, static_argnames="num"),
        draw_uniform=compilation.jit(draw_uniform, static_argnames="num"),
        learn=compilation.jit(algorithm.learn, donate_argnums=0),
    )
    return _masked_evolution(compiled, op_mask)


def _masked_evolution(compiled: _Breeding, host_mask: np.ndarray) -> Strategy:
    """Evolution under one mask."""
    init, draw, draw_uniform, learn = compiled
    op_mask = jax.device_put(host_mask)

    def sample(state: Any, rng: jax.Array, num: int) -> types.Samples:
        return draw(state, rng, op_mask, num=num)

    def update(
        state: Any, samples: types.Samples, rewards: types.Array, valid: types.Array, rng: jax.Array
    ) -> tuple[Any, Metrics]:
        del rng
        state, metrics = learn(state, samples, *_on_device(rewards, valid))
        return state, _floats(metrics)

    def probable(state: Any, rng: jax.Array, num: int) -> np.ndarray:
        members, rewards, filled = jax.device_get((state.genotypes, state.reward, state.filled()))
        order = sorted(np.flatnonzero(filled), key=lambda row: (-rewards[row], members[row].tobytes()))
        allowed = [members[row] for row in order if host_mask[members[row][:, 2:4]].all()]
        found = {row.tobytes(): row for row in allowed}
        for turn in range(MAX_DRAWS):
            if len(found) >= num:
                break
            turn_rng, size = jax.random.fold_in(rng, turn), max(NUM_CANDIDATES, num)
            # Children first; where those are too few, any genotype.
            drawn = draw_uniform(turn_rng, op_mask, num=size) if turn else draw(state, turn_rng, op_mask, num=size)
            for row in jax.device_get(drawn.genotypes):
                found.setdefault(row.tobytes(), row)
        return np.stack(list(found.values())[:num])

    return Strategy(
        init=init,
        sample=sample,
        update=update,
        probable=probable,
        op_mask=host_mask,
        with_mask=functools.partial(_masked_evolution, compiled),
    )


def make_predictor(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """A Gaussian process over counts of what genotypes hold proposes; NumPy on the host, nothing is compiled."""
    op_mask = operation_mask(space, tuple(controller_config.masked_operations))
    return _masked_predictor(predictor.Predictor(space, controller_config), op_mask)


def _masked_predictor(model: predictor.Predictor, host_mask: np.ndarray) -> Strategy:
    """The predictor under one mask."""

    def sample(state: Any, rng: jax.Array, num: int) -> types.Samples:
        return model.sample(state, rng, host_mask, num)

    def update(
        state: Any, samples: types.Samples, rewards: types.Array, valid: types.Array, rng: jax.Array
    ) -> tuple[Any, Metrics]:
        del rng
        return model.learn(state, samples, rewards, valid)

    def probable(state: Any, rng: jax.Array, num: int) -> np.ndarray:
        return model.probable(state, rng, host_mask, num)

    return Strategy(
        init=model.init,
        sample=sample,
        update=update,
        probable=probable,
        op_mask=host_mask,
        with_mask=functools.partial(_masked_predictor, model),
    )


def make_random(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Strategy:
    """Uniform draws: the line that every search is compared with. It learns nothing."""
    op_mask = operation_mask(space, tuple(controller_config.masked_operations))

    def init(rng: jax.Array) -> State:
        del rng
        return {"num_seen": jnp.zeros((), jnp.int32)}

    draw = compilation.jit(functools.partial(uniform.draw, policy_lib.token_table(space)), static_argnames="num")
    return _masked_random(compilation.jit_once(init), draw, op_mask)


def _masked_random(
    init: Callable[[jax.Array], State], draw: Callable[..., types.Samples], host_mask: np.ndarray
) -> Strategy:
    """Uniform draws under one mask; `draw` is `(rng, op_mask, num) -> samples`."""
    op_mask = jax.device_put(host_mask)

    def sample(state: State, rng: jax.Array, num: int) -> types.Samples:
        del state
        return draw(rng, op_mask, num=num)

    def update(
        state: State, samples: types.Samples, rewards: types.Array, valid: types.Array, rng: jax.Array
    ) -> tuple[State, Metrics]:
        del samples, rng
        chex.assert_equal_shape([rewards, valid])
        num_valid = np.int32(np.sum(np.asarray(valid) & np.isfinite(rewards)))
        return {"num_seen": state["num_seen"] + num_valid}, {"num_updates": 0.0}

    def probable(state: State, rng: jax.Array, num: int) -> np.ndarray:
        del state
        found: dict[bytes, np.ndarray] = {}
        for turn in range(MAX_DRAWS):
            rows = jax.device_get(draw(jax.random.fold_in(rng, turn), op_mask, num=max(NUM_CANDIDATES, num)).genotypes)
            found.update({row.tobytes(): row for row in rows})
            if len(found) >= num:
                break
        return np.stack(list(found.values())[:num])

    return Strategy(
        init=init,
        sample=sample,
        update=update,
        probable=probable,
        op_mask=host_mask,
        with_mask=functools.partial(_masked_random, init, draw),
    )


TABLE: dict[str, Callable[[genotype.Space, ml_collections.ConfigDict], Strategy]] = {
    "ppo": make_ppo,
    "reinforce": make_reinforce,
    "evolution": make_evolution,
    "gumbel": make_gumbel,
    "predictor": make_predictor,
    "random": make_random,
}
