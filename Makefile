# `make run` and `make test` install everything they need into .venv; Python 3.11 or later is required.

PYTHON ?= python3
CONFIG ?= preqn_ant
ARGS ?=
BIN := .venv/bin
RECENT = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "error: $(PYTHON) is older than Python 3.11; name a later one: make PYTHON=python3.12"; exit 2; }

.PHONY: run test test-fast check pytest bench peers docs examples dist clean

run: .venv/installed
	$(BIN)/python -m experiments.run --config=$(CONFIG) $(ARGS)

# Most tests compile with few optimizations, and XLA's fusion emitters then take a large part of their time. Without
# them, programs that compute the same in two ways do not always agree bit for bit; such tests run with XLA's own flags.
QUICK := XLA_FLAGS=--xla_cpu_use_fusion_emitters=false

test: check
	$(QUICK) $(BIN)/python -m pytest -m "not bitwise"
	$(BIN)/python -m pytest -m bitwise $$(grep --recursive --files-with-matches --include='*.py' mark.bitwise tests)

# For the inner loop: without the tests of whole programs, of training, and of everything that takes long to compile.
test-fast: .venv/installed-dev
	$(QUICK) $(BIN)/python -m pytest -m "not slow and not bitwise" $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: .venv/installed-dev
	$(BIN)/python -m pytest $(ARGS)

bench: .venv/installed
	$(BIN)/python -m benchmarks.update $(ARGS)

# In the environment of the examples, which has SBX; the program restricts itself to one core.
peers: .venv-examples/installed
	.venv-examples/bin/python -m benchmarks.peers $(ARGS)

docs: .venv/installed-docs
	$(BIN)/python -m mkdocs build --strict

# Separate virtual environment: the example host libraries need packages that preqn_jax does not.
examples: .venv-examples/installed
	REQUIRE_HOSTS=1 .venv-examples/bin/python -m pytest --override-ini=addopts=--import-mode=importlib -q tests/test_examples.py $(ARGS)

# Builds in one virtual environment, then installs and imports the wheel in an empty one, outside the checkout.
dist:
	@$(RECENT)
	rm -rf dist
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	.venv-dist/bin/python -m build
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && ../.venv-dist/bin/python -c 'import importlib.metadata, preqn_jax; \
	  assert {"LICENSE", "py.typed"} <= {file.name for file in importlib.metadata.files("preqn_jax")}'

clean:
	rm -rf .venv .venv-examples .venv-dist dist

.venv/installed: requirements.txt constraints.txt
	@$(RECENT)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

.venv-examples/installed: requirements.txt constraints.txt setup.py pyproject.toml
	@$(RECENT)
	$(PYTHON) -m venv .venv-examples
	.venv-examples/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[examples]' pytest
	touch $@
