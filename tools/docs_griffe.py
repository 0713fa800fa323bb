"""An extension of griffe, the reader of the API reference's docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Turns examples into code blocks, and names of pages into links.

    griffe shows a section "Examples:" as code, and docstrings have a section "Example:".
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"\bdocs/(\w+)\.md", r"[docs/\1.md](../\1.md)", text)
