"""The HIP library with a stand-in for AMD's runtime, which answers as AMD's does where that differs from CUDA's.

The stand-in's host is memory of this host, its "device" too. It copies, and counts launches without running kernels.
"""

from __future__ import annotations

import shutil
import subprocess
from ast import literal_eval
from pathlib import Path

import pytest

from multikv import platforms
from tests.support.processes import ROOT, run_program

LIBRARY = next(library for library in platforms.libraries() if library.name == "rocm")
SOURCE = Path(__file__).parent / "emulation" / "runtime.cpp"

pytestmark = [
    pytest.mark.skipif(not LIBRARY.path.exists(), reason="the HIP library is not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

# Loads the stand-in before the HIP library asks for AMD's runtime, and as torch's HIP library.
SCRIPT = """
import ctypes, torch
runtime = ctypes.CDLL({runtime!r}, mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL({torch!r})
runtime.stand_in_register.restype = runtime.stand_in_malloc.restype = ctypes.c_void_p
import multikv
from multikv.runtime.process import PROCESS

def swap(*copies):
    try:
        multikv.swap_blocks_batch(*(torch.tensor(column) for column in zip(*copies)))
    except RuntimeError as error:
        return str(error)

answers = {{}}
a, b = torch.arange(100), torch.zeros(100, dtype=torch.int64)
swap((a.data_ptr(), b.data_ptr(), 800))
answers["copied on the host"] = torch.equal(a, b)
answers["initialised"] = runtime.stand_in_is_initialised()

PROCESS.gpu.allocate_host(4096)
answers["flags of pinned memory"] = runtime.stand_in_host_flags()

gpu = ctypes.c_void_p()
host = runtime.stand_in_register(1 << 20, ctypes.byref(gpu))
device = runtime.stand_in_malloc(1 << 20)
ctypes.memset(host, 7, 1 << 20)
for strategy in ("copy_engine", "kernel"):
    multikv.platforms.set_swap_strategy(strategy)
    before = runtime.stand_in_launches(), runtime.stand_in_copies()
    swap((host + 100, device, 5000), (host + 9000, device + 5000, 5000))
    after = runtime.stand_in_launches(), runtime.stand_in_copies()
    answers[strategy] = after[0] - before[0], after[1] - before[1]
answers["copied"] = ctypes.string_at(device, 10000) == b"\\7" * 10000
answers["beyond its range"] = swap((device, host + (1 << 20) - 100, 200))
print(answers)
"""

# Looks addresses up as the swaps do.
PROGRAM = """
#include <cstdio>

#include "vendor/driver.h"

extern "C" void* stand_in_register(size_t, void**);
extern "C" void* stand_in_malloc(size_t);
using multikv::gpu::memory_at;

int failed = 0;
void expect(const char* what, uintptr_t begin, size_t size, intptr_t gpu_delta, int device) {
  for (const size_t offset : {size_t{0}, size_t{100}, size - 1}) {
    const auto m = memory_at(reinterpret_cast<void*>(begin + offset));
    const bool is_right = m && m->begin == begin && m->end == begin + size && m->gpu_delta == gpu_delta &&
                          m->device == device;
    if (!is_right) std::printf("%s + %zu: wrong\\n", what, offset), failed = 1;
  }
}
int main() {
  for (const size_t size : {size_t{1} << 20, (size_t{4} << 30) + 4096}) {  // AMD's attribute of the size has 32 bits
    void* gpu = nullptr;
    const auto host = reinterpret_cast<uintptr_t>(stand_in_register(size, &gpu));
    const auto at_gpu = reinterpret_cast<uintptr_t>(gpu);
    expect("registered", host, size, at_gpu - host, -1);
    expect("registered, at the GPU's address", at_gpu, size, 0, -1);
    expect("device", reinterpret_cast<uintptr_t>(stand_in_malloc(size)), size, 0, 0);
  }
  int other = 0;
  if (memory_at(&other)) std::puts("the stack: known"), failed = 1;
  return failed;
}
"""


def compile_cpp(source, path, *options):
    subprocess.run(["g++", "-std=c++20", "-D__HIP_PLATFORM_AMD__=1", source, "-o", path, *options], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the stand-in, also under the name of torch's library."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in ("libamdhip64.so.5", "libtorch_hip.so"):
        compile_cpp(SOURCE, folder / name, "-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,-soname,{name}")
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    script = SCRIPT.format(runtime=str(folder / "libamdhip64.so.5"), torch=str(folder / "libtorch_hip.so"))
    result = run_program("-c", script, MULTIKV_PLATFORM="rocm")
    assert result.returncode == 0, result.stderr
    return literal_eval(result.stdout)


def test_ranges_of_memory(folder):
    """AMD's runtime sets a null base for the range of registered memory, whose addresses differ on host and GPU."""
    source, program = folder / "memory.cpp", folder / "memory"
    source.write_text(PROGRAM)
    library = folder / "libamdhip64.so.5"
    compile_cpp(source, program, f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/hip", f"-Wl,-rpath,{folder}", library)
    result = subprocess.run([program], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("", 0)


def test_swaps_of_registered_memory(answers):
    assert answers["copied"]
    assert answers["copy_engine"] == (0, 2)
    assert answers["kernel"] == (1, 0)  # a kernel can access all of it
    expected = "swap_blocks_batch: dst_ptrs: expected copies within one memory mapping"
    assert str(answers["beyond its range"]).startswith(expected)


def test_swaps_of_host_memory_do_not_initialise_the_runtime(answers):
    """Children that a process forks after any call of HIP cannot use a GPU."""
    assert (answers["copied on the host"], answers["initialised"]) == (True, 0)


def test_pinned_memory_is_coherent(answers):
    """hipHostMallocPortable, the twin of CUDA's flag, would make memory that is not."""
    assert answers["flags of pinned memory"] == 0
