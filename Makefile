# Everything happens in .venv, in this checkout; outside are only the cache of the built Horovod
# wheel, in $XDG_CACHE_HOME/slowmo_hvd or ~/.cache/slowmo_hvd, and pip's own cache.

# The Python that .venv is made with.
PYTHON ?= python3
# Which tests to run, in pytest's terms; all of them when empty.
TESTS ?=
# Of large matrices so many cases that all settings meet in pairs; `make test-all` takes them all.
CASES :=

VENV := .venv
BIN := $(VENV)/bin
# matplotlib and Keras would make folders in the user's home, and Keras read its settings there.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/.matplotlib
export KERAS_HOME := $(CURDIR)/$(VENV)/.keras
# horovodrun imports TensorFlow to see what it is built with, and that has much to say.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# The package index's torch for Linux on x86_64 brings gigabytes of CUDA with it. Where there is no
# NVIDIA GPU, take PyTorch's own CPU build: '+cpu' in the version means that pip finds that build or
# fails, and never falls back to the other. Elsewhere (aarch64, macOS) the index's torch is a CPU
# build, and with a GPU its CUDA is wanted. `make TORCH='torch==...'` says otherwise.
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(shell uname -sm),Linux x86_64)
ifneq ($(GPUS),0)
TORCH ?= torch==$(TORCH_VERSION)
else
TORCH ?= --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH_VERSION)+cpu
endif
else
TORCH ?= torch==$(TORCH_VERSION)
endif

# tensorflow-cpu, for Linux on x86_64 alone, is the smaller wheel, with no CUDA in it. Where there is
# an NVIDIA GPU, TensorFlow and its tests are left out, since beside it Horovod is built without NCCL:
# `make TENSORFLOW=tensorflow-cpu` takes it in.
TENSORFLOW_VERSION := 2.21.0
ifneq ($(GPUS),0)
TENSORFLOW ?=
else ifeq ($(shell uname -sm),Linux x86_64)
TENSORFLOW ?= tensorflow-cpu==$(TENSORFLOW_VERSION)
else
TENSORFLOW ?= tensorflow==$(TENSORFLOW_VERSION)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two runs at once would share the cores.
.NOTPARALLEL:
.PHONY: help setup demo docs docs-serve test test-all test-torch test-tensorflow lint bench clean

help:
	@echo 'make demo    set everything up, train on real data with 2 workers, print the comparison'
	@echo 'make test    set everything up, check the style, run the tests under horovodrun'
	@echo '             (TESTS=tests/core runs a part of them; make test-torch and'
	@echo '             make test-tensorflow run those of one framework)'
	@echo 'make test-all  the same with every case of the large matrices, of which make test takes so'
	@echo '             many that each optimizer, strategy, dtype and fault is met, and all pairs'
	@echo 'make lint    check the style and the types'
	@echo 'make docs    build the site from docs/ into site/; make docs-serve shows it'
	@echo 'make bench   set everything up, run the benchmarks'
	@echo 'make setup   set everything up in .venv: torch, TensorFlow, this package, Horovod for both'
	@echo 'make clean   remove .venv'
	@echo "Variables: PYTHON=python3.12, TORCH='torch==$(TORCH_VERSION)' (what pip is to install),"
	@echo "TENSORFLOW='tensorflow==$(TENSORFLOW_VERSION)' (likewise; none if empty)"

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
ifneq ($(TENSORFLOW),)
	$(BIN)/python -m pip install --no-deps $(TENSORFLOW) || { \
	    echo "make: cannot install TensorFlow: say which one pip is to install with make" \
	    "TENSORFLOW='tensorflow==VERSION', or leave it out with make TENSORFLOW=" >&2; exit 1; }
endif
	$(BIN)/python -m pip install torch $(TENSORFLOW) --editable '.[dev]'
	@touch $@

$(VENV)/.horovod: $(VENV)/.packages $(wildcard slowmo_hvd/build_horovod/*.py)
	$(BIN)/python -m slowmo_hvd.build_horovod
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

# A framework runs those of the paths in TESTS that are its own. With no path, both run TESTS.
PATHS := $(filter-out tests/,$(filter tests/%,$(TESTS)))
PATHS_TF := $(filter tests/tensorflow tests/tensorflow/%,$(PATHS))
PATHS_TORCH := $(filter-out $(PATHS_TF),$(PATHS))
ifeq ($(PATHS),)
FRAMEWORKS := torch $(if $(TENSORFLOW),tensorflow)
else
FRAMEWORKS := $(if $(PATHS_TORCH),torch) $(if $(PATHS_TF),tensorflow)
endif
test: setup lint docs $(FRAMEWORKS:%=test-%)
test-all: CASES := --all-cases
test-all: test

# The framework's whole suite on two ranks; then what needs one rank, three or four, which a part of
# the suite may lack. Four ranks of TensorFlow take a minute on two cores: `make test-all` has them.
RUN := $(BIN)/python tests/horovodrun.py --gloo --disable-cache
PYTEST := $(CURDIR)/$(BIN)/pytest
ON_RANKS := -m ranks $(if $(TESTS),--none-is-fine)
test-torch: WHAT = --framework torch $(CASES) \
    $(if $(PATHS_TORCH),$(filter-out $(PATHS_TF),$(TESTS)),$(TESTS))
test-tensorflow: WHAT = --framework tensorflow $(CASES) \
    $(if $(PATHS_TF),$(filter-out $(PATHS_TORCH),$(TESTS)),$(TESTS))
test-torch: FOUR = yes
test-tensorflow: FOUR = $(CASES)
test-torch test-tensorflow: setup
	$(RUN) -np 2 $(PYTEST) $(WHAT)
	$(PYTEST) $(WHAT) $(ON_RANKS)
	$(RUN) -np 3 $(PYTEST) $(WHAT) $(ON_RANKS)
	$(if $(FOUR),$(RUN) -np 4 $(PYTEST) $(WHAT) $(ON_RANKS))

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# It says that its successor, Zensical, reads the same mkdocs.yml; that is known.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.packages
	$(BIN)/mkdocs build --strict --quiet
docs-serve: $(VENV)/.packages
	$(BIN)/mkdocs serve

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)
