# Each target is enough on a fresh clone: Python >= 3.11 and make are all it takes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help book test check lint lab notebooks clean

PYTHON ?= python3
ONLY ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread: sums come out in the same order on every machine, and busy cores are not made slower by spinning threads.
export OMP_NUM_THREADS := 1
# The environment's own kernel and settings come before those of the user.
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# The environment is made again when what it is made from changes. pip, not uv: uv ignores pip's configuration.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' found. Name a Python >= 3.11: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jepa_lab needs Python >= 3.11, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "Could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

book: $(READY)  ## build the book: _build/html/index.html
	jb build . -W -n --keep-going
	@touch _build/.built
	@echo "Open $(CURDIR)/_build/html/index.html"

# Three passes, and a failure in any of them counts: the package with its coverage, what needs a browser and the built
# book, the chapters re-executed and compared with their stored outputs.
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=180 --nbval-sanitize-with=tests/nbval_sanitize.cfg
test: book  ## run every test: package, pages in a browser, chapters
	@status=0; \
	echo "== 1/3 package"; \
	pytest -q -n 2 -m "not browser" --cov --cov-fail-under=90 tests || status=1; \
	echo "== 2/3 browser"; \
	pytest -q -m browser tests || status=1; \
	echo "== 3/3 chapters"; \
	TQDM_DISABLE=1 pytest -q $(NBVAL) -n 2 --dist loadfile notebooks || status=1; \
	exit $$status

lint: $(READY)  ## style, spelling, file sizes
	ruff check .
	ruff format --check .
	codespell
	python tools/large_files.py

check: lint test book  ## what CI runs

lab: $(READY)  ## open JupyterLab on the chapters
	cd notebooks && jupyter lab

notebooks: $(READY)  ## sync the twins and execute the chapters in place; ONLY="01_slug ..." for some
	python tools/notebooks.py $(ONLY)

clean:  ## remove build products; the environment stays
	rm -rf _build build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find jepa_lab tests tools book notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
