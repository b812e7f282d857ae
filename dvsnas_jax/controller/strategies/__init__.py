"""How a search chooses its next genotypes: a file a strategy, each with its record, and the table of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import ml_collections
import numpy as np

from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import errors, records
from dvsnas_jax.space import genotype

TABLE: dict[str, strategy_lib.Record] = records.find(__name__)
BASELINE = "random"
"""What every search is compared with: it learns nothing."""


def make(name: str, space: genotype.Space, controller_config: ml_collections.ConfigDict) -> strategy_lib.Strategy:
    """Builds a member of `TABLE` for a space, under the mask that the section `controller` of the configuration names.

    A UserError where the name is unknown, the mask is or leaves nothing, or sizes are impossible.
    """
    if name not in TABLE:
        raise _unknown("search.strategy", name, TABLE)
    op_mask = operation_mask(space, tuple(controller_config.masked_operations))
    return strategy_lib.Strategy(TABLE[name], space, TABLE[name].make(space, controller_config), op_mask)


def check_names(names: Sequence[str], where: str = "--strategies") -> None:
    """Names to compare: distinct and known, else a UserError that names `where`."""
    if not names or len(set(names)) < len(names):
        raise errors.UserError(f"{where}: needs distinct names separated by commas, got {','.join(names) or 'none'}")
    for name in names:
        if name not in TABLE:
            raise _unknown(where, name, TABLE)


def operation_mask(space: genotype.Space, masked: Sequence[str]) -> np.ndarray:
    """Which operations may be chosen, bool [num_ops]: all but the `masked` names; a UserError where one is unknown or
    none is left.
    """
    for name in masked:
        if name not in space.operations:
            raise _unknown("controller.masked_operations", name, space.operations)
    mask = np.asarray([name not in masked for name in space.operations])
    if not mask.any():
        raise errors.UserError("controller.masked_operations: masks every operation of the space; leave one out of it")
    return mask


def _unknown(where: str, name: str, allowed: Sequence[str] | dict[str, strategy_lib.Record]) -> errors.UserError:
    close = difflib.get_close_matches(str(name).lower(), allowed, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ","
    return errors.UserError(f"{where}: unknown name {name!r}{hint} allowed are {', '.join(allowed)}")
