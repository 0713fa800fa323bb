#!/bin/bash
# Shows that multikv_add_family does what cmake/Families.cmake says: .ci/families.sh PYTHON, with a Python that has
# torch, cmake and ninja. The script adds two scratch families to a copy of the sources, one EXACT and one FAST with
# ARCHS 90a, compiles them for every backend, and looks for fused operations and for code for sm_90a. No GPU is
# needed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
PATH=$(dirname "$python"):$PATH
export CCACHE_DISABLE=1  # what the compilers print must be printed

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r CMakeLists.txt cmake csrc "$work"
cd "$work"
for name in scratch_exact scratch_fast; do
  mkdir "csrc/cuda/$name"
  echo "namespace {}" >"csrc/frontend/ops/$name.cpp"
  echo "float $name(float x, float a, float b) { return x * a + b; }" >"csrc/cpu/isa/$name.cpp"
  # The header has the name of a header in another folder: each must be found in its own.
  echo "#define SCRATCH(x, a, b) (x * a + b)" >"csrc/cuda/$name/grid.h"
  cat >"csrc/cuda/$name/$name.cu" <<SOURCE
#include "cuda/$name/grid.h"
#include "cuda/core/grid.h"
__global__ void $name(float* x, float a, float b) { *x = SCRATCH(*x, a, b); }
SOURCE
done
cat >>CMakeLists.txt <<'CMAKE'
multikv_add_family(scratch_exact EXACT)
multikv_add_family(scratch_fast FAST ARCHS 90a)
CMAKE

cmake -S . -B build -G Ninja -DPython3_EXECUTABLE="$python" -DMULTIKV_BACKENDS=cpu,cuda,hip -DMULTIKV_CUDA_ARCHS=90 \
  -DMULTIKV_HIP_ARCHS=gfx90a -DCMAKE_CUDA_FLAGS="-Xptxas=-v --keep --keep-dir=$work/build" >cmake.log ||
  { cat cmake.log; exit 1; }

failed=0
expect() {  # TEXT PATTERN yes|no FILE: does the file hold the pattern, as expected?
  local found=no
  if grep -qE "$2" "$4"; then found=yes; fi
  echo "$1: $found"
  if [[ $found != "$3" ]]; then echo "  expected $3"; failed=1; fi
}
for family in exact=no=yes fast=yes=no; do
  IFS="=" read -r name fuses is_plain <<<"scratch_$family"  # is_plain: code for 90, in whose place 90a comes
  object=hip/cuda/$name/$name.cu.o
  cmake --build build --target "cpu_avx2_$name" "cuda_$name" "$object" >"$name.log" 2>&1 || { cat "$name.log"; exit 1; }

  objdump -d "build/CMakeFiles/cpu_avx2_$name.dir/csrc/cpu/isa/$name.cpp.o" >cpu.txt
  expect "$name, CPU, fused" 'vfn?m(add|sub)' no cpu.txt
  cat "build/$name".*ptx >cuda.txt
  expect "$name, CUDA, fused" 'fma\.rn\.f32' "$fuses" cuda.txt
  expect "$name, CUDA, code for sm_90" "for 'sm_90'" "$is_plain" "$name.log"
  expect "$name, CUDA, code for sm_90a" "for 'sm_90a'" "$fuses" "$name.log"
  objcopy -O binary --only-section=.hip_fatbin "build/$object" hip.bundle
  clang-offload-bundler-22 --unbundle --type=o --targets=hipv4-amdgcn-amd-amdhsa--gfx90a \
    --input=hip.bundle --output=hip.o
  llvm-objdump-22 -d hip.o >hip.txt
  expect "$name, HIP, fused" 'v_(pk_)?fma' "$fuses" hip.txt
done
exit $failed
