"""The emulation of an AMD GPU finds the faults that it is for: tests/hip/emulation/faults.cpp has one of each kind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "emulation"
CLANG = "clang++-22"

pytestmark = [
    pytest.mark.skipif(shutil.which(CLANG) is None, reason=f"needs {CLANG}"),
    pytest.mark.skipif(shutil.which("hipcc") is None, reason="needs HIP's headers"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulation") / "faults"
    options = ["-std=c++20", "-O1", "-march=x86-64-v3", "-D__HIP_PLATFORM_AMD__=1"]
    includes = [f"-I{FOLDER}/include", f"-I{FOLDER.parent}"]
    sources = [FOLDER / name for name in ("faults.cpp", "execution.cpp")]
    subprocess.run([CLANG, *options, *includes, *sources, "-o", path], check=True)
    return path


@pytest.mark.parametrize("wave", [64, 32])
def test_faults_are_found(program, wave):
    output = subprocess.run([program, str(wave)], check=True, capture_output=True, text=True).stdout
    found = dict(line.split(": ", 1) for line in output.splitlines())
    where = f"(waves of {wave}, block 0, 0, 0)"
    inactive = f"emulation: a lane reads a lane that takes no part in the shuffle {where}"
    assert found == {
        "a barrier": "right",
        "no barrier": "wrong",
        "waves of any size": "right",
        "32 lanes assumed": "wrong" if wave == 64 else "right",
        "divergent ballot": f"emulation: only some lanes of a warp call ballot: 16 of 32 {where}",
        "half of a wave": "right",
        "ended lane": f"emulation: only some lanes of a warp call shuffle: 31 of 32 {where}",
        "inactive lane": inactive,
        "uneven barrier": f"emulation: some lanes wait at __syncthreads(), others have ended {where}",
        "two barriers": f"emulation: lanes wait at different calls of __syncthreads() {where}",
        "unwritten memory": "wrong",
    }
