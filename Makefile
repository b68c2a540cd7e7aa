# `make` alone lists what can be made. Everything happens in .venv beside this file.
.DEFAULT_GOAL := help
.PHONY: help demo dev test test-slow check fuzz bench docs vectors clean

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: needs Python >= 3.11 with venv; install python3.11 and python3.11-venv, or give PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Two stamps: what is needed to use privfr, and what is needed to develop it.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing privfr into $(VENV) (PyTorch is large: a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.developed: pyproject.toml $(VENV)/.installed
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['dev'], sep='\n')" \
	| $(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement /dev/stdin
	@touch $@

demo: $(VENV)/.installed ## install and train on synthetic faces, 8 clients, about a minute
	$(BIN)/privfr run

dev: $(VENV)/.developed ## install with everything that development needs

test: dev ## run the tests, all but the slow ones
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: dev ## run the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'slow or not slow'

check: dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: dev ## look for inputs that break the protocol, for ten minutes (Linux on x86-64)
	$(BIN)/python tests/fuzz/run.py --seconds 600

bench: dev ## run the benchmarks that take minutes; benchmarks/README.md tells of the others
	$(BIN)/python -m benchmarks.aggregation_core

docs: dev ## bring generated pages up to date and run every example in the documents
	$(BIN)/python docs/diagram.py
	$(BIN)/python -m pytest tests/docs

vectors: dev ## regenerate the test vectors of the protocols
	$(BIN)/python tests/vectors/generate.py

clean: ## remove .venv and what tools leave behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
