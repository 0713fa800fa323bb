"""tools/install.py, which `make demo` runs first."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("multikv_install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """A folder that looks like an environment of Python 3.9."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "pyvenv.cfg").write_text("home = /nowhere/bin\nversion = 3.9.1\n")
    return tmp_path


@pytest.mark.parametrize("text, expected", [("2.13.0+cpu", (2, 13)), ("77", (77,)), ("2.9.1", (2, 9))])
def test_versions(install, text, expected):
    assert install.version(text) == expected


def test_an_environment_of_another_python_that_was_made_by_hand_is_kept(install, other_python):
    with pytest.raises(SystemExit, match="has another Python than PYTHON="):
        install.prepare(install.Environment(other_python), replace=True)
    assert (other_python / "pyvenv.cfg").exists()


def test_an_environment_of_another_python_is_made_anew(install, other_python, monkeypatch):
    made = []
    monkeypatch.setattr(install.Environment, "make", lambda self: made.append(self.folder))
    monkeypatch.setattr(install.Environment, "read", lambda self: None)
    (other_python / install.MARKER).touch()
    install.prepare(install.Environment(other_python), replace=True)
    assert made == [other_python] and not other_python.exists()


@pytest.mark.parametrize(
    "variable, tools, devices, expected",
    [
        ("", [], [], "cpu"),
        ("", ["nvcc", "hipcc"], [], "cpu"),
        ("", ["nvcc", "hipcc"], ["/dev/nvidiactl"], "cpu,cuda"),
        ("", ["hipcc"], ["/sys/class/kfd/kfd"], "cpu,hip"),
        ("", [], ["/dev/nvidiactl"], "cpu"),
        ("auto", ["nvcc"], [], "cpu,cuda"),
        ("cuda", [], [], "cpu,cuda"),
    ],
)
def test_what_is_built(install, monkeypatch, variable, tools, devices, expected):
    monkeypatch.setenv("MULTIKV_BACKENDS", variable)
    monkeypatch.setattr(install.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(os.path, "exists", lambda path: path in devices)
    names, _ = install.backends()
    assert ",".join(names) == expected
    assert os.environ["MULTIKV_BACKENDS"] == (variable or expected)
