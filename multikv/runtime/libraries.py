"""Library files: reads what each was built for, and opens it."""

from __future__ import annotations

import ctypes
import importlib.machinery
import json
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

LIBRARY_DIR = Path(__file__).parents[1] / "lib"
CPU_LIBRARY_NAME = "libmultikv_cpu.so"


@dataclass
class Library:
    """The library of one backend: what it was built for, and whether it serves this host."""

    name: str  # cpu, cuda or rocm
    path: Path
    loaded: bool = False
    reason: str = ""  # why the library is loaded or not, in one line; empty for a CPU library that is loaded
    toolkit: str = ""  # version of the compiler that built the library
    torch: str = ""  # version of torch that the library was built with
    architectures: list[str] = field(default_factory=list)  # such as 90, 90a, 120+PTX, gfx90a
    handle: ctypes.CDLL | None = None
    abi_version: int | None = None  # MULTIKV_ABI_VERSION of csrc/c_api.h
    build_id: str = ""  # digest of the sources that the library was compiled from


def describe(name: str) -> Library:
    """Reads the manifest beside a library, `multikv_<name>.json`. Nothing is loaded."""
    library = Library(name, LIBRARY_DIR / f"libmultikv_{name}.so")
    manifest = LIBRARY_DIR / f"multikv_{name}.json"
    if manifest.exists():
        built = json.loads(manifest.read_text())
        library.toolkit, library.torch, library.architectures = built["toolkit"], built["torch"], built["architectures"]
        library.abi_version, library.build_id = built.get("abi_version"), built.get("build_id", "")
    return library


def open_library(library: Library) -> None:
    """Loads a library, which registers its kernels with PyTorch. On failure, sets `reason`."""
    if not library.path.exists():
        library.reason = "not built"
        return
    try:
        torch.ops.load_library(str(library.path))
        library.handle = ctypes.CDLL(str(library.path))
    except OSError as error:
        library.reason = _explained(str(error))
        return
    library.loaded = True


def _explained(error: str) -> str:
    """Adds to an error of the dynamic loader what the host lacks, where this is known."""
    if found := re.search(r"version `GLIBC_([\d.]+)' not found", error):
        return f"it needs glibc {found[1]} or newer, and this host has {platform.libc_ver()[1]}: {error}"
    if found := re.search(r"version `(GLIBCXX|CXXABI)_[\d.]+' not found", error):
        return f"it needs a newer libstdc++ ({found[0]}): {error}"
    if found := re.search(r"libamdhip64\.so\.(\d+): cannot open", error):
        return f"it needs the runtime of ROCm {found[1]}; with another ROCm, build multikv from source: {error}"
    return error


def built_package_behind(package: Path) -> Path | None:
    """Returns another copy of the package that has a CPU library and that Python would import if `package` were absent.

    Args:
        package: the folder of the copy that is being imported.
    """
    paths = [entry for entry in sys.path if (Path(entry) / package.name).resolve() != package.resolve()]
    specs = [importlib.machinery.PathFinder.find_spec(package.name, paths)]
    # setuptools adds a finder for every editable installation.
    editable = [finder for finder in sys.meta_path if finder.__module__.startswith("__editable__")]
    specs += [finder.find_spec(package.name, None) for finder in editable]
    copies = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]
    built = (copy for copy in copies if (copy / LIBRARY_DIR.name / CPU_LIBRARY_NAME).exists())
    return next(built, None)


def other_cpu_library(path: Path) -> Path | None:
    """Returns the CPU library of another copy of multikv that this process has loaded, if there is one.

    Two copies cannot share a process: both would register the schemas of the namespace `multikv`.
    """
    for loaded in map(Path, torch.ops.loaded_libraries):
        if loaded.name == CPU_LIBRARY_NAME and loaded != path.resolve():
            return loaded
    return None
