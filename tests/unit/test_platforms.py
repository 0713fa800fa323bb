"""What multikv finds on a host, what it loads, and how the environment changes that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from multikv import platforms
from multikv.runtime import detection, hosts, libraries
from multikv.runtime.libraries import Library
from multikv.runtime.settings import Settings
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import check
from tests.support.devices import serves_gpu
from tests.support.processes import ROOT, import_error, output_of

ISAS = ("baseline", "avx2", "avx512")


def test_libraries():
    found = platforms.libraries()
    assert [library.name for library in found] == ["cpu", "cuda", "rocm"]
    for library in found:
        assert library.path.name == f"libmultikv_{library.name}.so"
        assert library.path.exists() or not library.loaded
        assert library.loaded or library.reason
        assert bool(library.architectures) == library.path.exists()
    assert found[0].loaded
    assert sum(library.loaded for library in found[1:]) <= 1


def test_platform():
    loaded = [library.name for library in platforms.libraries() if library.loaded]
    assert platforms.platform() == loaded[-1]
    assert serves_gpu() == (platforms.platform() != "cpu")


def test_report():
    lines = platforms.report().splitlines()
    assert len(lines) == 3
    for line, library in zip(lines, platforms.libraries(), strict=True):
        assert line.startswith(f"{library.name}: {'loaded' if library.loaded else 'not loaded'}: ")
        assert library.name == "cpu" or line.endswith(library.reason)
    assert all(isa in lines[0] for isa in platforms.cpu_isas())


def test_a_gpu_library_without_a_gpu_build_of_torch():
    for library in platforms.libraries()[1:]:
        if {"cuda": torch.version.cuda, "rocm": torch.version.hip}[library.name] is None:
            assert not library.loaded
            assert library.reason == f"torch {torch.__version__} is not built for {library.name}"


def test_cpu_isas():
    isas = platforms.cpu_isas()
    assert isas[0] == "baseline"
    assert list(isas) == [isa for isa in ISAS if isa in isas]
    assert platforms.cpu_isa() in isas


def test_isas_are_those_of_the_cpu():
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split(":")[1].split() for line in file if line.startswith("flags")), [])
    except OSError:
        pytest.skip("needs /proc/cpuinfo")
    assert ("avx2" in platforms.cpu_isas()) == {"avx2", "fma", "f16c"}.issubset(flags)
    needed = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"}
    assert ("avx512" in platforms.cpu_isas()) == needed.issubset(flags)


def test_set_cpu_isa():
    before = platforms.cpu_isa()
    try:
        for isa in platforms.cpu_isas():
            platforms.set_cpu_isa(isa)
            assert platforms.cpu_isa() == isa
            assert f"cpu: loaded: {isa}" in platforms.report()
            check("reshape_and_cache_flash", flash_arguments(format="fp8_e5m2"))
    finally:
        platforms.set_cpu_isa(before)


@pytest.mark.parametrize("name", ["avx", "AVX2", "", "sse2"])
def test_set_unknown_cpu_isa(name):
    before = platforms.cpu_isa()
    with pytest.raises(ValueError) as caught:
        platforms.set_cpu_isa(name)
    assert str(caught.value) == (
        f"CPU instruction set: expected one of {', '.join(platforms.cpu_isas())}, got '{name}'"
    )
    assert platforms.cpu_isa() == before


def test_set_cpu_isa_that_this_cpu_lacks():
    for isa in set(ISAS) - set(platforms.cpu_isas()):
        with pytest.raises(ValueError, match="expected one of"):
            platforms.set_cpu_isa(isa)


PRINT_ISA = "from multikv import platforms; print(platforms.cpu_isa())"
PRINT_PLATFORM = "from multikv import platforms; print(platforms.platform()); print(platforms.report())"


def test_the_best_isa_is_the_default():
    assert output_of(PRINT_ISA) == platforms.cpu_isas()[-1]


@pytest.mark.parametrize("isa", platforms.cpu_isas())
def test_isa_from_the_environment(isa):
    assert output_of(PRINT_ISA, MULTIKV_CPU_ISA=isa) == isa


def test_bad_isa_in_the_environment():
    names = ", ".join(platforms.cpu_isas())
    assert import_error(MULTIKV_CPU_ISA="avx3") == (
        f"MULTIKV_CPU_ISA: CPU instruction set: expected one of {names}, got 'avx3'"
    )


def test_bad_platform_in_the_environment():
    assert import_error(MULTIKV_PLATFORM="tpu") == (
        "MULTIKV_PLATFORM: expected one of auto, cpu, cuda, rocm, got 'tpu'"
    )


def test_set_check_indices_needs_a_bool():
    for value in ("x", 1, None):
        with pytest.raises(TypeError, match=f"^set_check_indices: enabled: expected a bool, got {value!r}$"):
            platforms.set_check_indices(value)


def test_bad_check_indices_in_the_environment():
    assert import_error(MULTIKV_CHECK_INDICES="yes") == "MULTIKV_CHECK_INDICES: expected 0 or 1, got 'yes'"


@pytest.mark.parametrize("variable", ["MULTIKV_PLATFORM", "MULTIKV_CPU_ISA", "MULTIKV_SWAP", "MULTIKV_CHECK_INDICES"])
def test_an_empty_variable_counts_as_unset(variable):
    code = "from multikv import platforms; print(platforms.report(), platforms.swap_strategy())"
    assert output_of(code, **{variable: ""}) == output_of(code)
    assert Settings.from_environment({variable: ""}) == Settings()


def test_an_import_that_failed_fails_again():
    code = """
for _ in range(2):
    try:
        import multikv
        print("imported")
    except ImportError as error:
        print(str(error)[:16])
"""
    assert output_of(code, MULTIKV_CPU_ISA="avx3") == "MULTIKV_CPU_ISA:\nMULTIKV_CPU_ISA:"


@pytest.mark.parametrize(
    "architectures, capability, runs",
    [
        (["90"], (9, 0), True),
        (["80"], (8, 9), True),
        (["80"], (9, 0), False),
        (["89"], (8, 0), False),
        (["90a"], (9, 0), True),
        (["100a"], (10, 3), False),
        (["90a+PTX"], (9, 0), True),
        (["90a+PTX"], (9, 1), False),
        (["90a+PTX"], (12, 0), False),
        (["100f"], (10, 3), True),
        (["100f+PTX"], (10, 3), True),
        (["100f+PTX"], (12, 0), False),
        (["80", "90+PTX"], (12, 0), True),
        (["120+PTX"], (10, 0), False),
        ([], (9, 0), False),
    ],
)
def test_which_gpus_code_runs_on(architectures, capability, runs):
    assert detection.has_code_for(architectures, capability) is runs


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_a_forced_library_that_cannot_be_loaded(name, tmp_path):
    """A copy of the package has the CPU's library alone."""
    package = Path(platforms.__file__).parent
    others = shutil.ignore_patterns("__pycache__", "*_cuda.*", "*_rocm.*")
    shutil.copytree(package, tmp_path / "multikv", ignore=others)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import multikv
except ImportError as error:
    print(error)
"""
    expected = f"MULTIKV_PLATFORM={name}: libmultikv_{name}.so cannot be loaded: not built"
    assert output_of(code, MULTIKV_PLATFORM=name) == expected


def test_a_source_tree_that_shadows_an_installed_package(tmp_path):
    """A program that starts in a clone imports the clone, which has no libraries, and not what pip has installed."""
    package, clone, installed = Path(platforms.__file__).parent, tmp_path / "clone", tmp_path / "installed"
    shutil.copytree(package, clone / "multikv", ignore=shutil.ignore_patterns("__pycache__", "lib"))
    others = shutil.ignore_patterns("__pycache__", "*_cuda.*", "*_rocm.*")
    code = f"""
import sys
sys.path[:0] = [{str(clone)!r}, {str(installed)!r}]
sys.path = [path for path in sys.path if path not in ("", {str(ROOT)!r})]
sys.meta_path = [finder for finder in sys.meta_path if not finder.__module__.startswith("__editable__")]
try:
    import multikv
except ImportError as error:
    print(error)
"""
    not_built = "multikv: libmultikv_cpu.so cannot be loaded: not built"
    assert output_of(code) == not_built
    (clone / "CMakeLists.txt").touch()
    assert output_of(code) == f"{not_built}; `make demo` in {clone} builds and installs it"
    command = ["-m", "multikv"]
    run = subprocess.run([sys.executable, *command], cwd=clone, env={"PYTHONPATH": ""}, capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout == "" and run.stderr.startswith(not_built) and run.stderr.count("\n") == 1
    shutil.copytree(package, installed / "multikv", ignore=others)
    assert output_of(code) == (
        f"{not_built}; the source tree {clone} shadows the installed package {installed / 'multikv'}: "
        "start Python in another directory, or build the source tree"
    )


def test_an_editable_installation_that_is_shadowed(tmp_path, monkeypatch):
    """An editable installation by setuptools is found by a finder of its own."""
    package, clone = Path(platforms.__file__).parent, tmp_path / "clone" / "multikv"
    finder = SimpleNamespace(
        __module__="__editable___multikv_1_finder",
        find_spec=lambda name, path: ModuleSpec(name, None, origin=str(package / "__init__.py")),
    )
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [finder])
    assert libraries.built_package_behind(clone) == package
    monkeypatch.setattr(sys, "meta_path", [])
    assert libraries.built_package_behind(clone) is None


def test_two_copies_in_one_process(tmp_path):
    """The second import is an ImportError that names both paths: both copies would register the same schemas."""
    package = Path(platforms.__file__).parent
    shutil.copytree(package, tmp_path / "multikv", ignore=shutil.ignore_patterns("__pycache__", "*_cuda.*", "*_rocm.*"))
    code = f"""
import sys
import multikv
for name in [name for name in sys.modules if name.partition(".")[0] == "multikv"]:
    del sys.modules[name]
sys.path.insert(0, {str(tmp_path)!r})
try:
    import multikv
except ImportError as error:
    print(error)
"""
    text = output_of(code)
    assert str(package.resolve()) in text and str(tmp_path / "multikv") in text


@pytest.mark.parametrize(
    "error, beginning",
    [
        ("/lib/libc.so.6: version `GLIBC_2.34' not found (required by x.so)", "it needs glibc 2.34 or newer, and this"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.29' not found", "it needs a newer libstdc++ (version `GLIBCXX_3.4.29'"),
        ("libamdhip64.so.5: cannot open shared object file", "it needs the runtime of ROCm 5; with another ROCm,"),
        ("invalid ELF header", "invalid ELF header"),
    ],
)
def test_what_a_host_lacks(error, beginning):
    reason = libraries._explained(error)
    assert reason.startswith(beginning) and reason.endswith(error)


# What a host says of its GPUs: CUDA version of the driver, compute capabilities (None: no NVML), a device file.
@pytest.mark.parametrize(
    "driver, capabilities, device_file, refusal",
    [
        ((13, 0), [(9, 0)], True, ""),
        ((13, 1), [(7, 5), (8, 6)], True, ""),
        ((12, 8), [(9, 0)], True, "the driver supports CUDA 12.8, the library was built with 13.0.88"),
        ((13, 0), [(7, 5)], True, "no code for this host's sm_75: compiled for 80, 90"),
        ((13, 0), [], True, "no NVIDIA GPU"),
        (None, None, False, "no NVIDIA GPU or driver"),
        (None, None, True, ""),
    ],
)
def test_why_a_cuda_library_is_refused(monkeypatch, driver, capabilities, device_file, refusal):
    monkeypatch.setattr(hosts, "nvidia_driver_cuda_version", lambda: driver)
    monkeypatch.setattr(hosts, "nvidia_compute_capabilities", lambda: capabilities)
    monkeypatch.setattr(hosts, "has_nvidia_device", lambda: device_file)
    library = Library("cuda", platforms.libraries()[0].path, toolkit="13.0.88", architectures=["80", "90"])
    verdict = detection.judge_cuda(library)
    assert verdict.serves == (refusal == "")
    assert verdict.reason == refusal or (verdict.serves and verdict.reason)


@pytest.mark.parametrize(
    "nodes, names, refusal",
    [
        ([0, 90010], ["gfx90a"], ""),
        ([0, 100300, 90402], ["gfx1030", "gfx942"], ""),
        ([0, 110000], ["gfx1100"], "no code for this host's gfx1100: compiled for gfx90a, gfx1030"),
        ([0], [], "no AMD GPU"),
    ],
)
def test_why_a_rocm_library_is_refused(monkeypatch, tmp_path, nodes, names, refusal):
    """The kernel driver's topology: a directory per node, a CPU's with version 0."""
    for number, version in enumerate(nodes):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 8\ngfx_target_version {version}\n")
    found = hosts.amd_architectures(tmp_path)
    assert found == names
    monkeypatch.setattr(hosts, "amd_architectures", lambda: found)
    library = Library("rocm", platforms.libraries()[0].path, architectures=["gfx90a", "gfx1030"])
    verdict = detection.judge_rocm(library)
    assert verdict.serves == (refusal == "")
    assert verdict.reason == refusal or (verdict.serves and verdict.reason)


def test_a_library_without_its_manifest_is_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    library = Library("cuda", platforms.libraries()[0].path)
    assert detection.judge(library, "a build") == (False, "its manifest, multikv_cuda.json, is missing")


@pytest.mark.parametrize(
    "abi_version, build_id, refusal",
    [
        (detection.ABI_VERSION, "ours", ""),
        (None, "ours", f"built with no ABI version, expected {detection.ABI_VERSION}: reinstall multikv"),
        (10**6, "ours", f"built with ABI version {10**6}, expected {detection.ABI_VERSION}: reinstall multikv"),
        (
            detection.ABI_VERSION,
            "theirs",
            "built from other sources than libmultikv_cpu.so (build theirs, expected ours): reinstall multikv",
        ),
        (
            detection.ABI_VERSION,
            "",
            "built from other sources than libmultikv_cpu.so (build unknown, expected ours): reinstall multikv",
        ),
    ],
)
def test_a_library_of_another_build_is_refused(abi_version, build_id, refusal):
    path = platforms.libraries()[0].path
    library = Library("cuda", path, architectures=["80"], abi_version=abi_version, build_id=build_id)
    assert detection.build_refusal(library, "ours") == refusal


def test_platform_cpu_loads_no_gpu_library():
    platform, cpu, cuda, rocm = output_of(PRINT_PLATFORM, MULTIKV_PLATFORM="cpu").splitlines()
    assert platform == "cpu"
    assert cpu.startswith("cpu: loaded: ")
    assert (cuda, rocm) == ("cuda: not loaded: MULTIKV_PLATFORM=cpu", "rocm: not loaded: MULTIKV_PLATFORM=cpu")


def test_platform_auto_is_the_default():
    assert output_of(PRINT_PLATFORM, MULTIKV_PLATFORM="auto") == output_of(PRINT_PLATFORM)


def test_import_leaves_the_gpu_alone():
    """A process that forks after the import can still use the GPU in its children."""
    assert output_of("import multikv, torch; print(torch.cuda.is_initialized())") == "False"


def test_import_leaves_torch_as_it_was():
    code = """
import torch
state = lambda: (torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist())
before = state()
import multikv
print(state() == before)
"""
    assert output_of(code) == "True"


def test_check_indices_from_the_environment(gpu):
    code = """
import torch, multikv
cache, x, one = torch.zeros(1, 2, 1, 8, device="cuda"), torch.ones(1, 1, 8, device="cuda"), torch.ones(1, device="cuda")
try:
    multikv.reshape_and_cache_flash(x, x, cache, cache.clone(), torch.tensor([2], device="cuda"), "auto", one, one)
    print("no error")
except IndexError as error:
    print(error)
"""
    assert output_of(code) == "no error"
    assert output_of(code, MULTIKV_CHECK_INDICES="0") == "no error"
    assert output_of(code, MULTIKV_CHECK_INDICES="1") == (
        "reshape_and_cache_flash: slot_mapping[0]: expected a slot below 2, got 2"
    )
