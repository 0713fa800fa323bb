"""C++ programs that try every pair of significands: division by a scale, and the encoder without corrections."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT

HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]


def compiled(source: str, directory: Path, needed: set[str]) -> Path:
    """Compiles a program; skips the test where the CPU lacks instructions without which the program takes minutes."""
    compiler, info = shutil.which("g++"), Path("/proc/cpuinfo")
    if compiler is None or not info.exists() or not needed <= set(info.read_text().split()):
        pytest.skip(f"needs g++ and a CPU with {', '.join(sorted(needed))}")
    program = directory / "program"
    subprocess.run([compiler, *FLAGS, f"-I{ROOT / 'csrc'}", HERE / source, "-o", program], check=True)
    return program


def output_of(*command: object) -> str:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_every_quotient_is_that_of_ieee_division(tmp_path):
    program = compiled("quotient_exhaustive.cpp", tmp_path, {"fma"})
    assert output_of(program) == "wrong: 0 with 11 bits, 0 in float32, 0 near one\n"


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)], ids=["every_61st_scale", "every_scale"])
def test_the_encoder_without_corrections_gives_the_same_codes(tmp_path, step):
    """The run over all scales takes minutes."""
    program = compiled("estimate_exhaustive.cpp", tmp_path, {"avx2", "fma", "f16c"})
    lines = output_of(program, step).splitlines()
    assert len(lines) == 2
    for line in lines:
        sufficient, wrong = re.search(r"suffices for (\d+) of 2\^23 scales, wrong for (\d+)$", line).groups()
        assert int(sufficient) > 1_000_000 // step and int(wrong) == 0
