# Two commands set up everything on a machine with Python 3.11+ and make:
#   make quickstart   generate data, train, evaluate, report (output/quickstart/report.html)
#   make test         the tests
# and `make demo` opens a page to try the quickstart's model on (http://127.0.0.1:7860)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST ?= .venv-oldest
OLDEST_INSTALLED := $(OLDEST)/.installed

.PHONY: install quickstart quickstart-base demo test test-slow test-oldest bench checks format clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python run_scripts/quickstart/quickstart.py --output output/quickstart

quickstart-base: $(INSTALLED)
	$(BIN)/python run_scripts/quickstart/make_base.py --output output/quickstart-base

demo: $(INSTALLED)
	$(BIN)/python app.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu"

# The models on the oldest versions that setup.py allows, in an environment of their own (Python 3.11 or 3.12; a slow job). Not
# the two-process tests: torch 2.6 hangs now and then in destroy_process_group of gloo, when all is computed.
test-oldest: $(OLDEST_INSTALLED)
	$(OLDEST)/bin/python -m pytest -m "not gpu" tests/models --ignore tests/models/test_distributed.py

$(OLDEST_INSTALLED): requirements-oldest.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed for torch 2.6, this is " + sys.version.split()[0] + "; try make test-oldest PYTHON=python3.11")'
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Ours beside the published way of computing, at most 12 minutes of an idle machine: writes benchmarks/results.json and the table
# of README.md. On a GPU: python -m benchmarks.gpu
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run --save

checks: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf output build dist *.egg-info
