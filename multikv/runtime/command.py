"""Errors of `python -m multikv` before its own code runs: Python imports the package first."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def is_running() -> bool:
    """Whether this process is `python -m multikv`, which prints the text of an ImportError without a traceback."""
    return sys.orig_argv[1:3] == ["-m", "multikv"]


def require_torch() -> None:
    """Raises ImportError, or SystemExit in `python -m multikv`, if this Python has no torch."""
    if importlib.util.find_spec("torch") is not None:
        return
    root = Path(__file__).parents[2]
    advice = f"`make demo` in {root} installs it" if (root / "Makefile").exists() else "pip install torch"
    message = f"multikv needs torch 2.11 or newer, and {sys.executable} has none: {advice}"
    if is_running():
        raise SystemExit(message)
    raise ModuleNotFoundError(message, name="torch")
