# Each target does all of its own set-up: `make quickstart` or `make test` on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help quickstart test test-all format clean

help:
	@echo 'make quickstart  install into .venv, collect a pixel task, train FQL on it, evaluate'
	@echo 'make test        install into .venv, lint, check types, run the tests'
	@echo 'make test-all    run also the tests that take minutes'
	@echo 'make format      format the code'
	@echo 'make clean       remove .venv'

quickstart: $(VENV)/installed
	$(BIN)/fql quickstart

test: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -m 'not long'

test-all: $(VENV)/installed-test
	$(PYTEST)

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'fql needs Python 3.11 to 3.13: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing into $(VENV) (some 2.8 GB; a minute or two) ...'
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing into $(VENV) (some 2.8 GB; a minute or two) ...'
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/installed
