"""Where the CPU's encoder leaves the correction of a quotient out: all pairs of significands that occur."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_what_is_left_out_changes_no_code(tmp_path):
    """About half a minute."""
    compiler = shutil.which("g++")
    if compiler is None or not {"avx2", "fma", "f16c"} <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("needs g++ and a CPU with AVX2")
    program = tmp_path / "estimate_exhaustive"
    flags = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
    source = TESTS / "estimate_exhaustive.cpp"
    subprocess.run([compiler, *flags, f"-I{TESTS.parent / 'csrc'}", source, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("wrong for 0") == 2
