"""The recurrent policy: one LSTM emits a genotype token by token, and one definition samples and scores.

The S = 5 L tokens of a genotype are drawn layer by layer in the order of `genotype.FIELDS`. All kinds of token share
one flat vocabulary (nodes, operations, aggregations), so one output layer serves them and a mask says what a position
may be. The sizes, the two layers of 100 units and the uniform initialisation follow the authors' public sibling code
(Fast NAS, CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn
from flax import struct

from dvsnas_jax.core import types
from dvsnas_jax.space import genotype

Pair = tuple[jax.Array, jax.Array]
Triple = tuple[jax.Array, jax.Array, jax.Array]
FORBIDDEN = -1e9
"""The logit of a masked token: its probability is exactly 0 in float32, its products stay finite."""


class TokenTable(NamedTuple):
    """How the S tokens of a space lie in the flat vocabulary of V entries."""

    offsets: np.ndarray  # i32 [S], what a position adds to its token
    allowed: np.ndarray  # bool [S, V], what a position may be, before the operation mask
    operations: slice  # the slice of the vocabulary that holds the operations

    @property
    def num_tokens(self) -> int:
        return self.allowed.shape[0]

    @property
    def size(self) -> int:
        return self.allowed.shape[1]

    def mask(self, op_mask: types.Array) -> jax.Array:
        """What each position may be, bool [S, V], under an operation mask bool [num_ops] (may be traced)."""
        chex.assert_shape(op_mask, (self.operations.stop - self.operations.start,))
        enabled = jnp.ones(self.size, bool).at[self.operations].set(op_mask)
        return jnp.asarray(self.allowed) & enabled[None]


class Policy(NamedTuple):
    """The policy as pure functions; `op_mask` is bool [num_ops], data: a change recompiles nothing."""

    init: Callable[[jax.Array], types.Params]  # `(rng) -> params`
    # `(params, rng, op_mask, num, temperature=1.0) -> types.Samples`; `num` is static. The temperature scales the noise
    # of the draw (0: the most probable token each time), `log_prob` and `entropy` are those at temperature 1.
    sample: Callable[..., types.Samples]
    # `(params, genotypes i32 [N, L, 5], op_mask) -> (log_prob f32 [N], entropy f32 [N])`
    score: Callable[[types.Params, types.Array, types.Array], tuple[jax.Array, jax.Array]]
    greedy: Callable[[types.Params, types.Array], jax.Array]  # `(params, op_mask) -> genotype i32 [L, 5]`
    table: TokenTable  # the vocabulary


def token_table(space: genotype.Space) -> TokenTable:
    """The flat vocabulary of a space: nodes, then operations, then aggregations."""
    limits = space.limits()
    num_nodes = int(limits[:, :2].max())
    starts = np.cumsum([0, num_nodes, len(space.operations), len(space.aggregations)])
    offsets = np.tile(starts[[0, 0, 1, 1, 2]], space.num_layers).astype(np.int32)
    entries = np.arange(starts[3])
    allowed = (entries >= offsets[:, None]) & (entries < (offsets + limits.ravel())[:, None])
    return TokenTable(offsets=offsets, allowed=allowed, operations=slice(int(starts[1]), int(starts[2])))


def of_config(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Policy:
    """The policy of a space at the sizes of the section `controller`."""
    sizes = {name: controller_config[name] for name in ("hidden", "lstm_layers", "init_scale")}
    return make(space, **sizes)


def make(space: genotype.Space, *, hidden: int, lstm_layers: int, init_scale: float) -> Policy:
    """The policy of a space: `hidden` units in each LSTM layer, every weight starts uniform in +-init_scale."""
    table = token_table(space)
    module = RecurrentPolicy(table.num_tokens, table.size, hidden, lstm_layers, init_scale)
    apply: Callable[..., Any] = module.apply
    shape = (space.num_layers, len(genotype.FIELDS))

    def init(rng: jax.Array) -> types.Params:
        tokens = jnp.zeros((1, table.num_tokens), jnp.int32)
        return module.init(rng, tokens, jnp.asarray(table.allowed), method="score")

    def sample(
        params: types.Params, rng: jax.Array, op_mask: types.Array, num: int, temperature: types.Array | float = 1.0
    ) -> types.Samples:
        noise = temperature * jax.random.gumbel(rng, (table.num_tokens, num, table.size))
        tokens, log_prob, entropy = apply(params, noise, table.mask(op_mask), method="sample")
        return types.Samples(
            genotypes=(tokens - table.offsets[None]).reshape(num, *shape), log_prob=log_prob, entropy=entropy
        )

    def score(params: types.Params, genotypes: types.Array, op_mask: types.Array) -> tuple[jax.Array, jax.Array]:
        chex.assert_shape(genotypes, (None, *shape))
        tokens = jnp.reshape(genotypes, (genotypes.shape[0], table.num_tokens)) + table.offsets[None]
        return apply(params, tokens, table.mask(op_mask), method="score")

    def greedy(params: types.Params, op_mask: types.Array) -> jax.Array:
        noise = jnp.zeros((table.num_tokens, 1, table.size))
        tokens, _, _ = apply(params, noise, table.mask(op_mask), method="sample")
        return (tokens - table.offsets[None]).reshape(shape)

    return Policy(init=init, sample=sample, score=score, greedy=greedy, table=table)


class LstmState(struct.PyTreeNode):
    """State of all LSTM layers, f32 [layers, N, hidden] each."""

    output: jax.Array
    cell: jax.Array


class RecurrentPolicy(nn.Module):
    """The LSTM over the flat vocabulary of V entries, for S tokens.

    The embedding of a token and the input weights of the first layer are one table [V, 4 hidden] (a product of two
    linear maps is one), to which each position adds a row of its own. `sample` advances all layers token by token;
    `score`, which knows the tokens, runs layer after layer, so that all but `_cell` is one matrix product over all
    tokens.
    """

    num_tokens: int
    vocabulary: int
    hidden: int  # units of a layer
    lstm_layers: int
    init_scale: float  # weights start uniform in +-init_scale

    def setup(self) -> None:
        gates = 4 * self.hidden
        self.embedding = self._weight("embedding", self.vocabulary, gates)
        self.position = self._weight("position", self.num_tokens, gates)
        self.recurrent = [self._weight(f"recurrent{k}", self.hidden, gates) for k in range(self.lstm_layers)]
        self.between = [self._weight(f"input{k}", self.hidden, gates) for k in range(1, self.lstm_layers)]
        self.bias = [self._weight(f"bias{k}", gates) for k in range(self.lstm_layers)]
        self.head = self._weight("head", self.hidden, self.vocabulary)
        self.head_bias = self._weight("head_bias", self.vocabulary)

    def _weight(self, name: str, *shape: int) -> jax.Array:
        def uniform(rng: jax.Array) -> jax.Array:
            return jax.random.uniform(rng, shape, jnp.float32, -self.init_scale, self.init_scale)

        return self.param(name, uniform)

    def sample(self, noise: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws genotypes: the largest of logit + noise (Gumbel noise: a draw; zeros: the most probable).

        From noise f32 [S, N, V] and allowed bool [S, V] to flat tokens i32 [N, S], log-probability and entropy f32 [N].
        """
        num, layers, read = noise.shape[1], range(self.lstm_layers), self._readout()
        embedding, recurrent, between, bias = self.embedding, self.recurrent, self.between, self.bias

        def advance(state: LstmState, pre: jax.Array) -> LstmState:
            new: list[tuple[jax.Array, jax.Array]] = []
            for layer in layers:
                if layer:
                    pre = _affine(new[-1][0], between[layer - 1], bias[layer])
                new.append(_cell(recurrent[layer], pre, state.output[layer], state.cell[layer])[:2])
            return LstmState(output=jnp.stack([row[0] for row in new]), cell=jnp.stack([row[1] for row in new]))

        def draw(carry: tuple[LstmState, jax.Array], xs: Triple) -> tuple[tuple[LstmState, jax.Array], Pair]:
            state, embedded = carry
            position, allowed_here, noise_here = xs
            state = advance(state, embedded + position)
            logits = read(state.output[-1], allowed_here)
            token = jnp.argmax(jnp.where(allowed_here, logits + noise_here, -jnp.inf), axis=-1)
            return (state, embedding[token]), (token, logits)

        zeros = jnp.zeros((self.lstm_layers, num, self.hidden))
        start = (LstmState(output=zeros, cell=zeros), jnp.zeros((num, embedding.shape[1])))
        _, (tokens, logits) = jax.lax.scan(draw, start, (self._first_input()[:, None], allowed[:, None], noise))
        return tokens.T.astype(jnp.int32), *_log_prob_and_entropy(logits, tokens)

    def score(self, tokens: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probability and entropy f32 [N] of flat tokens i32 [N, S], where bool [S, V] are allowed."""
        chex.assert_rank(tokens, 2)
        # Products with one-hot rows, since the gradient of a gather is a scatter: on a CPU a loop, row by row.
        one_hot = jax.nn.one_hot(tokens.T, self.embedding.shape[0])
        before = _product(one_hot[:-1], self.embedding)
        start = jnp.zeros((1, *before.shape[1:]))
        pre = jnp.concatenate([start, before]) + self._first_input()[:, None]
        outputs = _recurrence(self.recurrent[0], pre)
        for layer in range(1, self.lstm_layers):
            outputs = _recurrence(self.recurrent[layer], _affine(outputs, self.between[layer - 1], self.bias[layer]))
        logits = self._readout()(outputs, allowed[:, None])
        return _log_prob_and_entropy(logits, tokens.T)

    def _first_input(self) -> jax.Array:
        """What the first layer's gates receive whatever the token was, f32 [S, 4 hidden]."""
        return self.position + self.bias[0][None]

    def _readout(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """`(outputs [..., hidden], allowed [..., V]) -> masked logits [..., V]`."""
        head, bias = self.head, self.head_bias
        return lambda outputs, allowed: jnp.where(allowed, _affine(outputs, head, bias), FORBIDDEN)


def _affine(x: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """`x @ weights + bias` for x of any rank."""
    return _product(x, weights) + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


@jax.custom_vjp
def _product(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [..., P] @ weights [P, Q]. The gradient is written out: that of autodiff makes transposed copies on a CPU."""
    return x @ weights


def _product_forward(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ weights, (x, weights)


def _product_backward(residuals: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weights = residuals
    return _times_transposed(d_out, weights), _over_rows(x, d_out)


_product.defvjp(_product_forward, _product_backward)


def _times_transposed(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [..., Q] @ weights.T for weights [P, Q]."""
    return jax.lax.dot_general(x, weights, (((x.ndim - 1,), (1,)), ((), ())))


def _over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum over all rows of x [..., P] times y [..., Q], [P, Q]."""
    rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())))


def _log_prob_and_entropy(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over the tokens: logits f32 [S, N, V] and flat tokens i32 [S, N] to two f32 [N]."""
    log_probs = jax.nn.log_softmax(logits)
    chosen = (jax.nn.one_hot(tokens, logits.shape[-1]) * log_probs).sum(axis=-1)
    return chosen.sum(axis=0), -(jnp.exp(log_probs) * log_probs).sum(axis=(0, 2))


def _cell(weights: jax.Array, pre: jax.Array, output: jax.Array, cell: jax.Array) -> Triple:
    """One LSTM step, the only definition of it; gates in the order input, forget, update, output.

    From recurrent weights f32 [hidden, 4 hidden], `pre` f32 [N, 4 hidden], all that does not depend on the layer's own
    state, and that state, f32 [N, hidden] each, to the new output and cell, and the gates f32 [N, 4 hidden].
    """
    # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: one operation for all four gates.
    scale = np.repeat(np.asarray([[0.5, 0.5, 1.0, 0.5]], np.float32), weights.shape[0], axis=1)
    gates = jnp.tanh((pre + output @ weights) * scale) * scale + (1 - scale)
    i, f, u, o = jnp.split(gates, 4, axis=-1)
    cell = f * cell + i * u
    return o * jnp.tanh(cell), cell, gates


@jax.custom_vjp
def _recurrence(weights: jax.Array, pre: jax.Array) -> jax.Array:
    """One LSTM layer over all tokens: pre f32 [S, N, 4 hidden] to outputs f32 [S, N, hidden].

    Its gradient is written out because autodiff adds a [hidden, 4 hidden] product to the weights' gradient at every
    token: one product over all tokens, and gate derivatives taken outside the loop, make a PPO update of 100 single
    rollouts a quarter faster on a CPU.
    """
    return _run(weights, pre)[1]


def _run(weights: jax.Array, pre: jax.Array) -> Triple:
    """Gates [S, N, 4 hidden], outputs and cells [S, N, hidden]."""
    zeros = jnp.zeros((pre.shape[1], weights.shape[0]))

    def advance(state: Pair, pre: jax.Array) -> tuple[Pair, Triple]:
        output, cell, gates = _cell(weights, pre, *state)
        return (output, cell), (gates, output, cell)

    return jax.lax.scan(advance, (zeros, zeros), pre)[1]


def _recurrence_forward(weights: jax.Array, pre: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    gates, outputs, cells = _run(weights, pre)
    return outputs, (weights, gates, outputs, cells)


def _recurrence_backward(residuals: tuple[jax.Array, ...], d_outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights, gates, outputs, cells = residuals
    zeros = jnp.zeros_like(outputs[:1])
    outputs_before = jnp.concatenate([zeros, outputs[:-1]])
    cells_before = jnp.concatenate([zeros, cells[:-1]])
    i, f, u, o = jnp.split(gates, 4, axis=-1)
    squashed = jnp.tanh(cells)
    # d gates / d (cell, cell, cell, output)
    by_gate = [u * i * (1 - i), cells_before * f * (1 - f), i * (1 - u * u), squashed * o * (1 - o)]
    rows = jnp.concatenate(by_gate, axis=-1), o * (1 - squashed * squashed), f, d_outputs

    def back(state: Pair, row: tuple[jax.Array, ...]) -> tuple[Pair, jax.Array]:
        d_output, d_cell = state
        factors, output_by_cell, forget, d_here = row
        d_output = d_output + d_here
        d_cell = d_cell + d_output * output_by_cell
        d_total = jnp.concatenate([d_cell, d_cell, d_cell, d_output], axis=-1) * factors
        return (_times_transposed(d_total, weights), d_cell * forget), d_total

    _, d_pre = jax.lax.scan(back, (zeros[0], zeros[0]), rows, reverse=True)
    return _over_rows(outputs_before, d_pre), d_pre


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)
