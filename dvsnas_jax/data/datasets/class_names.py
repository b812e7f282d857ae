"""Label files of one data set read with the classes of another: classes are matched by their names."""

from __future__ import annotations

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import frames, labels, record


def mapped_code(
    dataset: record.Dataset, source: frames.Source, options: record.Options, table: types.ClassTable
) -> labels.LabelCode:
    """What the pixels of a data set's label files mean in the classes of `table`; what has no name there is ignored.

    Names are compared without regard to case. A data set with the same classes keeps its own code; else the names that
    it knows for its own values (`record.Dataset.raw_names`) come before those of its classes.
    """
    own = [name.casefold() for name in source.table.names]
    wanted = {name.casefold(): train for train, name in enumerate(table.names)}
    if own == list(wanted):
        return source.code
    pairs = zip(source.code.raw.tolist(), source.code.train.tolist(), strict=True)
    names: dict[int, tuple[str, ...]] = {value: (own[train],) for value, train in pairs if train != types.IGNORE}
    names.update(dataset.raw_names(options) if dataset.raw_names else {})
    train = {
        int(value): next((wanted[name.casefold()] for name in names.get(value, ()) if name.casefold() in wanted), None)
        for value in source.code.raw.tolist()
    }
    found = labels.code_of(
        {value: types.IGNORE if number is None else number for value, number in train.items()},
        is_color=source.code.is_color,
        ignore_key=source.code.ignore_key,
        ignore=source.code.ignore,
    )
    return labels.with_ignored(found, options.also_ignored)
