# Everything happens in .venv, in this checkout; outside are only the cache of the built Horovod
# wheel, in $XDG_CACHE_HOME/slowmo_hvd or ~/.cache/slowmo_hvd, and pip's own cache.

# The Python that .venv is made with.
PYTHON ?= python3
# Which tests to run, in pytest's terms; all of them when empty.
TESTS ?=

VENV := .venv
BIN := $(VENV)/bin
# matplotlib would make a folder in the user's home.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/.matplotlib

# The package index's torch for Linux on x86_64 brings gigabytes of CUDA with it. Where there is no
# NVIDIA GPU, take PyTorch's own CPU build: '+cpu' in the version means that pip finds that build or
# fails, and never falls back to the other. Elsewhere (aarch64, macOS) the index's torch is a CPU
# build, and with a GPU its CUDA is wanted. `make TORCH='torch==...'` says otherwise.
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -sm),Linux x86_64)
ifneq ($(shell nvidia-smi -L 2>/dev/null | grep -c GPU),0)
TORCH ?= torch==$(TORCH_VERSION)
else
TORCH ?= --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH_VERSION)+cpu
endif
else
TORCH ?= torch==$(TORCH_VERSION)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint bench clean

help:
	@echo 'make demo    set everything up, train on real data with 2 workers, print the comparison'
	@echo 'make test    set everything up, check the style, run the tests under horovodrun'
	@echo '             (TESTS=tests/core runs a part of them)'
	@echo 'make lint    check the style and the types'
	@echo 'make bench   set everything up, run the benchmarks'
	@echo 'make setup   set everything up in .venv: torch, this package, Horovod built for them'
	@echo 'make clean   remove .venv'
	@echo "Variables: PYTHON=python3.12, TORCH='torch==2.13.0' (which torch pip is to install)"

setup: $(VENV)/.horovod

# The tools are looked for first, so that a missing compiler is known before anything is downloaded.
$(VENV)/.packages: pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	    { echo 'make: no $(PYTHON) found: apt-get install python3 python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'make: this Python cannot make environments: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m slowmo_hvd.build_horovod --tools
	$(PYTHON) -m venv $(VENV)
	@# Without its requirements, which come from the usual index with the next line's.
	$(BIN)/python -m pip install --no-deps $(TORCH) || { echo "make: cannot install torch:" \
	    "say which one pip is to install with make TORCH='torch==VERSION'" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet torch --editable '.[dev]'
	@touch $@

$(VENV)/.horovod: $(VENV)/.packages $(wildcard slowmo_hvd/build_horovod/*.py)
	$(BIN)/python -m slowmo_hvd.build_horovod
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

# The whole suite on two ranks; then what needs one rank, three or four.
RUN := $(BIN)/horovodrun --gloo --disable-cache
PYTEST = $(CURDIR)/$(BIN)/pytest $(TESTS)
test: setup lint
	$(RUN) -np 2 $(PYTEST)
	$(PYTEST) -m ranks
	$(RUN) -np 3 $(PYTEST) -m ranks
	$(RUN) -np 4 $(PYTEST) -m ranks

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)
