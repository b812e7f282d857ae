"""Which genotypes are the same cell: a canonical form.

Two genotypes of equal form are the same function up to a renaming of their parameters: the weights of one can be
moved (to another layer, to the other slot, to the other half of a kernel, some with their sign turned) so that the
other computes the same. The renaming keeps the distribution of freshly drawn weights, so that cells of equal form
also train alike. The form is sound, not complete: cells of different forms may still be equal in rare cases (for
example `max` with `none` of a map that cannot be negative).

What is taken away, by what the records of `space.operations` claim:
- the order of layers, and the order of the inputs of a symmetric aggregation. `sum`, `concat` and `max` are symmetric
  with their weights swapped; so is `gate`, whose gate becomes its complement where its kernel and bias turn their sign.
- the input of `none`; layers that are read through `none` alone; a map that is zero whatever the weights are.
- layers that only pass a map on: `warp` and `local_attention` of `none` and x are x; so are `max` and `gate` of x and
  x, where x has no weights; and `max` of `none` and of an operation that ends in a ReLU.
- a second copy of a layer without weights, and common factors of how often a map is among the loose ends.

`simplified` writes the form down again as a genotype, with as few layers as it takes.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations

PASS, CONSTANT, ZERO_NAME = "pass", "constant", "zero"
"""A node that passes its one branch on; a trained value a channel, which some members make of zeros; zeros."""
_ZERO = -1


class Node(NamedTuple):
    """A layer that matters.

    Attributes:
      aggregation: its name, or `pass`.
      branches: (operation, source) of each slot, one for `pass`; sorted where the aggregation is symmetric. A source is
        an input, `zero` or `layerN`, the N-th node.
    """

    aggregation: str
    branches: tuple[tuple[str, str], ...]


class Form(NamedTuple):
    """The canonical form; equal for equal cells, hashable.

    Attributes:
      nodes: in an order that is canonical itself.
      outputs: (source, how often) of the mean that is the cell's output, sorted.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, int], ...]


class Place(NamedTuple):
    """Where a node is in a genotype.

    Attributes:
      layer: index.
      is_swapped: the node's first branch is in slot b.
    """

    layer: int
    is_swapped: bool


class _Draft(NamedTuple):
    """A node before the order is known; branches are (operation, reference), in slots a and b."""

    aggregation: str
    branches: tuple[tuple[str, int], ...]
    place: Place


_NONE = ("none", _ZERO)
_OF_ZEROS: dict[str, tuple[str, int] | None] = {"zeros": _NONE, "constant": (CONSTANT, _ZERO), "other": None}


def of(space: genotype_lib.Space, genotype: Any) -> Form:
    """The form of a genotype, integers [L, 5]; `UserError` where it is not of the space."""
    return trace(space, genotype)[0]


def trace(space: genotype_lib.Space, genotype: Any) -> tuple[Form, tuple[Place, ...]]:
    """The form of a genotype, and where each of its nodes is; `UserError` where it is not of the space."""
    return _trace(space, genotype_lib.validate(space, genotype).tolist())


class Simplified(NamedTuple):
    """A genotype without what its output never depends on.

    Attributes:
      space: of the inputs that are read (at least one) and the layers that are left, with the full vocabulary.
      genotype: i32 [L, 5].
      layers: of each layer, the layer of the original genotype whose weights it has; None: it has none.
    """

    space: genotype_lib.Space
    genotype: np.ndarray
    layers: tuple[int | None, ...]


def simplified(space: genotype_lib.Space, genotype: Any) -> Simplified:
    """The genotype of the same form with the fewest layers: what is dead is not in it; layers keep their order.

    A map that is among the loose ends, and is read as well or is no layer's, is passed on by a `max` of it with itself.
    """
    rows = genotype_lib.validate(space, genotype).tolist()
    drafts, references = _simplify(space, rows)
    outputs = _outputs(space, rows, references)
    alive = sorted(_alive(space.num_inputs, drafts, outputs))
    read = {source for reference in alive for _, source in drafts[reference].branches}
    first = min((node for node in {*read, *outputs} if 0 <= node < space.num_inputs), default=0)
    names, layers, moved = dict(enumerate(space.inputs)), [], []

    def add(layer: int | None, aggregation: str, *branches: tuple[str, int]) -> str:
        """A layer; what is read through `none` is an input, which is no loose end anyway."""
        sources = [space.inputs[first] if branch == _NONE else names[branch[1]] for branch in branches]
        layers.append({"in": sources, "ops": [operation for operation, _ in branches], "agg": aggregation})
        moved.append(layer)
        return f"layer{len(layers) - 1}"

    if any(_reads_zeros(space, rows[drafts[reference].place.layer], references) for reference in alive):
        names[_ZERO] = add(None, "max", _NONE, _NONE)
    for reference in alive:
        layer = drafts[reference].place.layer
        names[reference] = add(layer, *_written(space, rows[layer], references, drafts[reference]))
    for reference, count in sorted(outputs.items()):
        is_loose = reference in alive and reference not in read
        for _ in range(0 if is_loose and count == 1 else count):
            add(None, "max", *[_NONE if reference == _ZERO else ("skip", reference)] * 2)
    inputs = [name for node, name in enumerate(space.inputs) if node in {*read, *outputs, first}]
    named = {"version": genotype_lib.VERSION, "inputs": inputs, "layers": layers}
    return Simplified(*genotype_lib.from_dict(named), tuple(moved))


def _branches_of(
    space: genotype_lib.Space, row: Sequence[int], references: Sequence[int]
) -> tuple[tuple[str, int], tuple[str, int]]:
    """The branches of a layer; an operation that makes a trained constant of zeros is one on zeros."""
    names = [space.operations[token] for token in row[2:4]]
    found = [_branch(name, references[node]) for name, node in zip(names, row[:2], strict=True)]
    first, second = ((name, _ZERO) if each[0] == CONSTANT else each for name, each in zip(names, found, strict=True))
    return first, second


def _reads_zeros(space: genotype_lib.Space, row: Sequence[int], references: Sequence[int]) -> bool:
    return any(
        source == _ZERO for branch in _branches_of(space, row, references) if branch != _NONE for source in branch
    )


def _written(
    space: genotype_lib.Space, row: Sequence[int], references: Sequence[int], draft: _Draft
) -> tuple[str, tuple[str, int], tuple[str, int]]:
    """Aggregation and branches of a layer that matters; one that only passes a branch on does so without weights."""
    branch = draft.branches[0]
    if draft.aggregation == PASS and branch[0] != CONSTANT:
        if _is_weightless(branch):
            return "max", branch, branch
        if _is_positive(branch):
            return ("max", _NONE, branch) if draft.place.is_swapped else ("max", branch, _NONE)
    return space.aggregations[row[4]], *_branches_of(space, row, references)


def digest(form: Form) -> str:
    """A short name of a form."""
    return hashlib.sha256(json.dumps(form).encode()).hexdigest()[:12]


def enumerate_cells(space: genotype_lib.Space) -> tuple[np.ndarray, np.ndarray]:
    """All distinct cells of a small space: one genotype of each form, the first in the order of `codes`, i32 [M, L, 5].

    And for every genotype of the space, in that order, the row of its form, i32 [space.size()].
    """
    rows: dict[Form, int] = {}
    firsts: list[list[tuple[int, ...]]] = []
    index = np.empty(space.size(), np.int32)
    for code, genotype in enumerate(_all(space)):
        form = _trace(space, genotype)[0]
        if form not in rows:
            rows[form] = len(firsts)
            firsts.append(genotype)
        index[code] = rows[form]
    return np.asarray(firsts, np.int32), index


def codes(space: genotype_lib.Space, genotypes: np.ndarray) -> np.ndarray:
    """The place of genotypes i32 [N, L, 5] in the order of all genotypes of a space (last token fastest), i64 [N]."""
    limits = space.limits().ravel()
    return np.ravel_multi_index(tuple(np.asarray(genotypes).reshape(-1, limits.size).T), tuple(limits))


def _all(space: genotype_lib.Space) -> Iterator[list[tuple[int, ...]]]:
    """Every genotype as rows, in the order of `codes`."""
    layers = [list(itertools.product(*map(range, limits))) for limits in space.limits().tolist()]
    return (list(rows) for rows in itertools.product(*layers))


def _trace(space: genotype_lib.Space, rows: Sequence[Sequence[int]]) -> tuple[Form, tuple[Place, ...]]:
    """As `trace`, of a valid genotype."""
    drafts, references = _simplify(space, rows)
    outputs = _outputs(space, rows, references)
    names = {_ZERO: ZERO_NAME, **dict(enumerate(space.inputs))}
    alive = _alive(space.num_inputs, drafts, outputs)
    return min(_orders(drafts, alive, outputs, names, ()))


def _outputs(space: genotype_lib.Space, rows: Sequence[Sequence[int]], references: Sequence[int]) -> dict[int, int]:
    """Reference -> how often it is among the loose ends, without a common factor."""
    used = {int(node) for row in rows for node in row[:2]}
    loose = [references[node] for node in range(space.num_inputs, space.num_nodes) if node not in used]
    counts = collections.Counter(loose)
    divisor = math.gcd(*counts.values())
    return {reference: count // divisor for reference, count in counts.items()}


def _simplify(space: genotype_lib.Space, rows: Sequence[Sequence[int]]) -> tuple[dict[int, _Draft], list[int]]:
    """Drafts by reference, and the reference of every node of the genotype (inputs refer to themselves)."""
    references = list(range(space.num_inputs))
    drafts: dict[int, _Draft] = {}
    weightless: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
    for layer, (in_a, in_b, op_a, op_b, agg) in enumerate(rows):
        first = _branch(space.operations[op_a], references[in_a])
        second = _branch(space.operations[op_b], references[in_b])
        name, branches, is_swapped = _reduce(space.aggregations[agg], first, second)
        if name == PASS and _is_identity(branches[0]):
            references.append(branches[0][1])
            continue
        reference = space.num_inputs + layer
        is_weightless = name == PASS or operations.AGGREGATIONS[name].is_weightless
        if is_weightless and all(map(_is_weightless, branches)):
            ordered = tuple(sorted(branches)) if _is_symmetric(name) else branches
            reference = weightless.setdefault((name, ordered), reference)
        references.append(reference)
        drafts.setdefault(reference, _Draft(name, branches, Place(layer, is_swapped)))
    return drafts, references


def _branch(operation: str, reference: int) -> tuple[str, int]:
    """An operation on a map; on zeros it may be `none` or make a constant."""
    record = operations.OPERATIONS[operation]
    if record.is_zero:
        return _NONE
    constant = _OF_ZEROS[record.of_zeros] if reference == _ZERO else None
    return constant or (operation, reference)


def _is_weightless(branch: tuple[str, int]) -> bool:
    return branch[0] != CONSTANT and operations.OPERATIONS[branch[0]].is_weightless


def _is_identity(branch: tuple[str, int]) -> bool:
    """Whether it is its source; of zeros, `none` is."""
    return branch == _NONE or branch[0] != CONSTANT and operations.OPERATIONS[branch[0]].is_identity


def _is_positive(branch: tuple[str, int]) -> bool:
    return branch[0] == CONSTANT or operations.OPERATIONS[branch[0]].ends_in_activation


def _is_symmetric(aggregation: str) -> bool:
    return aggregation != PASS and operations.AGGREGATIONS[aggregation].is_symmetric


def _reduce(
    aggregation: str, first: tuple[str, int], second: tuple[str, int]
) -> tuple[str, tuple[tuple[str, int], ...], bool]:
    """The aggregation, its branches, and whether the only one left is that of slot b."""
    record = operations.AGGREGATIONS[aggregation]
    of_zeros = _OF_ZEROS[record.of_zeros]
    if first == second == _NONE and of_zeros:
        return PASS, (of_zeros,), False
    if first == _NONE and record.passes_second:
        return PASS, (second,), True
    if first == second and record.is_idempotent and _is_weightless(first):
        return PASS, (first,), False
    if record.passes_positive and _NONE in (first, second):
        is_second = first == _NONE
        other = second if is_second else first
        if _is_positive(other):
            return PASS, (other,), is_second
    return aggregation, (first, second), False


def _alive(num_inputs: int, drafts: dict[int, _Draft], outputs: dict[int, int]) -> frozenset[int]:
    """References of the nodes that the output depends on."""
    found: set[int] = set()
    pending = list(outputs)
    while pending:
        reference = pending.pop()
        if reference >= num_inputs and reference not in found:
            found.add(reference)
            pending += [source for _, source in drafts[reference].branches]
    return frozenset(found)


def _orders(
    drafts: dict[int, _Draft],
    alive: frozenset[int],
    outputs: dict[int, int],
    names: dict[int, str],
    placed: tuple[tuple[Node, Place], ...],
) -> Iterator[tuple[Form, tuple[Place, ...]]]:
    """The form in every order that puts the least possible node next; more than one only where nodes are alike."""
    rest = [reference for reference in alive if reference not in names]
    if not rest:
        nodes, places = tuple(node for node, _ in placed), tuple(place for _, place in placed)
        counted = tuple(sorted((names[reference], count) for reference, count in outputs.items()))
        yield Form(nodes, counted), places
        return
    ready = [reference for reference in rest if all(source in names for _, source in drafts[reference].branches)]
    candidates = [(*_named(drafts[reference], names), reference) for reference in ready]
    least = min(node for node, _, _ in candidates)
    for node, place, reference in candidates:
        if node == least:
            grown = {**names, reference: f"layer{len(placed)}"}
            yield from _orders(drafts, alive, outputs, grown, (*placed, (node, place)))


def _named(draft: _Draft, names: dict[int, str]) -> tuple[Node, Place]:
    """A draft whose sources have names."""
    branches = tuple((operation, names[source]) for operation, source in draft.branches)
    if _is_symmetric(draft.aggregation) and branches[1] < branches[0]:
        return Node(draft.aggregation, branches[::-1]), Place(draft.place.layer, True)
    return Node(draft.aggregation, branches), draft.place
