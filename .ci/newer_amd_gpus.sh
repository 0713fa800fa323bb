#!/bin/bash
# Compiles the HIP kernels for GPUs that Debian's hipcc is too old for: .ci/newer_amd_gpus.sh BUILD, where BUILD is a
# build tree with the HIP backend. Uses Debian's clang-19 with hipcc's headers and device libraries. Prints registers
# per kernel. Fails if a kernel does not compile, if a kernel spills, or if fp8 is not converted by the GPU's
# instructions where it has them.
set -euo pipefail
cd "$(dirname "$0")/.."
hipified=$1/hip
clang=${CLANG:-clang++-19}
bitcode=${BITCODE:-/usr/lib/x86_64-linux-gnu/amdgcn/bitcode}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$bitcode"/*.bc "$work"
failed=0
for architecture in gfx942:9402 gfx1100:11000 gfx1201:12001; do
  version=${architecture#*:} architecture=${architecture%:*}
  # The device libraries take the GPU's number from this constant; they have none for GPUs newer than they are.
  echo "@__oclc_ISA_version = linkonce_odr protected local_unnamed_addr addrspace(4) constant i32 $version" \
    >"$work/isa.ll"
  "$clang" -x ir --target=amdgcn-amd-amdhsa -nogpulib -Wno-override-module -emit-llvm -c "$work/isa.ll" \
    -o "$work/oclc_isa_version_${architecture#gfx}.bc"
  for source in "$hipified"/cuda/{ops,swap}/*.cu; do
    assembly=$work/$architecture.$(basename "$source").s
    "$clang" -x hip --offload-arch="$architecture" --cuda-device-only -S "$source" -o "$assembly" \
      --hip-path="${HIP_PATH:-/usr}" --rocm-device-lib-path="$work" -D__HIP_PLATFORM_AMD__=1 \
      -std=c++20 -O3 -DNDEBUG -Wall -Wextra -I"$hipified" -Icsrc/hip -Icsrc \
      -ffp-contract=off -fhip-fp32-correctly-rounded-divide-sqrt
    awk -v gpu="$architecture" '
      /^; Kernel info/ { in_kernel = 1 }
      /^\t\.globl/ { name = $2 }
      in_kernel && /^; NumVgprs:/ { vgprs = $3 }
      in_kernel && /^; NumSgprs:|^; TotalNumSgprs:/ { sgprs = $3 }
      in_kernel && /^; ScratchSize:/ { print gpu, name, "vgprs", vgprs, "sgprs", sgprs, "scratch", $3; in_kernel = 0
                                       if ($3 != 0) bad = 1 }
      END { exit bad }' "$assembly" || failed=1
  done
  fp8=$(cat "$work/$architecture".*.s | grep -c "v_cvt_pk_[fb][fp]8_f32" || true)
  echo "$architecture: $fp8 instructions that convert to fp8"
  if [[ $architecture != gfx1100 && $fp8 == 0 ]]; then failed=1; fi
done
exit $failed
