"""The controller's speed beside a PyTorch controller written as usual: an LSTM, token by token, one rollout a step."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.bench import controller_speed
from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import ppo
from dvsnas_jax.core import config as config_lib

ROLLOUTS = 100


def _seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _ours(op_mask: np.ndarray):
    """Sampling of 100 genotypes and an update of 100 single rollouts, compiled; the rollouts' genotypes."""
    config = config_lib.defaults().controller  # the published sizes
    assert (config.hidden, config.lstm_layers, config.buffer, config.minibatch) == (100, 2, ROLLOUTS, 1)
    policy = policy_lib.make(controller_speed.SPACE, hidden=100, lstm_layers=2, init_scale=config.init_scale)
    algorithm = ppo.make(policy, config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    draw = jax.jit(policy.sample, static_argnames="num")
    samples = draw(state.params, jax.random.key(1), op_mask, num=ROLLOUTS)
    rewards = np.random.default_rng(0).random(ROLLOUTS, np.float32)
    state, _ = jax.jit(algorithm.record)(state, samples, rewards, jnp.ones(ROLLOUTS, bool))
    update = jax.jit(algorithm.update)
    rng = jax.random.key(2)

    def sample():
        jax.block_until_ready(draw(state.params, rng, op_mask, num=ROLLOUTS))

    def learn():
        jax.block_until_ready(update(state, rng, op_mask))

    return sample, learn, np.asarray(samples.genotypes).reshape(ROLLOUTS, -1)


def _theirs(torch, tokens: np.ndarray):
    """The same two in PyTorch: 2-layer LSTM of 100, a head a kind of token, PPO clip 0.1, norm 2.0, Adam 1e-4."""
    limits = controller_speed.SPACE.limits().reshape(-1).tolist()
    kinds = [(0, 0, 1, 1, 2)[index % 5] for index in range(len(limits))]  # inputs, operations, aggregations
    sizes = [max(size for size, kind in zip(limits, kinds, strict=True) if kind == which) for which in range(3)]
    embedding = torch.nn.ModuleList([torch.nn.Embedding(size, 100) for size in sizes])
    heads = torch.nn.ModuleList([torch.nn.Linear(100, size) for size in sizes])
    lstm = torch.nn.LSTM(100, 100, num_layers=2)
    first = torch.nn.Parameter(torch.zeros(1, 1, 100))
    parameters = [*embedding.parameters(), *heads.parameters(), *lstm.parameters(), first]
    optimizer = torch.optim.Adam(parameters, 1e-4)

    def walk(row):
        """Log-probability of a rollout (given tokens), or of one that is drawn (None)."""
        x, state, total = first, None, 0.0
        for index in range(len(limits)):
            y, state = lstm(x, state)
            log_probs = torch.log_softmax(heads[kinds[index]](y[0, 0])[: limits[index]], dim=-1)
            token = torch.multinomial(log_probs.exp(), 1)[0] if row is None else row[index]
            total = total + log_probs[token]
            x = embedding[kinds[index]](token).reshape(1, 1, 100)
        return total

    def sample():
        with torch.no_grad():
            for _ in range(ROLLOUTS):
                walk(None)

    rows = torch.tensor(tokens, dtype=torch.long)
    advantages = torch.randn(ROLLOUTS)
    with torch.no_grad():
        before = torch.stack([walk(row) for row in rows])

    def learn():
        for index in torch.randperm(ROLLOUTS).tolist():
            ratio = torch.exp(walk(rows[index]) - before[index])
            loss = -torch.minimum(ratio * advantages[index], ratio.clamp(0.9, 1.1) * advantages[index])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 2.0)
            optimizer.step()

    return sample, learn


@pytest.mark.slow
def test_twenty_times_as_fast_as_pytorch_token_by_token():
    """In turns in one process, PyTorch on one thread, where it is faster than on two here; medians."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `parity`)")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours_sample, ours_learn, tokens = _ours(np.ones(len(controller_speed.SPACE.operations), bool))
    theirs_sample, theirs_learn = _theirs(torch, tokens)
    calls = {"sample": (ours_sample, theirs_sample), "update": (ours_learn, theirs_learn)}
    for name, (ours, theirs) in calls.items():
        for call in (ours, theirs):
            call()
        pairs = []
        for _ in range(7):
            theirs_seconds = _seconds(theirs)
            pairs.append((statistics.median(_seconds(ours) for _ in range(3)), theirs_seconds))
        ours_ms, theirs_ms = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{name}: {ours_ms:.0f} ms, PyTorch {theirs_ms:.0f} ms, {ratio:.1f} times as fast")
        assert ratio >= 20, name
    torch.set_num_threads(threads)
