"""Programs, run in the process of the tests."""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `python -m module *arguments`, with a clock that goes a thousand times as fast: it takes few samples."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 1000 * clock())

    def run(module: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return Outcome(exit.value.code, *capsys.readouterr())

    return run
