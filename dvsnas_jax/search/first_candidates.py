"""The candidates that a search scores before its strategy draws any: `search.first`.

A strategy then starts from what people designed: the predictor and evolution propose children of the best so far.
"""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np

from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo


def of(config: ml_collections.ConfigDict, space: genotype_lib.Space, strategy: strategy_lib.Strategy) -> np.ndarray:
    """The genotypes i32 [n, L, 5] that `search.first` names, in the space of the search.

    `zoo` are the hand-designed cells of the mode that the space can express; those that it cannot are left out.

    Raises:
      UserError: the strategy learns from its own draws alone, there is no such cell, or the space cannot express it.
    """
    words = tuple(config.search.first)
    if words and not strategy.record.learns_from_any:
        raise errors.UserError(
            f"search.first: {strategy.record.name} learns from its own draws alone; set search.strategy to predictor, "
            "evolution or random, or leave search.first empty"
        )
    found = [genotype for word in words for genotype in _of_word(word, config.space.mode, space)]
    return np.reshape(found, (-1, space.num_layers, len(genotype_lib.FIELDS))).astype(np.int32)


def _of_word(word: str, mode: str, space: genotype_lib.Space) -> list[np.ndarray]:
    if word == zoo.ALL:
        made = []
        for member in zoo.of_mode(mode):
            if not member.is_baseline:
                try:
                    made.append(zoo.embed(member.genotype, space))
                except errors.UserError:
                    continue
        return made
    own_space, genotype = zoo.read(word, name="search.first")
    return [zoo.embed(genotype_lib.to_dict(own_space, genotype), space, where=f"search.first {word}")]


def put_first(samples: types.Samples, first: np.ndarray, step: int) -> types.Samples:
    """The draws of an iteration, N, with those of `first` in the place of the foremost whose turn it is: N a step.

    What was not drawn has no probability: nan.
    """
    num = len(samples.genotypes)
    rows = first[step * num : (step + 1) * num]
    if not len(rows):
        return samples
    genotypes, values = np.array(samples.genotypes), [np.array(x) for x in (samples.log_prob, samples.entropy)]
    genotypes[: len(rows)] = rows
    for value in values:
        value[: len(rows)] = np.nan
    return dataclasses.replace(samples, genotypes=genotypes, log_prob=values[0], entropy=values[1])
