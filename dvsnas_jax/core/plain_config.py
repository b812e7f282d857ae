"""What of `ml_collections` the configuration needs, for a machine that only measures and has no such package."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any

NAME = "ml_collections"


class ConfigDict(dict[str, Any]):
    """A dictionary of values and of further ones, whose keys are its attributes, too; it takes no new ones."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        nested = {key: ConfigDict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        super().__init__(nested)

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no key {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self:
            raise KeyError(key)
        super().__setitem__(key, value)

    def update(self, values: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Sets keys, those of nested mappings one by one."""
        for key, value in values.items():
            if isinstance(value, Mapping):
                self[key].update(value)
            else:
                self[key] = value

    def copy_and_resolve_references(self) -> ConfigDict:
        """A copy, of all that is nested, too."""
        return ConfigDict(self)

    def lock(self) -> ConfigDict:
        """Itself: it takes no new keys anyway."""
        return self

    unlock = lock

    def unlocked(self) -> contextlib.AbstractContextManager[ConfigDict]:
        """Does nothing; as do the checks of types, which `core.overrides` has of its own."""
        return contextlib.nullcontext(self)

    ignore_type = unlocked


def provide() -> bool:
    """Gives this process a module `ml_collections` with the class above, where there is none; whether it did.

    To be called before what imports it.
    """
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(NAME)
        return False
    module = types.ModuleType(NAME, __doc__)
    module.ConfigDict = ConfigDict  # type: ignore[attr-defined]
    sys.modules[NAME] = module
    return True
