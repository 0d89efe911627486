# `make run` and `make test` require only make, Python 3.11 or later, and access to a package index.

# The first of these that is Python 3.11 or later is used; `make PYTHON=/path/to/python3 ...` uses another.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,$(CANDIDATES),$(shell $(python) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(python))))

# For example `make PIP_FLAGS=--verbose run`, or the URL of an index with CPU builds of torch.
PIP_FLAGS ?= --quiet

VENV := .venv
BIN := $(VENV)/bin
# --no-build-isolation below: pip applies these pins to the build tool only if it builds in the environment itself.
INSTALL := $(BIN)/python -m pip install $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-all lint bench figures clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/run.stamp ## Create an environment, install, analyse Llama-7B
	$(BIN)/python model_training_cost_analysis.py --model_config llama_7b_config.json
	@printf '\n%s\n' 'To go on, activate the environment; then these work as typed:'
	@printf '    %s\n' '. $(BIN)/activate' \
	    'python3 model_training_cost_analysis.py --model_config llama_3_8b --gpus H100,B200' \
	    'python3 model_training_cost_analysis.py --help'

test: $(VENV)/test.stamp ## Run the tests in the same environment
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/test.stamp ## Run all tests, including sweeps over many random shapes
	$(BIN)/python -m pytest -n auto --dist worksteal -m "sweep or not sweep"

lint: $(VENV)/dev.stamp ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/run.stamp ## Measure time and memory, as ratios to "import torch", and a step against its prediction
	$(BIN)/python tests/benchmark.py

figures: $(VENV)/test.stamp ## Draw the pictures of README and docs again
	$(BIN)/python model_training_cost_analysis.py --compare --model_config deepseek_v3 llama_3_1_405b --tokens 15T --gpus H100 --figure docs/figures/comparison.svg --force
	$(BIN)/python model_training_cost_analysis.py --model_config llama_3_2_1b --seq_len 4096 --micro_batch_size 2 --gpus L40S --figure docs/figures/memory.svg --force
	$(BIN)/python model_training_cost_analysis.py --training_budget 5M --gpus H100 --figure docs/figures/law.svg --force

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file per target records the installation, so a second `make` installs nothing.
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
