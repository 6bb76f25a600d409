# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv and install into it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-slow dev lint types layers unit docs bench clean help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed-analysis  ## install, then embed, annotate and draw real cells with the shipped model
	$(BIN)/scfm demo

test: lint types layers unit  ## install, lint, type check, layering, tests

test-slow: $(VENV)/.installed-dev  ## the heavy tests
	$(BIN)/python -m pytest -q -m "slow and not gpu" -n 2

dev: $(VENV)/.installed-dev  ## install for development (again after adding an adapter: entry points are read at install time)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2

docs: $(VENV)/.installed-dev  ## build docs/_build/index.html; a warning fails it
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

BENCH    ?= /tmp/scfm-bench
ORIGINAL ?=
SHARED   ?= ../shared

bench: $(VENV)/.installed-dev  ## measure everything and rewrite docs/performance.md (hours; ORIGINAL=python of the originals' environment)
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/geneformer_speed.py
	$(BIN)/python benchmarks/memory.py --folder $(BENCH)
	$(BIN)/python benchmarks/inexact.py
	$(BIN)/python benchmarks/distill.py --shared $(SHARED)
	$(BIN)/python benchmarks/make_inputs.py --shared $(SHARED) --out $(BENCH) --cells 64 8192
	test -z "$(ORIGINAL)" || $(BIN)/python benchmarks/scgpt_speed.py --inputs $(BENCH) --original-python $(ORIGINAL) --rounds 2
	$(BIN)/python benchmarks/report.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scfm needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-analysis: $(BIN)/python pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[analysis]'
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	touch $@

clean:  ## remove what was built
	rm -rf $(VENV) build dist demo docs/_build docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache
