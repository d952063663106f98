# `make run` and `make test` set up all they need in .venv, from a bare Python 3.11 or later.

PYTHON ?= python3
CONFIG ?= preqn_ant
ARGS ?=
BIN := .venv/bin

.PHONY: run test check pytest bench docs clean

run: .venv/installed
	$(BIN)/python -m experiments.run --config=$(CONFIG) $(ARGS)

test: check pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: .venv/installed-dev
	$(BIN)/python -m pytest $(ARGS)

bench: .venv/installed
	$(BIN)/python -m experiments.benchmark_update $(ARGS)

docs: .venv/installed-docs
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a later one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
