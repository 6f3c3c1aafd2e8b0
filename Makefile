# `make demo` sets up everything and does the main job; `make test` sets up and tests everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: help install dev demo test test-quick test-long lint coverage hostile test-real seed bench docs screenshots lock clean

help:         ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1 \t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(INSTALLED)          ## what runs, in a virtual environment (.venv); what is in requirements.lock
dev: $(INSTALLED_DEV)          ## the same, and what tests and tools need (requirements-dev.lock)

$(INSTALLED): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Type: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make install PYTHON=python3.11"; exit 1; }
	@echo "Installing packages …"
	@$(PIP) install -r requirements.lock
	@rm -rf build cc_ci.egg-info  # what `pip install .` leaves behind, and what would be read instead of what is installed
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED) requirements-dev.lock
	@echo "Installing packages for tests and tools …"
	@$(PIP) install -r requirements.lock -r requirements-dev.lock
	@touch $@

demo: install                  ## see it work: a fake forge, three recipes, comments, answers (ONCE=1: check them, and end)
	@$(BIN)/python -m runs.demo $(if $(ONCE),--once)

test: dev                      ## linters, types, import rules, and the tests on SQLite and PostgreSQL
	@$(BIN)/python -m tests.everything

test-quick: dev                ## linters, and the quick part of the tests on SQLite
	@$(BIN)/python -m tests.everything --quick

test-long: dev                 ## the longer forms: crash test with 200 pull requests, more examples
	@$(BIN)/python -m tests.everything --long

lint: dev                      ## linters, types, import rules, migrations
	@$(BIN)/python -m tests.everything --only lint

coverage: dev                  ## which lines the tests reach, at least 90 %
	@$(BIN)/python -m tests.everything --coverage

hostile: dev                   ## what a stranger could try, tried on this machine, as a table (WRITE=1: keep it in the docs)
	@$(BIN)/python -m tests.hostile $(if $(WRITE),--write)

test-real: dev                 ## the main path at a real forge, Drone and Woodpecker: FORGE=http://… DRONE=… WOODPECKER=…, see CONTRIBUTING.md
	@FORGE="$(FORGE)" DRONE="$(DRONE)" WOODPECKER="$(WOODPECKER)" $(BIN)/python -m tests.real

seed: dev                      ## a database with N runs, to look at and to measure (N=100000)
	@$(BIN)/python -m tests.bench.seed $(or $(N),100000)

bench: dev                     ## measure requests and delays
	@$(BIN)/python -m tests.bench

docs: dev                      ## write the documentation as a static site, into var/docs-site
	@rm -rf var/docs-site && $(BIN)/python manage.py docs var/docs-site

screenshots: dev               ## retake the pictures in docs/
	@$(BIN)/python -m tests.browser.screenshots

lock:                          ## write both lock files: the newest versions that pyproject.toml allows
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder" build cc_ci.egg-info' EXIT && $(PYTHON) -m venv "$$folder" && \
	pip="$$folder/bin/pip --quiet --disable-pip-version-check" && \
	$$pip install --upgrade . setuptools && \
	$$pip freeze --all --exclude cc-ci --exclude pip > requirements.lock && \
	$$pip install --constraint requirements.lock '.[dev]' && \
	$$pip freeze --all --exclude cc-ci --exclude pip | grep -vxFf requirements.lock > requirements-dev.lock

clean:                         ## remove the virtual environment, the demo's data and caches
	rm -rf $(VENV) var/demo build cc_ci.egg-info .mypy_cache .ruff_cache .hypothesis
