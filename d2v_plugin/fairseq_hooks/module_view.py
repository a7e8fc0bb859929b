"""A module as one importer sees it, with some names exchanged."""

from types import ModuleType
from typing import Any


class ModuleView:
    """Stands in for ``module`` in one importer's namespace, so that everybody else keeps the original.

    ``checkpoint_utils.torch = ModuleView(torch, load=safe_load)`` changes what ``torch.load`` means inside
    ``checkpoint_utils`` and nowhere else.

    Args:
        module: the real module; every name that is not replaced is looked up there at each use.
        replacements: name to object.
    """

    def __init__(self, module: ModuleType, **replacements: Any):
        self._module = module
        self._replacements = replacements

    def __getattr__(self, name: str) -> Any:
        replacements = self.__dict__.get("_replacements", {})
        if name in replacements:
            return replacements[name]
        return getattr(self.__dict__["_module"], name)
