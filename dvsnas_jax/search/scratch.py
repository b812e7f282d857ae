"""Candidates trained alone (mode `scratch`), poor ones stopped early, and rewards answered from the log.

Every candidate starts from the same initial weights and sees the same batches in the same order, so that a reward is a
function of the genotype (and of the attempt: it is scored once more from other weights, on other batches). As in the
authors' public sibling code (Fast NAS, CVPR 2019), training has parts, and after a part a candidate goes on only if its
reward is not below the mean of those that came so far before it. One that is stopped keeps the reward that it has, with
the status `stopped`, and the strategy learns from it: left out, a policy would never hear that such cells are poor. A
model of rewards takes what it would be expected to have in the end (`expected`). One that diverges has no reward, and
no strategy sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import cores
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.search import steps
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, feature_store, optim

MODES = ("share", "scratch")
"""Of a search: candidates share trained weights, or each is trained from the same start."""
REUSES = ("auto", "always", "never")
STOPPED = "stopped"
Record = dict[str, Any]
_NAMES = ("step", "index", "source", "genotype", "hash")


class Training(NamedTuple):
    """The training of one candidate."""

    start: Any  # state before the first part
    train_fn: Callable[[Any, np.ndarray, int], Any]  # `(state, genotype, part) -> state`
    evaluate_fn: Callable[[Any, np.ndarray], Record]  # `(state, genotype) -> record` with reward and status
    num_parts: int  # P
    part_steps: int = 0  # optimizer steps of a part


def score(
    genotypes: np.ndarray, training: Training, *, floors: Sequence[float | None] | None = None, num_workers: int = 1
) -> list[Record]:
    """Trains and scores candidates [N, L, 5], each by itself: the records do not depend on `num_workers`.

    `floors` are P - 1 rewards below which a candidate is stopped after a part, None: it is not; None instead of all:
    nothing is evaluated before the end. `num_workers` candidates are trained at the same time, each in a thread.
    `partial` of a record holds the rewards after all parts but the last, `optimizer_steps` says how many were taken.
    """

    def score_one(genotype: np.ndarray) -> Record:
        state, partial = training.start, []
        for part in range(training.num_parts):
            state = training.train_fn(state, genotype, part)
            is_last = part == training.num_parts - 1
            if floors is None and not is_last:
                continue
            record = training.evaluate_fn(state, genotype)
            if is_last or record["reward"] is None:
                break
            partial.append(record["reward"])
            floor = floors[part] if floors is not None else None
            if floor is not None and record["reward"] < floor:
                record = {**record, "status": STOPPED}
                break
        return {**record, "partial": partial, "optimizer_steps": (part + 1) * training.part_steps}

    return list(cores.map_in_order(score_one, genotypes, num_workers))


def num_workers(section: ml_collections.ConfigDict) -> int:
    """Candidates that a search with this section `search` trains at the same time.

    A program of small maps leaves the cores of a CPU idle at times; the programs of an accelerator come one after the
    other, and several devices must all run the same program.
    """
    if jax.device_count() > 1 or jax.default_backend() != "cpu":
        return 1
    return section.scratch_workers or cores.count()


def make_train(
    config: ml_collections.ConfigDict, made: steps.Steps, store: feature_store.AnyStore, attempt: int = 0
) -> Callable[[optim.TrainState, np.ndarray, int], optim.TrainState]:
    """`(state, genotype, part) -> state`: a part of a training, on the same batches for every candidate.

    Other attempts have other batches.
    """
    section = config.search
    shape = (section.scratch_parts, section.scratch_steps // section.scratch_parts, section.batch_size)
    batches = cell_training.draw_clips((config.seed, 7, attempt), store.num_clips, shape)  # a last 0 changes nothing

    def train_part(state: optim.TrainState, genotype: np.ndarray, part: int) -> optim.TrainState:
        return made.train_alone(state, genotype, *feature_store.anywhere(store, batches[part]))

    return train_part


def expected(record: Record) -> float | None:
    """The reward of a candidate on the scale of whole trainings: what one that was stopped is expected to end with.

    None where that is not known, in the log of an earlier version.
    """
    return record.get("expected") if record["status"] == STOPPED else record["reward"]


def _expect(reward: float, num_parts: int, whole: Sequence[Record]) -> float:
    """What a candidate that is stopped after some parts would have in the end, if it gained what the `whole` ones did.

    Whole ones were above the mean then, some by luck: their gain is a little too small, never too large.
    """
    gains = [record["reward"] - record["partial"][num_parts - 1] for record in whole]
    return reward + (float(np.mean(gains)) if gains else 0.0)


def floors_of(records: Sequence[Record], num_parts: int) -> list[float | None]:
    """Mean reward of earlier candidates after each part but the last, None where there are none."""
    found: list[float | None] = []
    for part in range(num_parts - 1):
        values = [record["partial"][part] for record in records if len(record.get("partial", ())) > part]
        found.append(float(np.mean(values)) if values else None)
    return found


class ScoreFn(Protocol):
    """Scores genotypes [N, L, 5], with the `floors` of `score`."""

    def __call__(self, genotypes: np.ndarray, /, *, floors: list[float | None]) -> list[Record]:
        """A record for each."""


class Answers:
    """What the log of a search knows: rewards of equal cells, how far earlier candidates came and what they cost.

    Equal is what has the same canonical form: such cells differ in the names of their weights alone; it is answered
    from the log where `is_reusing`. `num_parts` is that of a training, 1 where nothing is stopped, `part_steps` the
    optimizer steps of each, 0 where candidates are not trained. The log is read when it is first needed, when a resumed
    search has cut off what it will do again.
    """

    def __init__(
        self, folder: workdir.Workdir, file: str, space: genotype_lib.Space, *,
        num_parts: int, is_reusing: bool, part_steps: int = 0,
    ) -> None:  # fmt: skip
        self._folder, self._file, self._space = folder, file, space
        self._num_parts, self._is_reusing, self._part_steps = num_parts, is_reusing, part_steps
        self._trained: list[Record] = []
        self._known: dict[canonical.Form, tuple[str, Record]] = {}
        self._is_read = not part_steps and not is_reusing  # nothing of the log is needed

    @property
    def optimizer_steps(self) -> int:
        """All that candidates have taken; answers cost nothing."""
        if not self._is_read:
            self._read()
        return sum(record["optimizer_steps"] for record in self._trained)

    def evaluate(self, genotypes: np.ndarray, score_fn: ScoreFn) -> list[Record]:
        """Scores genotypes, those that the log does not answer with `score_fn(genotypes, floors=...)`.

        Returns:
          A record for each; `same_as` of one that was answered is the hash of the genotype that was scored, `expected`
          of one that was stopped is its reward on the scale of whole trainings.
        """
        if not self._is_read:
            self._read()
        if not self._is_reusing:
            return self._score(genotypes, score_fn)
        forms = [canonical.of(self._space, genotype) for genotype in genotypes]
        is_first = [form not in self._known and forms.index(form) == row for row, form in enumerate(forms)]
        fresh = np.flatnonzero(is_first)
        scored = dict(zip(fresh.tolist(), self._score(genotypes[fresh], score_fn) if len(fresh) else [], strict=True))
        return [scored[row] if row in scored else self._answer(form) for row, form in enumerate(forms)]

    def _read(self) -> None:
        distributed.barrier("answers")  # the first process has cut the log
        lines = self._folder.read(self._file)
        distributed.barrier("answers")  # and goes on writing when all have read
        for line in lines:
            record = {name: value for name, value in line.items() if name not in _NAMES}
            self._add(np.asarray(line["genotype"], np.int32), record)
        self._is_read = True

    def _score(self, genotypes: np.ndarray, score_fn: ScoreFn) -> list[Record]:
        records = score_fn(genotypes, floors=floors_of(self._trained, self._num_parts))
        ended = [record for record in [*self._trained, *records] if record["status"] == "ok" and record.get("partial")]
        for record in records:
            if record["status"] == STOPPED:
                record["expected"] = _expect(record["reward"], len(record["partial"]), ended)
        for genotype, record in zip(genotypes, records, strict=True):
            self._add(genotype, record)
        return records

    def _add(self, genotype: np.ndarray, record: Record) -> None:
        if "same_as" in record:
            return
        if self._part_steps and "optimizer_steps" not in record:  # of an earlier version
            num_parts = len(record["partial"]) + (record["status"] != STOPPED)
            record["optimizer_steps"] = num_parts * self._part_steps
        self._trained.append(record)
        if self._is_reusing:
            name = genotype_lib.digest(self._space, genotype)
            self._known.setdefault(canonical.of(self._space, genotype), (name, record))

    def _answer(self, form: canonical.Form) -> Record:
        name, record = self._known[form]
        return {**record, "same_as": name, **({"optimizer_steps": 0} if "optimizer_steps" in record else {})}


def make_answers(
    section: ml_collections.ConfigDict, folder: workdir.Workdir, file: str, space: genotype_lib.Space
) -> Answers:
    """The answers of a search with this section `search`."""
    is_alone = section.mode == "scratch"
    is_reusing = section.reuse == "always" or (section.reuse == "auto" and is_alone)
    num_parts = section.scratch_parts if is_alone else 1
    part_steps = section.scratch_steps // num_parts if is_alone else 0
    return Answers(folder, file, space, num_parts=num_parts, is_reusing=is_reusing, part_steps=part_steps)
