# `make demo` sets up everything and does the main job; `make test` sets up and tests everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed

.PHONY: help install demo test test-quick test-long coverage hostile lint bench screenshots lock clean

help:
	@echo "make demo [ONCE=1]    see it work: a sandbox forge, two recipes, a comment, an answer"
	@echo "make test             linters, types, import rules, and the tests on SQLite and PostgreSQL"
	@echo "make test-long        the longer forms: crash test with 200 pull requests, more examples"
	@echo "make coverage         which lines the tests reach, 90 % at least"
	@echo "make hostile          what a stranger could try, tried on this machine, as a table"
	@echo "make bench            measure: requests, delays"
	@echo "make screenshots      retake the pictures in docs/"
	@echo "make install          only make the virtual environment ($(VENV))"

install: $(DONE)

$(DONE): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Type: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make install PYTHON=python3.11"; exit 1; }
	@echo "Installing packages …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	@$(BIN)/python -m runs.demo $(if $(ONCE),--once)

lint: install
	@$(BIN)/python -m tests.everything --only lint

test: install
	@$(BIN)/python -m tests.everything

test-quick: install
	@$(BIN)/python -m tests.everything --quick

test-long: install
	@$(BIN)/python -m tests.everything --long

coverage: install
	@$(BIN)/python -m tests.everything --coverage

hostile: install
	@$(BIN)/python -m tests.hostile $(if $(WRITE),--write)

bench: install
	@$(BIN)/python -m tests.bench

screenshots: install
	@$(BIN)/python -m tests.browser.screenshots

# Exact versions of what is installed now, names and versions only.
lock: install
	@$(BIN)/pip freeze --exclude-editable --exclude cc-ci | grep -v '^-e' > requirements.lock

clean:
	rm -rf $(VENV) var/demo .mypy_cache .ruff_cache .hypothesis
