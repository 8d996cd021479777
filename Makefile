# make book [PROFILE=demo] [DATA=path]   execute all chapters and build the site under build/
# make test [JOBS=2]                     all checks, as continuous integration runs them; in JOBS processes
# make lint | serve | clean
SHELL := /bin/bash
PROFILE ?= demo
DATA ?=
PORT ?= 8000
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin

# The first interpreter that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: book test lint serve clean
.DEFAULT_GOAL := book

# Made anew when pyproject.toml changed. Drawing once fills matplotlib's font cache, which otherwise speaks in a chapter.
$(VENV)/.stamp: pyproject.toml
	@test -n "$(PYTHON)" || { echo "sarmatch needs Python 3.11 or newer; none was found. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): does $(PYTHON) have the venv module (Debian: apt install python3-venv)?" >&2; exit 1; }
	@echo "installing into $(VENV): about 6 GB, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[book,gis,onnx,test]'
	@$(BIN)/python -c 'import matplotlib.pyplot' 2>/dev/null
	@touch $@

book: $(VENV)/.stamp
	PYTHONPATH="$(CURDIR)/book" $(BIN)/python -m companion book --profile $(PROFILE) $(if $(DATA),--data "$(DATA)")

lint: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site first: tests/companion/site/test_built_site.py reads it.
test: lint
	$(BIN)/jupyter-book build book --all -W -n --keep-going
	$(BIN)/pytest -n $(JOBS) --dist worksteal tests
	$(BIN)/pytest -n $(JOBS) --dist loadfile --nbval --nbval-current-env book

serve:
	@test -d build/$(PROFILE)/book/_build/html || { echo "no site for profile $(PROFILE) yet: run make book PROFILE=$(PROFILE)" >&2; exit 1; }
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/$(PROFILE)/book/_build/html $(PORT)

# Runs stay: they may have cost hours.
clean:
	rm -rf build book/_build .pytest_cache .ruff_cache .mypy_cache .hypothesis
