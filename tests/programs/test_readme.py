"""README's snippets and those of docs/quickstart.md run, and the first writes what the reference writes."""

from __future__ import annotations

import re

import torch

import multikv
from multikv import reference
from tests.support.processes import ROOT


def snippets(file: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)


def test_first_snippet():
    snippet = snippets("README.md")[0]
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    written = [names[name] for name in ("key_cache", "value_cache")]
    expected = [torch.zeros_like(cache) for cache in written]
    reference.reshape_and_cache_flash(
        names["key"], names["value"], *expected, names["slots"], "fp8_e4m3", names["scale"], names["scale"]
    )
    for cache, wanted in zip(written, expected, strict=True):
        assert cache.any() and torch.equal(cache, wanted)


def test_second_snippet():
    names: dict[str, object] = {"torch": torch, "multikv": multikv}
    exec(compile(snippets("README.md")[1], "README.md", "exec"), names)
    assert names["out"].shape == (103, 32, 128) and not names["out"].isnan().any()
    assert [sequence.num_pending for sequence in names["sequences"]] == [1, 0]


def test_quickstart(capsys):
    names: dict[str, object] = {}
    for snippet in snippets("docs/quickstart.md"):
        exec(compile(snippet, "docs/quickstart.md", "exec"), names)
        for call, comment in re.findall(r"^ *print\((.*)\) +# (.*)$", snippet, re.MULTILINE):
            assert comment in capsys.readouterr().out, call
    assert not names["first"].is_offloaded and names["first"].num_written == 100
