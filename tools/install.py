"""Makes the environment of `make demo` and `make test`, installs torch if it is missing, and builds multikv in place.

Usage: python tools/install.py [--venv FOLDER] [--torch REQUIREMENT] [--replace] [--no-build]

The program stops at once if the host lacks a C++20 compiler. Before each step it prints what it downloads or builds. A
second run only compiles what has changed. The syntax of this file must be that of Python 3.8, so that its first
statement can refuse Pythons from 3.8 to 3.9; older ones stop at a SyntaxError.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        "multikv needs Python 3.10 or newer, and {} is {}.{}: make PYTHON=python3.12 demo".format(
            sys.executable, *sys.version_info
        )
    )

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_TORCH = (2, 11)
PACKAGES = {"setuptools": (77,), "wheel": (0,), "cmake": (3, 26), "ninja": (0,), "rich": (13,)}
MARKER = "made-by-multikv"  # a file in an environment that this program may replace
# CPU seconds of a build: GCC 12 on AMD EPYC (Zen 2) took 265 for the CPU library; the others are estimates.
BUILD_SECONDS = {"cpu": 265, "cuda": 300, "hip": 300}

# Runs in the environment. Metadata is read, and nothing is imported, because `import torch` alone takes a second.
QUERY = """
import importlib.metadata as metadata, json
found = {"editable": None}
for distribution in metadata.distributions():
    name = (distribution.metadata["Name"] or "").lower()
    found.setdefault(name, distribution.version)
    if name == "multikv" and distribution.read_text("direct_url.json"):
        url = json.loads(distribution.read_text("direct_url.json"))
        if url.get("dir_info", {}).get("editable"):
            found["editable"] = url["url"]
print(json.dumps(found))
"""


def version(text: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version such as 2.13.0+cpu."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("+", maxsplit=1)[0].split(".")[:2])


@dataclass
class Environment:
    """A virtual environment, which may not exist yet."""

    folder: Path
    packages: dict[str, str | None] = field(default_factory=dict)  # name to version

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.folder / "bin" / "python"

    def read(self) -> None:
        """Reads which packages are installed."""
        output = subprocess.run([self.python, "-c", QUERY], check=True, stdout=subprocess.PIPE, text=True).stdout
        self.packages = json.loads(output)

    def has(self, name: str, oldest: tuple[int, ...]) -> bool:
        """Whether a package is installed in this version or a newer one."""
        found = self.packages.get(name)
        return found is not None and version(found) >= oldest

    def is_of_this_python(self) -> bool:
        """Whether the environment was made from the Python that runs this program."""
        lines = (self.folder / "pyvenv.cfg").read_text().splitlines()
        fields = dict(line.split(" = ", 1) for line in lines if " = " in line)
        same_home = Path(fields.get("home", "")).resolve() == Path(sys._base_executable).resolve().parent
        return same_home and fields.get("version", "").split(".")[:2] == [str(n) for n in sys.version_info[:2]]

    def make(self) -> None:
        """Makes the environment. It sees the packages of its Python if a torch that is new enough is one of them."""
        options = ["--system-site-packages"] if has_torch_here() else []
        run([sys.executable, "-m", "venv", *options, self.folder])
        (self.folder / MARKER).touch()


def has_torch_here() -> bool:
    """Whether the Python that runs this program has a torch that is new enough."""
    try:
        return version(importlib.metadata.version("torch")) >= OLDEST_TORCH
    except importlib.metadata.PackageNotFoundError:
        return False


def run(command: list[object]) -> None:
    """Runs a command that shows its own progress. If it fails, so does this program; the command has said why."""
    code = subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def say(text: str) -> None:
    """Prints a line at once."""
    print(f"multikv: {text}", flush=True)


def compiler() -> str:
    """Returns the name and version of the C++ compiler, after it has compiled C++20."""
    command = shlex.split(os.environ.get("CXX") or "")
    if not command:
        command = [next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")]
    advice = "install GCC 11 or newer (Debian, Ubuntu: apt-get install g++), or set CXX"
    if shutil.which(command[0]) is None:
        sys.exit(f"multikv needs a C++20 compiler, and {command[0]} was not found: {advice}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <bit>\n#include <concepts>\nstatic_assert(std::bit_cast<int>(1.0f) > 0);\n")
        options = ["-std=c++20", "-c", str(source), "-o", str(source.with_suffix(".o"))]
        probe = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
    if probe.returncode:
        reason = next((line for line in probe.stderr.splitlines() if "error" in line), probe.stderr.strip())
        sys.exit(f"multikv needs a C++20 compiler, and {command[0]} fails ({reason}): {advice}")
    about = subprocess.run([*command, "-dumpfullversion", "-dumpversion"], check=False, capture_output=True, text=True)
    return f"{command[0]} {about.stdout.strip()}"


def backends() -> tuple[list[str], str]:
    """Returns the backends to build, and why: those in MULTIKV_BACKENDS, else those that this host can use."""
    compilers = {"cuda": ("nvcc", "/usr/local/cuda/bin/nvcc"), "hip": ("hipcc", "/opt/rocm/bin/hipcc")}
    has_compiler = [name for name, paths in compilers.items() if any(map(shutil.which, paths))]
    chosen = os.environ.get("MULTIKV_BACKENDS")
    if chosen == "auto":
        return ["cpu", *has_compiler], "MULTIKV_BACKENDS=auto"
    if chosen:
        return list(dict.fromkeys(["cpu", *chosen.split(",")])), f"MULTIKV_BACKENDS={chosen}"
    devices = {"cuda": ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"), "hip": ("/sys/class/kfd/kfd",)}
    has_device = [name for name, paths in devices.items() if any(map(os.path.exists, paths))]
    names = ["cpu", *(name for name in has_device if name in has_compiler)]
    os.environ["MULTIKV_BACKENDS"] = ",".join(names)
    if not has_device:
        return names, "this host has no GPU; MULTIKV_BACKENDS=auto builds for others, too"
    if lacking := [compilers[name][0] for name in has_device if name not in has_compiler]:
        return names, f"this host has a GPU, but no {lacking[0]}"
    return names, "the devices of this host"


def prepare(environment: Environment, replace: bool) -> None:
    """Makes the environment if there is none, or if there is one of another Python and `replace` asks for this one."""
    folder = environment.folder
    if environment.python.exists() and replace and not environment.is_of_this_python():
        if not (folder / MARKER).exists():
            sys.exit(f"multikv: {folder} has another Python than PYTHON={sys.executable}: remove it, or set VENV")
        say(f"{folder} has another Python, and is made anew")
        shutil.rmtree(folder)
    if not environment.python.exists():
        if importlib.util.find_spec("ensurepip") is None:
            sys.exit("multikv: this Python cannot make environments (Debian, Ubuntu: apt-get install python3-venv)")
        environment.make()
    environment.read()


def install_packages(environment: Environment, torch: str, others: list[str]) -> None:
    """Installs what is missing, after saying how much that is."""
    pip = [environment.python, "-m", "pip", "--disable-pip-version-check", "install"]
    if not environment.has("torch", OLDEST_TORCH):
        if environment.packages.get("torch"):
            say(f"torch {environment.packages['torch']} is older than 2.11, and is replaced")
        say(f"downloads {torch.split(maxsplit=1)[0]}: 3 GB with CUDA, 5 minutes at 100 Mbit/s; 0.2 GB without")
        say("(TORCH chooses another build: the head of the Makefile has a line for a build without CUDA)")
        run([*pip, *shlex.split(torch), "numpy"])
        environment.read()
    missing = [name for name in others if not environment.has(name, PACKAGES[name])]
    if missing:
        say(f"downloads {', '.join(missing)}: 40 MB at most")
        run([*pip, "--quiet", *(f"{name}>={'.'.join(map(str, PACKAGES[name]))}" for name in missing)])


def build(environment: Environment, chosen: list[str], why: str) -> None:
    """Compiles the libraries, and installs the package in place unless it is."""
    cores = len(os.sched_getaffinity(0))
    minutes = sum(BUILD_SECONDS.get(name, 0) for name in chosen) / cores / 60
    is_first = not (ROOT / "build" / "cmake" / "build.ninja").exists()
    time = f"about {max(minutes, 1):.0f} minutes on {cores} cores" if is_first else "only what has changed"
    say(f"builds {', '.join(chosen)} ({why}): {time}")
    run([environment.python, "setup.py", "--quiet", "build_ext", "--inplace"])
    if environment.packages["editable"] != ROOT.as_uri():
        pip = [environment.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run([*pip, "--no-build-isolation", "--editable", "."])


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install where torch is missing or too old")
    parser.add_argument("--replace", action="store_true", help="make .venv anew if it has another Python")
    parser.add_argument("--no-build", action="store_true", help="install torch alone")
    options = parser.parse_args()
    environment = Environment(options.venv.absolute())
    chosen, why = backends()
    if not options.no_build:
        say(f"Python {sys.version.split()[0]}, {compiler()}")
    prepare(environment, options.replace)
    install_packages(environment, options.torch, ["rich"] if options.no_build else list(PACKAGES))
    if not options.no_build:
        build(environment, chosen, why)


if __name__ == "__main__":
    main()
