"""The candidates that a search scores before its strategy draws any."""

import jax
import numpy as np
import pytest

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.search import first_candidates
from dvsnas_jax.space import canonical, zoo
from dvsnas_jax.train import features

INPUTS = "prev_decoder,prev_logits,stage1,stage2,prev_stage2"


def _found(first: str, strategy: str = "predictor", **changes: str):
    settings = {"space.mode": "propagate", "space.inputs": INPUTS, "space.num_layers": "3", "data.num_frames": "6"}
    config = config_lib.load(None, {**settings, "search.strategy": strategy, "search.first": first, **changes})
    space = features.space_of(config)
    return space, first_candidates.of(config, space, strategies.make(strategy, space, config.controller))


def test_the_zoo_is_in_the_space_of_the_search() -> None:
    """Each is the same cell as by itself; accel (four layers, prev_state) is not in the space, hold is no cell."""
    space, found = _found("zoo")
    members = [zoo.get(name) for name in ("clockwork", "dff", "low_latency", "dvsnet", "match")]
    assert found.shape == (5, 3, 5) and found.dtype == np.int32
    for member, genotype in zip(members, found, strict=True):
        assert canonical.of(space, genotype) == canonical.of(space, zoo.embed(member.genotype, space))
    with_state, more = _found("zoo", **{"space.inputs": f"prev_state,{INPUTS}", "space.num_layers": "4"})
    assert len(more) == 6 and canonical.of(*zoo.genotype(zoo.get("match"))) == canonical.of(with_state, more[-1])
    assert _found("")[1].shape == (0, 3, 5)
    np.testing.assert_array_equal(_found("zoo:match,zoo:dff")[1], found[[4, 1]])


@pytest.mark.parametrize("name", ["ppo", "reinforce", "gumbel"])
def test_what_learns_from_its_own_draws_refuses_them(name: str) -> None:
    with pytest.raises(errors.UserError, match=f"search.first: {name} learns from its own draws alone; set"):
        _found("zoo", strategy=name)
    assert not len(_found("", strategy=name)[1])


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("zoo:accel", "search.first zoo:accel: has 4 layers, the space only 3"),
        ("zoo:mach", "zoo:mach: no such member of the zoo, did you mean 'zoo:match'"),
        ("nowhere.json", "search.first: nowhere.json"),
    ],
)
def test_what_cannot_be_is_named(first: str, message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        _found(first)


def test_they_take_their_turn_before_what_is_drawn() -> None:
    first = np.arange(5 * 3 * 5, dtype=np.int32).reshape(5, 3, 5)
    drawn = types.Samples(-np.ones((2, 3, 5), np.int32), np.zeros(2, np.float32), np.ones(2, np.float32))
    found = [first_candidates.put_first(drawn, first, step) for step in range(4)]
    np.testing.assert_array_equal(np.concatenate([x.genotypes for x in found])[:5], first)
    np.testing.assert_array_equal(found[2].genotypes[1], drawn.genotypes[1])
    np.testing.assert_array_equal(found[2].log_prob, [np.nan, 0.0])
    assert found[3] is drawn
    np.testing.assert_array_equal(drawn.genotypes, -1)


@pytest.mark.parametrize("name", ["predictor", "evolution", "random"])
def test_a_strategy_learns_from_them(name: str) -> None:
    """What it holds as known afterwards, and proposes as most probable, is the one that was rewarded most."""
    space, first = _found("zoo", strategy=name)
    config = config_lib.load(None, {"controller.predictor_draws": "4", "controller.population": "4"})
    strategy = strategies.make(name, space, config.controller)
    state = strategy.init(jax.random.key(0))
    for step in range(2):
        drawn = strategy.sample(state, jax.random.key(step), 3)
        samples = first_candidates.put_first(drawn, first, step)
        rewards = np.array([1.0 + (step == 1 and row == 1) for row in range(3)], np.float32)
        state, _ = strategy.update(state, samples, rewards, np.ones(3, bool), jax.random.key(9))
    if name != "random":
        np.testing.assert_array_equal(strategy.probable(state, jax.random.key(3), 1)[0], first[4])
