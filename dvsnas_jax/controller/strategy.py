"""What a search strategy is: the record that a member states, its functions, and a strategy under an operation mask.

The state of a strategy is a pytree of arrays, without PRNG keys. `op_mask` is bool [num_ops], operations that may be
chosen; it is data: a change compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import chex
import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.space import genotype

State = Any
NUM_CANDIDATES = 256
"""How many genotypes `probable` draws to find the most probable ones."""
MAX_DRAWS = 8
"""How often it draws again while too few are distinct."""


class SampleFn(Protocol):
    """Draws `num` genotypes; compiled once per num."""

    def __call__(self, state: State, rng: jax.Array, op_mask: np.ndarray, num: int, /) -> types.Samples: ...


class UpdateFn(Protocol):
    """Learns from scored samples: rewards f32 [N]; rows that are not valid, bool [N], are left out (a diverged
    candidate). The state that goes in is donated: use the one that comes out. The metrics are numbers."""

    def __call__(
        self,
        state: State,
        samples: types.Samples,
        rewards: np.ndarray,
        valid: np.ndarray,
        rng: jax.Array,
        op_mask: np.ndarray,
        /,
    ) -> tuple[State, Mapping[str, Any]]: ...


class ProbableFn(Protocol):
    """Distinct genotypes i32 [num, L, 5] that the strategy believes in most, best first; fewer only where the space
    holds fewer."""

    def __call__(self, state: State, rng: jax.Array, op_mask: np.ndarray, num: int, /) -> np.ndarray: ...


class Relaxation(Protocol):
    """What learns from gradients of a relaxed cell; see `strategies.gumbel.Gumbel`."""

    @property
    def relax(self) -> Callable[..., jax.Array]: ...

    @property
    def descend(self) -> Callable[..., tuple[Any, dict[str, jax.Array]]]: ...


@dataclasses.dataclass(frozen=True)
class Functions:
    """What a member is made of."""

    init: Callable[[jax.Array], State]  # `(rng) -> state`
    sample: SampleFn  # see `SampleFn`
    update: UpdateFn  # see `UpdateFn`
    probable: ProbableFn | None = None  # see `ProbableFn`; None: distinct draws of `sample`
    # of a member that learns from gradients, beside what `update` learns from rewards
    relaxation: Relaxation | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """A member of `strategies.TABLE`."""

    name: str  # as `search.strategy`
    # `(space, section controller of the config) -> Functions`; a UserError where sizes are impossible
    make: Callable[[genotype.Space, ml_collections.ConfigDict], Functions]
    order: int = 100  # its place in the table
    # What a search of some tens of evaluations needs in place of the config's defaults, which are for hundreds;
    # found on made-up tables of rewards, not on the packaged one.
    short_search: Mapping[str, str] = dataclasses.field(default_factory=dict)
    learns_from_any: bool = False  # from rewards of cells that it did not draw, too
    is_relaxed: bool = False  # learns from gradients through the relaxed cell instead of from rewards
    is_model: bool = False  # fits a model of the rewards: candidates that were stopped enter by `scratch.expected`


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
    """A member for a space under one operation mask, bool [num_ops]; other masks share what is compiled."""

    record: Record
    space: genotype.Space
    functions: Functions
    op_mask: np.ndarray

    def with_mask(self, op_mask: np.ndarray) -> Strategy:
        """The same under another mask, which leaves at least one operation."""
        return dataclasses.replace(self, op_mask=op_mask)

    @property
    def init(self) -> Callable[[jax.Array], State]:
        """`(rng) -> state` before the first draw."""
        return self.functions.init

    def sample(self, state: State, rng: jax.Array, num: int) -> types.Samples:
        """See `SampleFn`."""
        samples = self.functions.sample(state, rng, self.op_mask, num)
        chex.assert_shape(samples.genotypes, (num, self.space.num_layers, len(genotype.FIELDS)))
        chex.assert_shape([samples.log_prob, samples.entropy], (num,))
        return samples

    def update(
        self, state: State, samples: types.Samples, rewards: types.Array, valid: types.Array, rng: jax.Array
    ) -> tuple[State, dict[str, float]]:
        """See `UpdateFn`."""
        rows = np.asarray(rewards, np.float32), np.asarray(valid, bool)
        chex.assert_equal_shape(rows)
        state, metrics = self.functions.update(state, samples, *rows, rng, self.op_mask)
        return state, {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}

    def probable(self, state: State, rng: jax.Array, num: int) -> np.ndarray:
        """See `ProbableFn`."""
        if self.functions.probable is not None:
            return self.functions.probable(state, rng, self.op_mask, num)
        found: dict[bytes, np.ndarray] = {}
        for turn in range(MAX_DRAWS):
            drawn = self.sample(state, jax.random.fold_in(rng, turn), max(NUM_CANDIDATES, num))
            found.update({row.tobytes(): row for row in jax.device_get(drawn.genotypes)})
            if len(found) >= num:
                break
        return np.stack(list(found.values())[:num])


class Distribution(Protocol):
    """Draws and scores genotypes, see `policy.Policy`; the state of a strategy that learns it has its `params`."""

    @property
    def sample(self) -> Callable[..., types.Samples]: ...

    @property
    def score(self) -> Callable[..., tuple[jax.Array, jax.Array]]: ...

    @property
    def greedy(self) -> Callable[..., jax.Array]: ...


def learned(
    policy: Distribution, init: Callable[[jax.Array], State], learn: Callable[..., tuple[State, Any]] | None
) -> Functions:
    """The jitted functions of a trained distribution; `learn` as `UpdateFn`, None: it learns nothing from rewards."""
    draw = compilation.jit(policy.sample, static_argnames="num")
    find_mode, score = compilation.jit(policy.greedy), compilation.jit(policy.score)
    jitted_learn = None if learn is None else compilation.jit(learn, donate_argnums=0)

    def sample(state: State, rng: jax.Array, op_mask: np.ndarray, num: int) -> types.Samples:
        return draw(state.params, rng, op_mask, num=num)

    def update(state: State, *scored: Any) -> tuple[State, Mapping[str, Any]]:
        if jitted_learn is None:
            return state, {"num_updates": 0.0}
        state, metrics = jitted_learn(state, *scored)
        values = jax.device_get(metrics)
        if not values["num_updates"]:  # the others mean nothing then
            values = {name: values[name] for name in ("num_updates", "baseline") if name in values}
        return state, values

    def probable(state: State, rng: jax.Array, op_mask: np.ndarray, num: int) -> np.ndarray:
        pool: dict[bytes, tuple[np.ndarray, float]] = {}

        def add(genotypes: types.Array, log_prob: types.Array) -> None:
            rows, values = jax.device_get((genotypes, log_prob))
            pool.update({row.tobytes(): (row, float(value)) for row, value in zip(rows, values, strict=True)})

        first = find_mode(state.params, op_mask)[None]
        add(first, score(state.params, first, op_mask)[0])
        for turn in range(MAX_DRAWS):  # each at twice the temperature of the one before
            turn_rng = jax.random.fold_in(rng, turn)
            samples = draw(state.params, turn_rng, op_mask, num=max(NUM_CANDIDATES, num), temperature=2.0**turn)
            add(samples.genotypes, samples.log_prob)
            if len(pool) >= num:
                break
        best = sorted(pool.values(), key=lambda pair: (-pair[1], pair[0].tobytes()))
        return np.stack([row for row, _ in best[:num]])

    return Functions(compilation.jit_once(init), sample, update, probable)
