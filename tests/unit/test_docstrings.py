"""The examples in the docstrings of classes run, and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

import multikv

MODULES = [f"pool.{name}" for name in ("batch", "errors", "kv", "mla", "paged", "sequence")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"multikv.{name}")
    names = {"multikv": multikv, "torch": torch}
    examples = list(doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names))
    assert any(test.examples for test in examples)
    runner = doctest.DocTestRunner()
    for test in examples:
        assert runner.run(test).failed == 0, test.name
