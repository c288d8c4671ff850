# The two commands of the README: `make demo` shows the main job, `make test` checks it.  Both may be run again at
# any time; what is already installed is not installed again.  PYTHON=python3.12 and VENV=/path choose interpreter and place.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
SOURCES := pyproject.toml setup.cfg constraints.txt
# Test files run side by side, one thread each; `make test WORKERS=0` runs them one by one in one process.
WORKERS ?= 2
DEMO_CHARACTER ?= examples/characters/bottle.png
DEMO_VIDEO ?= out/demo.mp4

.DEFAULT_GOAL := help
.PHONY: help demo install install-dev test test-long lint format clean

help:
	@echo "make demo    install what the main job needs into $(VENV) and animate an example character"
	@echo "make test    install the rest, then lint, types and tests"
	@echo "make test-long  the same with the tests that take minutes each"
	@echo "make lint    ruff and mypy only"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove what was built ($(VENV) stays; remove it by hand)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "animx needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Run: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "== making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no venv module. Run: apt install python3-venv" >&2; exit 1; }

# The extra `offline` is mediapipe with its models inside; its marker leaves it out on Python 3.13, and where there is no
# wheel for the platform the base is installed without it.
$(VENV)/.base: $(SOURCES) | $(BIN)/python
	@echo "== installing animx and a pose detector that needs no download (about a minute)"
	@$(PIP) -e '.[offline]' || { echo "== no mediapipe for this platform; installing without it"; $(PIP) -e .; }
	@$(BIN)/python -c 'import cv2' || \
	  { echo "OpenCV lacks system libraries. Run: apt install libgl1 libglib2.0-0" >&2; exit 1; }
	@touch $@

# torch first and alone: what an index calls the same version may be a build for another device, and the libraries that
# need it must take the one that is there.
$(VENV)/.dev: $(SOURCES) $(VENV)/.base
	@echo "== installing the rest: torch (alone, first), then the full model, training, kernels, tests, lint, types, ONNX pose backend"
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev,pose,model,kernels,train]'
	@touch $@

install: $(VENV)/.base

install-dev: $(VENV)/.dev

demo: $(VENV)/.base
	@mkdir -p $(dir $(DEMO_VIDEO))
	@if $(BIN)/python -c 'import mediapipe' 2>/dev/null; then drive=examples/dance.mp4; else drive=examples/dance.pose.npz; \
	  echo "== no pose detector on this Python: driving with examples/dance.pose.npz"; fi; \
	  echo "== animx render $(DEMO_CHARACTER) $$drive -o $(DEMO_VIDEO)"; \
	  $(BIN)/animx render $(DEMO_CHARACTER) $$drive -o $(DEMO_VIDEO) --overwrite
	@echo
	@echo "The video: $(abspath $(DEMO_VIDEO))"
	@echo "Go on with:  source $(BIN)/activate   and then   animx render YOUR_PICTURE.png YOUR_DANCE.mp4"
	@echo "(or without activating: $(BIN)/animx ...)"

lint: $(VENV)/.dev
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

test: lint
	@echo "== pytest, $(WORKERS) files at a time"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-long: lint
	@echo "== pytest, also what takes minutes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --long -n $(WORKERS) --dist loadfile

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format .

clean:
	rm -rf build dist out animx.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find animx kernels trainer tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
