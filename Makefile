# `make` alone says what there is. Everything happens in .venv, nothing outside of this directory.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The virtual environment is as new as what it was made from.
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format bench soak clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP)  ## writer, reader and page on this machine
	@$(BIN)/sidecar demo

test: $(STAMP)  ## all tests but the soaks; ARGS="-k torn" for some of them
	$(PYTEST) $(ARGS)

test-all:  ## the tests under every Python of 3.11, 3.12, 3.13 that is here
	@tools/test-all $(ARGS)

lint: $(STAMP)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## bring the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure, and compare with the field
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(STAMP)  ## the tests that take minutes
	$(PYTEST) -m soak --timeout=1800 $(ARGS)

clean:  ## remove what these commands have made
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml tools/venv
	@tools/venv $(PYTHON) $(VENV)
	@touch $@
