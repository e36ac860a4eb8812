# Every target works on a bare machine with python3.12 or python3.11; `make env` builds what the others need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := $(shell for p in python3.12 python3.11; do $$p -c 'import venv' 2>/dev/null && { command -v $$p; break; }; done)
UV := $(shell command -v uv)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements/platform.lock requirements/training.lock requirements/dev.lock
HOST ?= 127.0.0.1
PORT ?= 9000
WORKERS ?= 1

UNITS := .venv-units
UNITS_STAMP := $(UNITS)/.installed
CHECKS := .venv-manifests
CHECKS_STAMP := $(CHECKS)/.installed

.PHONY: help env units run test lint validate kind kind-down e2e e2e-full bench bench-batch soak lock clean

help: ## Show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s%s\n", $$1, $$2}'

env: $(STAMP) ## Make .venv from the hashed locks (again only when a lock changed)

$(STAMP): $(LOCKS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "python3.12 or python3.11 (with venv) is needed; install one and try again" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)$(if $(UV), through uv,)"
	@rm -rf $(VENV)
ifneq ($(UV),)
	@uv venv --quiet --python $(PYTHON) $(VENV)
	@uv pip install --quiet --python $(BIN)/python --require-hashes $(LOCKS:%=-r %)
	@uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes $(LOCKS:%=-r %)
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $@

units: $(UNITS_STAMP) ## Make .venv-units, the environment of the Seldon-wrapped units

$(UNITS_STAMP): requirements/units.lock
	@test -n "$(PYTHON)" || { echo "python3.12 or python3.11 (with venv) is needed; install one and try again" >&2; exit 1; }
	@echo "making $(UNITS) with $(PYTHON)$(if $(UV), through uv,)"
	@rm -rf $(UNITS)
ifneq ($(UV),)
	@uv venv --quiet --python $(PYTHON) $(UNITS)
	@uv pip install --quiet --python $(UNITS)/bin/python --require-hashes -r requirements/units.lock
else
	@$(PYTHON) -m venv $(UNITS)
	@$(UNITS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/units.lock
endif
	@touch $@

$(CHECKS_STAMP): requirements/manifests.lock
	@test -n "$(PYTHON)" || { echo "python3.12 or python3.11 (with venv) is needed; install one and try again" >&2; exit 1; }
	@echo "making $(CHECKS) with $(PYTHON)$(if $(UV), through uv,)"
	@rm -rf $(CHECKS)
ifneq ($(UV),)
	@uv venv --quiet --python $(PYTHON) $(CHECKS)
	@uv pip install --quiet --python $(CHECKS)/bin/python --require-hashes -r requirements/manifests.lock
else
	@$(PYTHON) -m venv $(CHECKS)
	@$(CHECKS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/manifests.lock
endif
	@touch $@

run: env ## Serve champion and challenger on http://127.0.0.1:9000 (PORT=, WORKERS=, HOST=)
	@$(BIN)/contender serve manifests/base/seldondeployment.yaml --host $(HOST) --port $(PORT) --workers $(WORKERS)

test: env units lint ## Check everything: lint, types, import contracts, tests
	@$(BIN)/pytest $(ARGS)

lint: env ## Check format, lint, types, import contracts, manifests
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/contender lint manifests/base/*.yaml

validate: env $(CHECKS_STAMP) ## Check the Dockerfile and every overlay offline (needs kubectl; promtool where there is one)
	@manifests/validate $(CHECKS)/bin $(BIN)/python

kind: ## Contender on a kind cluster, from nothing (needs docker, kind, kubectl, helm)
	@manifests/kind/up

kind-down: ## Delete that cluster, its ledger included
	@manifests/kind/down

e2e: env ## Test what `make kind` made: answers, split, share, panels
	@$(BIN)/pytest tests/cluster -m "not drill" $(ARGS)

e2e-full: env ## The same and more: pods rolled and killed, a node drained, PostgreSQL and the API server stopped
	@$(BIN)/pytest tests/cluster $(ARGS)

bench: env units ## Measure every way to serve, side by side (needs wrk; ARGS=--quick for two minutes)
	@command -v wrk >/dev/null || { echo "wrk is needed: apt-get install wrk" >&2; exit 1; }
	@$(BIN)/python -m bench $(ARGS)

bench-batch: env ## Compare `contender predict` with a pandas script on a million devices
	@$(BIN)/python -m bench.batch --output bench/results/batch.json

MINUTES ?= 30
soak: env ## Steady load for MINUTES=30, then exact counters and flat memory
	@$(BIN)/python bench/soak.py --minutes $(MINUTES)

# A lock holds hashes and no registry's name; it is made for Linux with python 3.11 and serves 3.12 as well.
COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform linux --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --upgrade
lock: env ## Resolve requirements/*.in again into hashed locks
	@cd requirements && export PATH=$(abspath $(BIN)):$$PATH && C="$(COMPILE:$(BIN)/%=%)" && \
		$$C platform.in -o platform.lock && \
		$$C training.in -c platform.lock -o training.lock && \
		$$C dev.in -c platform.lock -c training.lock -o dev.lock && \
		$$C units.in -o units.lock && \
		$$C manifests.in -o manifests.lock

clean: ## Remove environments, caches and local state (var/, with its ledger)
	@rm -rf $(VENV) $(UNITS) $(CHECKS) var build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf *.egg-info
