"""README's first snippet runs, and writes what the reference writes."""

from __future__ import annotations

import re

import torch

from multikv import reference
from tests.support.processes import ROOT


def test_first_snippet():
    snippet = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE).group(1)
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    written = [names[name] for name in ("key_cache", "value_cache")]
    expected = [torch.zeros_like(cache) for cache in written]
    reference.reshape_and_cache_flash(
        names["key"], names["value"], *expected, names["slots"], "fp8_e4m3", names["scale"], names["scale"]
    )
    for cache, wanted in zip(written, expected, strict=True):
        assert cache.any() and torch.equal(cache, wanted)
