"""The examples of docstrings run, and the API reference has every public name."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest
import torch

import multikv
from multikv import formats, platforms
from tests.support.processes import ROOT

PUBLIC = {name: getattr(multikv, name) for name in multikv.__all__ if not inspect.ismodule(getattr(multikv, name))}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
FUNCTIONS |= {f"formats.{name}": getattr(formats, name) for name in ("find", "names")}
EXAMPLES = {name: doctest.DocTestParser().get_examples(function.__doc__) for name, function in FUNCTIONS.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    """Runs the lines of an example. Without a GPU, its tensors are on the CPU."""
    assert EXAMPLES[name], "the docstring has no example"
    names = {"torch": torch, "multikv": multikv, "platforms": platforms, "formats": formats}
    source = "".join(example.source for example in EXAMPLES[name])
    if not torch.cuda.is_available():
        if name in ("calibrate_swaps", "swap_costs"):
            pytest.skip("needs a GPU")
        source = source.replace('"cuda"', '"cpu"').replace("torch.cuda.current_stream().synchronize()", "pass")
    torch.manual_seed(0)
    exec(compile(source, name, "exec"), names)


def test_the_reference_has_every_public_name():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    documented = {path.rpartition(".")[2] for path in re.findall(r"^::: (multikv\.[\w.]+)$", pages, re.MULTILINE)}
    modules = {name for name in multikv.__all__ if inspect.ismodule(getattr(multikv, name))}
    assert PUBLIC.keys() <= documented
    assert modules - {"offload", "reference"} <= documented  # pages show the members of these two
    members = re.search(r"::: multikv\.platforms\n.*?members: \[(.*?)\]", pages, re.DOTALL).group(1)
    assert {*members.split(", "), "Library"} == set(platforms.__all__)


def test_the_reference_has_every_public_method():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: multikv\..*\.(\w+)$", pages, re.MULTILINE))
    for name in filter(lambda name: inspect.isclass(PUBLIC[name]), PUBLIC):
        bases = [base for base in PUBLIC[name].__mro__ if base.__module__.startswith("multikv.")]
        with_methods = {
            base.__name__
            for base in bases
            for member, value in vars(base).items()
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
        }
        assert with_methods <= documented


def test_public_modules_say_what_is_public():
    """docs/versions.md calls the names in `__all__` public."""
    modules = ("platforms", "offload", "formats", "reference", "pool", "transfer", "integrations.adapters")
    for module in (importlib.import_module(f"multikv.{name}") for name in (*modules, "integrations.vllm")):
        assert module.__all__ and all(hasattr(module, name) for name in module.__all__)


def test_nothing_leaks():
    allowed = {*multikv.__all__, "__version__"}
    assert {name for name in dir(multikv) if not name.startswith("__")} == allowed - {"__version__"}
    submodules = {"demo", "integrations", "runtime"}  # Python sets them when they are imported
    assert {name for name in vars(multikv) if not name.startswith("_")} <= allowed | submodules
