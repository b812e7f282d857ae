"""What a cell owes to each of its tokens, and a search to each operation: the genotype and the mask are data.

Three questions: `replace` (one token changed, scored as in the search), `leave-one-out` (searches under
masks, one compiled program for all), `retrain` (one token changed, trained from scratch as a static graph).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, signals, types, workdir
from dvsnas_jax.nets import static_net
from dvsnas_jax.run import features, losses, metrics, require_labels, train
from dvsnas_jax.search import ablate_report, ablate_runs, outcome
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.space import variants as variants_lib
from dvsnas_jax.space import zoo

WHATS = (ablate_runs.REPLACE, ablate_runs.LEAVE_ONE_OUT, ablate_runs.RETRAIN)


def make_ablate(
    supernet: supernet_lib.Supernet, space: genotype_lib.Space, *, replacement: str = "none"
) -> Callable[..., dict[str, jax.Array]]:
    """A pure function that scores a genotype with some operations switched off; jit it, map it over masks.

    >>> ablate_fn = jax.jit(ablate.make_ablate(supernet, space))
    >>> masks = ~jnp.eye(len(space.operations), dtype=bool)  # row i switches operation i off
    >>> found = jax.lax.map(lambda mask: ablate_fn(params, genotype, mask, batch), masks)

    Args:
      supernet: of the space.
      space: what genotypes and masks refer to.
      replacement: the operation that takes the place of one that the mask switches off (even if it is off itself).

    Returns:
      `(params, genotype i32 [L, 5], op_mask bool [num_ops], batch: types.FeatureStore) -> metrics` of the last frame of
      every clip: `loss` f32 [], `counts` i32 [K, K] (rows = truth), `miou` f32 [] (nan where nothing is labelled).

    Raises:
      UserError: the space has no such operation.
    """
    if replacement not in space.operations:
        raise errors.UserError(f"ablate: {replacement!r} is no operation of the space: {', '.join(space.operations)}")
    substitute = space.operations.index(replacement)

    def ablate(
        params: types.Params, genotype: types.Array, op_mask: types.Array, batch: types.FeatureStore
    ) -> dict[str, jax.Array]:
        chex.assert_shape([genotype, op_mask], [(space.num_layers, 5), (len(space.operations),)])
        tokens = jnp.asarray(genotype)
        chosen = tokens[:, 2:4]
        tokens = tokens.at[:, 2:4].set(jnp.where(jnp.asarray(op_mask)[chosen], chosen, substitute))
        clips = jax.tree.map(lambda x: x.astype(jnp.float32), batch.features)
        logits, labels = supernet.unroll(params, tokens, clips)[-1], jnp.asarray(batch.labels)[:, -1]
        predictions = static_net.predict(logits, labels.shape[1:])
        counts = metrics.confusion(labels, predictions, logits.shape[-1])
        return {"loss": losses.cross_entropy(logits, labels)[0], "counts": counts, "miou": _miou(counts)}

    return ablate


def _miou(counts: jax.Array) -> jax.Array:
    """As `metrics.scores`, traced."""
    hits = jnp.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    is_present = union > 0
    iou = jnp.where(is_present, hits / jnp.maximum(union, 1), 0.0)
    return iou.sum() / is_present.sum()


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    *,
    what: str = ablate_runs.REPLACE,
    genotype: str | None = None,
    num_steps: int | None = None,
    limit: int | None = None,
) -> outcome.Report:
    """The command `ablate`. What is finished is in `ablation.jsonl` of the run folder and is not done again.

    Args:
      config: of the run; section `ablate` may differ.
      folder: of a run with a trained static network; for `replace` with a finished search.
      what: one of `WHATS`.
      genotype: a file or `zoo:NAME`; None: the run's winner. Not for `leave-one-out`.
      num_steps: of each search (`leave-one-out`; None: `config.ablate.steps`) or of each training (`retrain`; None:
        `config.train.steps`).
      limit: at most so many variants, or operations left out; None: all (`retrain`: one for each token).

    Returns:
      What was found and written.

    Raises:
      UserError: the input is not usable.
      Stopped: a signal arrived; what is finished was saved.
    """
    _check(folder, what, genotype, num_steps, limit)
    require_labels.check(config, is_rewarded=True)
    folder.claim(config, ignore=ablate_runs.MAY_DIFFER)
    space = features.space_of(config)
    with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
        if what == ablate_runs.LEAVE_ONE_OUT:
            steps = num_steps or config.ablate.steps
            return ablate_report.write_searches(
                folder, ablate_runs.leave_one_out(config, folder, stop, num_steps=steps, limit=limit)
            )
        rows = _genotype(config, folder, space, genotype)
        chosen = variants_lib.neighbours(space, rows)
        if what == ablate_runs.REPLACE:
            records = ablate_runs.replace(config, folder, stop, rows, chosen[:limit])
        else:
            steps = num_steps or config.train.steps
            chosen = chosen[: limit or space.num_tokens]
            records = ablate_runs.retrain(config, folder, stop, rows, chosen, num_steps=steps)
    return ablate_report.write_replacements(folder, what, genotype_lib.to_dict(space, rows), records)


def _check(folder: workdir.Workdir, what: str, genotype: str | None, num_steps: int | None, limit: int | None) -> None:
    """Refuses words that make no sense together, and a folder without a run."""
    if what not in WHATS:
        close = difflib.get_close_matches(what, WHATS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ","
        raise errors.UserError(f"--what: unknown {what!r}{hint} allowed are {', '.join(WHATS)}")
    if what == ablate_runs.LEAVE_ONE_OUT and genotype:
        raise errors.UserError("--genotype: leave-one-out searches for genotypes, it takes none")
    if what == ablate_runs.REPLACE and num_steps is not None:
        raise errors.UserError("--steps: replace scores as the search did, it takes no number of steps")
    for flag, value in (("--steps", num_steps), ("--limit", limit)):
        if value is not None and value < 1:
            raise errors.UserError(f"{flag}: must be at least 1, got {value}")
    folder.config()


def _genotype(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, space: genotype_lib.Space, given: str | None
) -> np.ndarray:
    """The genotype to take apart, in the space of the run."""
    if given and given.startswith(zoo.PREFIX):
        member = zoo.get(given)
        zoo.require(member, mode=config.space.mode, schedule=config.schedule.kind)
        return zoo.genotype(member, space)[1]
    path = given or str(train.require_winner(folder))
    values = genotype_lib.to_dict(*train.read_genotype(path))
    return genotype_lib.from_dict(values, space, where=path)[1]
