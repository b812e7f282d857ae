"""Tables of what can be added: a room's modules state a record each, and the room finds them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def find(package_name: str) -> dict[str, Any]:
    """The records that the modules of a package's folder state as `RECORD`, or several of them as `RECORDS`.

    To be called by the package's own `__init__.py` with `__name__`: a new member is then a new file there.

    Returns:
      `record.name` -> record, by `record.order` where there is such a field, then by name.

    Raises:
      ValueError: two records have the same name.
    """
    package = importlib.import_module(package_name)
    found: list[Any] = []
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package_name}.{entry.name}")
        found += [module.RECORD] if hasattr(module, "RECORD") else getattr(module, "RECORDS", ())
    found.sort(key=lambda record: (getattr(record, "order", 0), record.name))
    table = {record.name: record for record in found}
    if len(table) < len(found):
        names = [record.name for record in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{package_name}: several records are named {', '.join(twice)}")
    return table
