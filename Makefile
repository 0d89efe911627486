# On a machine with make and Python 3.11 or later, `make run` and `make test` need nothing else.

# The first of these that is new enough; `make PYTHON=/path/to/python3 ...` uses another.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,$(CANDIDATES),$(shell $(python) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(python))))

# For instance `make PIP_FLAGS=--verbose run`, or the address of an index that has CPU builds of torch.
PIP_FLAGS ?= --quiet

VENV := .venv
BIN := $(VENV)/bin
# The build tool is pinned like everything else, which pip does only for builds in the environment itself.
INSTALL := $(BIN)/python -m pip install $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-all lint bench clean

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/run.stamp ## Make an environment, install, analyse Llama-7B
	$(BIN)/python model_training_cost_analysis.py --model_config llama_7b_config.json
	@printf '\n%s\n' 'To go on, activate the environment; then these work as typed:'
	@printf '    %s\n' '. $(BIN)/activate' \
	    'python3 model_training_cost_analysis.py --model_config llama_3_8b --gpus H100,B200' \
	    'python3 model_training_cost_analysis.py --help'

test: $(VENV)/test.stamp ## The tests, in the same environment
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/test.stamp ## All tests, and sweeps over many random shapes
	$(BIN)/python -m pytest -n auto --dist worksteal -m "sweep or not sweep"

lint: $(VENV)/dev.stamp ## Style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/run.stamp ## Time and memory, as ratios to "import torch"
	$(BIN)/python tests/benchmark.py

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What to install, stamped with what it was installed from: a second `make` installs nothing.
$(VENV)/run.stamp: TARGET := .
$(VENV)/test.stamp: TARGET := .[test]
$(VENV)/dev.stamp: TARGET := .[dev]

$(VENV)/run.stamp $(VENV)/test.stamp $(VENV)/dev.stamp: $(VENV)/made.stamp $(PINS)
	@echo "Installing $(TARGET) into $(VENV) (the first time takes a minute or more) ..."
	@$(INSTALL) --no-build-isolation --editable '$(TARGET)'
	@touch $@

$(VENV)/made.stamp:
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	    echo "Python 3.11 or later with its venv module is needed; '$(or $(PYTHON),python3)' is not that." >&2; \
	    echo "Install it (on Debian and Ubuntu: python3 and python3-venv), or: make PYTHON=/path/to/python3 run" >&2; \
	    exit 1; }
	@'$(PYTHON)' -m venv --clear $(VENV)
	@$(INSTALL) setuptools
	@touch $@
