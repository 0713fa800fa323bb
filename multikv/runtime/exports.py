"""Names that a package takes over from its modules, so that each is written once, in the `__all__` of its module."""

from __future__ import annotations

from types import ModuleType


def public_names(namespace: dict[str, object]) -> list[str]:
    """Returns the names of a package's namespace that are neither private nor modules, for its `__all__`.

    Example:
        >>> from multikv.runtime import exports
        >>> from .gather import *  # takes the names in gather.__all__
        >>> __all__ = exports.public_names(globals())
    """
    return [name for name, value in namespace.items() if not (name.startswith("_") or isinstance(value, ModuleType))]
