"""Makes the `__all__` of a package from those of its modules, so that each public name is listed only once."""

from __future__ import annotations

from types import ModuleType


def public_names(namespace: dict[str, object]) -> list[str]:
    """Returns the names in the namespace of a package that are neither private nor modules.

    Example:
        >>> from multikv.runtime import exports
        >>> from .gather import *  # takes the names in gather.__all__
        >>> __all__ = exports.public_names(globals())
    """
    return [name for name, value in namespace.items() if not (name.startswith("_") or isinstance(value, ModuleType))]
