"""Builds the libraries with CMake into the package; pyproject.toml has all other metadata.

Environment variables: MULTIKV_BACKENDS, MULTIKV_CUDA_ARCHS, MULTIKV_HIP_ARCHS (see CMakeLists.txt), MAX_JOBS.
An empty variable counts as unset.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OPTIONS = ("MULTIKV_BACKENDS", "MULTIKV_CUDA_ARCHS", "MULTIKV_HIP_ARCHS")


def find_tool(name: str) -> str:
    """Returns the path of a tool, first from this Python's environment (even if it is not active), then from PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return shutil.which(name, path=path) or name


class BuildWithCMake(build_ext):
    """Builds all libraries as one "extension", into multikv/lib of the build tree, or of the checkout if editable."""

    def run(self) -> None:
        """Configures, builds and installs with CMake."""
        package = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build, libraries = ROOT / "build" / "cmake", package / "multikv" / "lib"
        cmake = find_tool("cmake")
        # Tools and options are passed in every build: an earlier one may have configured the tree with others.
        tools = [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", f"-DPython3_EXECUTABLE={sys.executable}"]
        options = [f"-D{name}={os.environ[name]}" if os.environ.get(name) else f"-U{name}" for name in OPTIONS]
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *tools, *options], check=True)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([cmake, "--build", build, *jobs], check=True)
        shutil.rmtree(libraries, ignore_errors=True)  # removes libraries of backends that are no longer built
        subprocess.run([cmake, "--install", build, "--prefix", libraries], check=True)

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
