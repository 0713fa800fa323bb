"""The machine code in a HIP library: `python -m tests.support.hip_code [LIBRARY]` prints the table of docs/amd.md.

Needs the tools of LLVM 22. Fails if the code of an architecture lacks the conversions of fp8 that its GPU has, or if a
kernel accesses scratch memory. (Metadata may reserve scratch memory for SGPRs that were then kept in VGPRs.)
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

DEFAULT = Path(__file__).resolve().parents[2] / "multikv" / "lib" / "libmultikv_rocm.so"
# Architectures whose GPUs convert to and from fp8, to e4m3fnuz or to e4m3fn.
HAVE_FP8 = ("gfx942", "gfx950", "gfx1200", "gfx1201")
SCRATCH = re.compile(r"\b(?:scratch|buffer)_(?:load|store)_\w+")
FP8 = re.compile(r"\bv_cvt_(?:scalef32_)?(?:pk_f32_(?:fp8|bf8)|pk_(?:fp8|bf8)_f32|f32_(?:fp8|bf8)|sr_(?:fp8|bf8)_f32)")
MATRIX = re.compile(r"\bv_s?w?mfmac?_|\bv_mfma_|\bv_s?wmmac?_")


def code_by_architecture(library: Path) -> dict[str, list[bytes]]:
    """The code objects in a HIP library: one bundle per kernel file, one entry in each per architecture.

    A bundle is a magic word, the number of entries, and for each of them offset, size, length of its id, and its id.
    """
    data = library.read_bytes()
    code: dict[str, list[bytes]] = {}
    for start in (match.start() for match in re.finditer(b"__CLANG_OFFLOAD_BUNDLE__", data)):
        (count,) = struct.unpack_from("<Q", data, start + 24)
        position = start + 32
        for _ in range(count):
            offset, size, length = struct.unpack_from("<QQQ", data, position)
            name = data[position + 24 : position + 24 + length].decode()
            position += 24 + length
            if not name.startswith("host-"):
                architecture = name.rpartition("--")[2].partition(":")[0]
                code.setdefault(architecture, []).append(data[start + offset : start + offset + size])
    return code


class Kernel(NamedTuple):
    """What the metadata says of a kernel."""

    name: str
    vgprs: int
    sgprs: int
    vgpr_spills: int
    sgpr_spills: int
    lds_bytes: int


class Code(NamedTuple):
    """What the library holds for one architecture."""

    kernels: list[Kernel]
    wave: int
    fp8: int
    matrix: int
    scratch: int


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


def _kernels(notes: str) -> list[Kernel]:
    """Reads the kernels of `llvm-readelf --notes`, whose fields are in alphabetical order."""
    kernels = []
    for text in re.split(r"^  - \.a(?:gpr_count|rgs):", notes, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^    \.(\w+): +(\S+)$", text, re.MULTILINE))
        numbers = ("vgpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count", "group_segment_fixed_size")
        kernels.append(Kernel(fields["name"], *(int(fields[name]) for name in numbers)))
    return kernels


def examine(objects: list[bytes]) -> Code:
    """Reads metadata and disassembly of the code objects of one architecture."""
    kernels, fp8, matrix, scratch, wave = [], 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "code.o"))
        for code in objects:
            Path(path).write_bytes(code)
            notes = _run("llvm-readelf-22", "--notes", path)
            kernels += _kernels(notes)
            wave = max(wave, *map(int, re.findall(r"\.wavefront_size: +(\d+)", notes)), 0)
            text = _run("llvm-objdump-22", "-d", "--no-show-raw-insn", "--no-leading-addr", path)
            fp8 += len(FP8.findall(text))
            matrix += len(MATRIX.findall(text))
            scratch += len(SCRATCH.findall(text))
    return Code(kernels, wave, fp8, matrix, scratch)


def faults(architecture: str, code: Code) -> list[str]:
    """What the code of an architecture should not be."""
    found = [f"{architecture}: {k.name} spills {k.vgpr_spills} VGPRs" for k in code.kernels if k.vgpr_spills]
    if code.scratch:
        found.append(f"{architecture}: {code.scratch} instructions access scratch memory")
    if architecture in HAVE_FP8 and not code.fp8:
        found.append(f"{architecture}: no instruction converts fp8")
    return found


def main() -> None:
    """Prints a row for each architecture."""
    found = []
    titles = ("architecture", "wave", "kernels", "fp8", "matrix", "most VGPRs", "kernels that spill SGPRs", "most LDS")
    print(f"| {' | '.join(titles)} |")
    print("|---|---:|---:|---:|---:|---:|---|---:|")
    items = sorted(code_by_architecture(Path(*sys.argv[1:2] or [DEFAULT])).items(), key=_generation)
    with ThreadPoolExecutor() as pool:  # each thread waits for LLVM's tools
        codes = list(pool.map(examine, [objects for _, objects in items]))
    for (architecture, _), code in zip(items, codes, strict=True):
        found += faults(architecture, code)
        spills = [k.sgpr_spills for k in code.kernels if k.sgpr_spills]
        numbers = (code.wave, len(code.kernels), code.fp8, code.matrix, max(k.vgprs for k in code.kernels))
        spilled = f"{len(spills)} kernels, at most {max(spills)}" if spills else "none"
        lds = max(k.lds_bytes for k in code.kernels)
        print(f"| {architecture} | " + " | ".join(f"{n:,}" for n in numbers) + f" | {spilled} | {lds:,} |")
    sys.exit("\n".join(found) or 0)


def _generation(item: tuple[str, list[bytes]]) -> tuple[int, str]:
    return len(item[0]), item[0]


if __name__ == "__main__":
    main()
