# `make` alone says what there is. Everything happens in .venv, nothing outside of this directory.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The virtual environment is as new as what it was made from: with what sidecar runs on, and with the tools of the tests, too.
RUNTIME := $(VENV)/.runtime
STAMP   := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-next lint format bench soak mutants image image-size chart lock sbom audit docs release-check clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUNTIME)  ## writer and reader on this machine
	@$(BIN)/sidecar demo

test: $(STAMP)  ## all tests but the soaks; ARGS="-k torn" for some of them
	@tools/test $(ARGS)

test-all:  ## the tests under every Python of 3.11, 3.12, 3.13 that is here
	@tools/test-all $(ARGS)

test-next:  ## the tests with the newest dependencies, pre-releases included, to see what will break
	@tools/test-next $(ARGS)

lint: $(STAMP)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## bring the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure, and compare with the field
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(STAMP)  ## the tests that take minutes
	$(PYTEST) -m soak --timeout=1800 $(ARGS)

# What builds and runs it: podman, or ENGINE=docker. BASE is another base image, BUILD are options for the build.
ENGINE ?= podman
IMAGE  ?= localhost/sidecar:0.2.0

image:  ## build the image; BASE=…, EXTRAS=sign, ENGINE=docker, IMAGE=…
	$(ENGINE) build $(BUILD) $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(EXTRAS),--build-arg EXTRAS="$(EXTRAS)") \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) --tag $(IMAGE) .

image-size:  ## print how large the image is, and how long its start takes
	@ENGINE=$(ENGINE) tools/image-size $(IMAGE)

mutants: $(STAMP)  ## plant known faults one by one, and see whether tests notice; ARGS="token" for some of them
	@$(BIN)/python tests/mutants/run.py $(ARGS)

chart: $(STAMP)  ## make the chart's schema and table of values from values.yaml
	$(BIN)/python charts/generate.py

lock: $(STAMP)  ## lock what the image is made of, by version and hash
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile $(LOCK) --allow-unsafe --output-file image/build.txt image/build.in
	$(BIN)/pip-compile $(LOCK) --extra schema --extra logs --output-file image/requirements.txt pyproject.toml
	$(BIN)/pip-compile $(LOCK) --constraint image/requirements.txt --output-file image/sign.txt image/sign.in

LOCK := --quiet --upgrade --generate-hashes --strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

sbom: $(STAMP)  ## write what the image is made of as CycloneDX, to dist/sidecar.cdx.json
	@mkdir -p dist
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
		--output-file dist/sidecar.cdx.json image/requirements.txt

audit: $(STAMP)  ## look for known vulnerabilities of the Python packages in the image; asks the index for its advisories
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --vulnerability-service pypi --requirement image/requirements.txt

docs: $(STAMP)  ## build the site into build/site, and check every link in it; ARGS="serve" to look at it while you write
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --quiet)

release-check: $(STAMP)  ## build wheel, source archive, chart, bill of materials and checksums into dist, and install each
	@$(BIN)/python tools/release-check $(ARGS)

clean:  ## remove what these commands have made
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): pyproject.toml image/requirements.txt tools/venv
	@tools/venv $(PYTHON) $(VENV) schema,logs
	@touch $@

$(STAMP): pyproject.toml image/requirements.txt tools/venv
	@tools/venv $(PYTHON) $(VENV) schema,logs,test
	@touch $(RUNTIME) $@
