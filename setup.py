"""Builds the libraries with CMake into the package; everything else stands in pyproject.toml.

Environment: MULTIKV_BACKENDS, MULTIKV_CUDA_ARCHS, MULTIKV_HIP_ARCHS (see CMakeLists.txt), MAX_JOBS.
"""

import os
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
    """The tool of this Python's environment, also where that is not the active one; else any."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return shutil.which(name, path=path) or name


class BuildWithCMake(build_ext):
    """One "extension" stands for all libraries: they go to multikv/lib of the build, or of the checkout if editable."""

    def run(self) -> None:
        package = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build, libraries = ROOT / "build" / "cmake", package / "multikv" / "lib"
        cmake = find_tool("cmake")
        # Said every time: the tree may have been configured by an environment that is gone, or with other options.
        tools = [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", f"-DPython3_EXECUTABLE={sys.executable}"]
        options = [f"-D{name}={os.environ[name]}" if name in os.environ else f"-U{name}" for name in OPTIONS]
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *tools, *options], check=True)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.run([cmake, "--build", build, *jobs], check=True)
        shutil.rmtree(libraries, ignore_errors=True)  # of other backends, built before
        subprocess.run([cmake, "--install", build, "--prefix", libraries], check=True)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class AnyPythonWheel(bdist_wheel):
    """The libraries know no Python symbol: one wheel serves every Python of the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("multikv.lib", sources=[])],
    cmdclass={"build_ext": BuildWithCMake, "bdist_wheel": AnyPythonWheel},
)
