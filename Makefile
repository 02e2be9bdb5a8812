# Each target does all of its own set-up: `make quickstart` or `make test` on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10
QUICK := $(addprefix tests/,test_layout.py test_docs.py encoders parity/test_numpy.py data_pipeline/test_files.py \
	data_pipeline/store data_pipeline/test_source_split.py fql/settings/test_config.py fql/envs/test_tasks.py)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help quickstart lint check test test-all format clean

help:
	@echo 'make quickstart  install into .venv, collect a pixel task, train FQL on it, evaluate'
	@echo 'make check       install into .venv, lint, check types, run the quick tests'
	@echo 'make test        the same with all tests but those that take minutes'
	@echo 'make test-all    run also the tests that take minutes'
	@echo 'make format      format the code'
	@echo 'make clean       remove .venv'

quickstart: $(VENV)/installed
	$(BIN)/fql quickstart

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: lint
	$(PYTEST) -m 'not long' $(QUICK)

test: lint
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
