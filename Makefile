# Every target makes what it needs: an environment of its own in $(VENV), once.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?=
READY := $(VENV)/.ready
BIN := $(VENV)/bin
DEVICE_OPTION := $(if $(DEVICE),-device $(DEVICE))

RUFF_OPTIONS := --isolated --line-length 120 --target-version py310
# F722, F821: ruff takes jaxtyping's shapes for forward references; B008: nnU-Net's own signatures
LINT_OPTIONS := --select E,W,F,I,UP,B,SIM,D103,D401,D419,ERA --ignore F722,F821,B008,B905,SIM905 --per-file-ignores 'tests/*:D'
SOURCES := nnunetv2_freetumor plans tests

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-fast check bench study realism clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml nnunetv2_freetumor/_build.py
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip 'setuptools>=64'
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/nnUNetv2_freetumor demo -o demo_output $(DEVICE_OPTION)

# slow tests train networks, one at a time
test: $(READY) test-fast
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow

# two processes of one thread each: several threads in both get in each other's way
test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

check: $(READY)
	$(BIN)/ruff format --check $(RUFF_OPTIONS) $(SOURCES)
	$(BIN)/ruff check $(RUFF_OPTIONS) $(LINT_OPTIONS) $(SOURCES)
	$(BIN)/mypy
	$(MAKE) test-fast

bench: $(READY)
	$(BIN)/nnUNetv2_freetumor bench -o bench_output $(DEVICE_OPTION)

# hours of training: stop it and start it again as you like
study: $(READY)
	$(BIN)/nnUNetv2_freetumor study -o study_output $(DEVICE_OPTION)

# how real planted lesions look, on phantoms of a growth family that no training data hold
realism: $(READY)
	$(BIN)/nnUNetv2_freetumor realism -o realism_output --generators texture lite freetumor_random $(DEVICE_OPTION)

clean:
	rm -rf $(VENV) build dist demo_output bench_output study_output realism_output *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
