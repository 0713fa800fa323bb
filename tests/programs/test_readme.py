"""The snippets of README and docs/quickstart.md do what they say, and tables are those of the committed results."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import torch

import multikv
from benchmarks import tables
from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text()
CAPTURE = """graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    step()
graph.replay()
"""


def test_the_snippet_prints_what_it_says(device_type):
    """On a CPU, the snippet runs without the graph."""
    snippet = snippets("README.md")[0]
    assert CAPTURE in snippet and '"cuda"' in snippet
    if device_type == "cpu":
        snippet = snippet.replace(CAPTURE, "").replace('"cuda"', '"cpu"')
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(snippet, "README.md", "exec"), {})
    assert printed.getvalue() == "as PyTorch computes it: True\n"


def test_is_short():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_made_from_results(page):
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text
    assert tables.filled(text) == text, "run python -m benchmarks.tables"


def snippets(file: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)


def test_second_snippet():
    names: dict[str, object] = {"torch": torch, "multikv": multikv}
    exec(compile(snippets("README.md")[1], "README.md", "exec"), names)
    assert names["out"].shape == (103, 32, 128) and not names["out"].isnan().any()
    assert [sequence.num_pending for sequence in names["sequences"]] == [0, 0]


def test_quickstart(capsys):
    names: dict[str, object] = {}
    for snippet in snippets("docs/quickstart.md"):
        exec(compile(snippet, "docs/quickstart.md", "exec"), names)
        for call, comment in re.findall(r"^ *print\((.*)\) +# (.*)$", snippet, re.MULTILINE):
            assert comment in capsys.readouterr().out, call
    assert not names["first"].is_offloaded and names["first"].num_written == 100
