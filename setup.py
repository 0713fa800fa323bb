"""Builds the libraries with CMake into the package; pyproject.toml has all other metadata.

Environment variables: MAX_JOBS, and those of OPTIONS (see CMakeLists.txt).
An empty variable counts as unset.
"""

import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OPTIONS = (
    "MULTIKV_BACKENDS",
    "MULTIKV_AVX512_FLAGS",
    "MULTIKV_CUDA_ARCHS",
    "MULTIKV_CUDA_FLAGS",
    "MULTIKV_HIP_ARCHS",
)


def torch_version() -> str:
    """Returns the version of torch, without importing it."""
    return importlib.metadata.version("torch")


def find_tool(name: str) -> str:
    """Returns the path of a tool, first from this Python's environment (even if it is not active), then from PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return shutil.which(name, path=path) or name


def run(command: Sequence[object], log: TextIO) -> None:
    """Runs a command, shows its output and writes it to a log. If it fails, the last lines of this process say why.

    On a terminal, Ninja's progress stays on one line.
    """
    overwrite = sys.stdout.isatty()
    lines = []
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            log.write(line)
            lines.append(line.rstrip())
            if overwrite and line.startswith("["):
                print(f"\r\033[K{line.rstrip()[:100]}", end="", flush=True)
            else:
                print(line, end="", flush=True)
    if overwrite:
        print()
    if process.returncode:
        log.flush()
        raise SystemExit(f"\nmultikv could not be built: {reason(lines)}\n(all output is in {log.name})")


def reason(lines: list[str]) -> str:
    """Returns the first error in the output of CMake, Ninja or a compiler."""
    for i, line in enumerate(lines):
        if line.startswith("CMake Error"):
            text = itertools.takewhile(lambda x: not x or x.startswith(" "), lines[i + 1 :])
            return " ".join(" ".join(text).split()) or line
        if re.search(r"\b(fatal error|error|Error)\b\s*:|undefined reference|ninja: error", line):
            return line
    return lines[-1] if lines else "no output"


class BuildWithCMake(build_ext):
    """Builds all libraries as one "extension", into multikv/lib of the build tree, or of the checkout if editable."""

    def run(self) -> None:
        """Configures, builds and installs with CMake."""
        package = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build, libraries = ROOT / "build" / "cmake", package / "multikv" / "lib"
        build.mkdir(parents=True, exist_ok=True)
        cmake = find_tool("cmake")
        # Tools and options are passed in every build: an earlier one may have configured the tree with others.
        tools = [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", f"-DPython3_EXECUTABLE={sys.executable}"]
        options = [f"-D{name}={os.environ[name]}" if os.environ.get(name) else f"-U{name}" for name in OPTIONS]
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *tools, *options]
        with (build / "log.txt").open("w") as log:
            # Ninja runs CMake itself where a CMake file has changed, and this saves its two seconds where none has.
            configured, done = build / "configured.json", json.dumps([configure, torch_version()])
            if not ((build / "build.ninja").exists() and configured.exists() and configured.read_text() == done):
                run(configure, log)
                configured.write_text(done)
            jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
            run([cmake, "--build", build, *jobs], log)
            shutil.rmtree(libraries, ignore_errors=True)  # removes libraries of backends that are no longer built
            run([cmake, "--install", build, "--prefix", libraries], log)

    def get_outputs(self) -> list[str]:
        """Returns no outputs: CMake has installed them."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Returns no mapping: an editable install uses the libraries where CMake has installed them."""
        return {}


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel for every Python of the platform: the libraries use no Python symbols."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tags of Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


def description() -> str:
    """Returns README.md for a package index: links and pictures that only the repository has become their text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension("multikv.lib", sources=[])],
    cmdclass={"build_ext": BuildWithCMake, "bdist_wheel": AnyPythonWheel},
)
