"""The division by a scale, on which every fp8 byte depends: all pairs of significands that occur."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_every_quotient_is_that_of_ieee_division(tmp_path):
    """Seconds with vector instructions; minutes where the fused multiply-add is a function call, so only with them."""
    compiler = shutil.which("g++")
    if compiler is None or "fma" not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("needs g++ and a CPU with fused multiply-add")
    program = tmp_path / "quotient_exhaustive"
    flags = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
    source = TESTS / "quotient_exhaustive.cpp"
    subprocess.run([compiler, *flags, f"-I{TESTS.parent / 'csrc'}", source, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert run.stdout == "wrong: 0 of 2^33 with 11 bits, 0 of 2e8 in float32\n"
