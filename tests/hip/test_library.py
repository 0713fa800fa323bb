"""The HIP library on a host without an AMD GPU: what it registers, and for which GPUs it holds code."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys

import pytest

from multikv import platforms
from tests.support import hip_code
from tests.support.processes import ROOT, run_program

LIBRARY = next(library for library in platforms.libraries() if library.name == "rocm")

built = pytest.mark.skipif(not LIBRARY.path.exists(), reason="the HIP library is not built")


@built
def test_registers_every_op_beside_any_torch():
    script = """
import json, multikv, torch
from multikv import platforms
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
has = {name: has_kernel(f"multikv::{name}", "CUDA") for name in platforms.op_names()}
print(json.dumps([platforms.platform(), platforms.report(), has]))
"""
    run = run_program("-c", script, MULTIKV_PLATFORM="rocm")
    assert run.returncode == 0, run.stderr
    platform, report, has = json.loads(run.stdout)
    assert platform == "rocm", report
    assert set(has) == set(platforms.op_names())
    assert all(has.values()), has


@built
def test_holds_code_for_each_architecture_of_its_manifest():
    code = hip_code.code_by_architecture(LIBRARY.path)
    if not code and b"CCOB" in LIBRARY.path.read_bytes():
        pytest.skip("this compiler compressed the code")
    assert sorted(code) == sorted(LIBRARY.architectures)
    kernels = {}
    for architecture, objects in code.items():
        for code_object in objects:
            assert code_object[:4] == b"\x7fELF"
            assert struct.unpack_from("<H", code_object, 18) == (224,)  # EM_AMDGPU
        kernels[architecture] = set(re.findall(rb"_Z\w+_kernel\w*", b"".join(objects)))
    assert kernels[LIBRARY.architectures[0]]
    assert all(found == kernels[LIBRARY.architectures[0]] for found in kernels.values())


@built
@pytest.mark.skipif(shutil.which("llvm-objdump-22") is None, reason="needs the tools of LLVM 22")
def test_no_kernel_accesses_scratch_memory():
    """Scratch memory would hold registers that do not fit, or parameters that the compiler copies."""
    architecture, objects = next(iter(hip_code.code_by_architecture(LIBRARY.path).items()))
    assert not hip_code.faults(architecture, hip_code.examine(objects))


def test_hipify_translates_and_leaves_what_is_the_same(tmp_path):
    """Paths are kept, so that two files in different folders may have one name; an equal output keeps its time."""
    header, kernel, other = "core/launch.h", "ops/kernel.cu", "swap/kernel.cu"
    sources = {
        header: "#include <cuda_runtime.h>\nusing Stream = cudaStream_t;\n",
        kernel: '#include "core/launch.h"\nlong larger(long a, long b) { return std::max(a, b); }\n',
        other: "cudaError_t last() { return cudaGetLastError(); }\n",
    }
    out = tmp_path / "out"

    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def hipify():
        script = ROOT / "cmake" / "hipify.py"
        subprocess.run([sys.executable, script, out, *sources], cwd=tmp_path, check=True)

    for name, text in sources.items():
        write(name, text)
    hipify()
    assert "hipStream_t" in (out / header).read_text()
    assert "<hip/hip_runtime.h>" in (out / header).read_text()
    assert "hipGetLastError()" in (out / other).read_text()
    # On HIP's host side ::max takes ints.
    assert "return std::max(a, b)" in (out / kernel).read_text()

    for name in sources:
        os.utime(out / name, (0, 0))
    write(kernel, sources[kernel] + "// changed\n")
    hipify()
    assert [(out / name).stat().st_mtime == 0 for name in sources] == [True, False, True]
