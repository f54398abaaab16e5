# Weir. `make demo` and `make test` need nothing but Python >= 3.11 and make; everything else comes from PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

DATA := data
DEMO_EVENTS := 100000
DEMO_SEED := 7
PORT ?= 8080

.PHONY: help setup demo run test check test-python fmt bench results docs clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

setup: $(STAMP)  ## make the virtual environment and install everything into it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "weir needs Python >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup  ## generate a stream, score it through the whole service, print results and write demo-report.html
	@$(BIN)/python -m loadgen.demo --events $(DEMO_EVENTS) --seed $(DEMO_SEED) --report demo-report.html

run: setup  ## start the service on embedded Valkey and Postgres; prints URL, key and a curl line; Ctrl-C stops it
	@$(BIN)/python -m loadgen.demo --serve --data-dir $(DATA) --port $(PORT)

test: setup check test-python  ## everything that has to be green: checks, then all tests

check: setup  ## format, lint, types, layers
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log

test-python: setup  ## all Python tests
	$(BIN)/python -m pytest -q

fmt: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## the benchmarks of docs/results at full size (about 20 minutes); JSON into data/bench
	@mkdir -p $(DATA)/bench
	$(BIN)/weir bench ladder --json $(DATA)/bench/ladder.json
	$(BIN)/weir bench http --json $(DATA)/bench/http.json --html $(DATA)/bench/http.html
	$(BIN)/weir bench memory --json $(DATA)/bench/memory.json

docs:  ## where to read on
	@ls docs docs/adr docs/results

clean:  ## remove what the commands above have made, the virtual environment included
	rm -rf $(VENV) $(DATA) demo-data demo-report.html .mypy_cache .ruff_cache .pytest_cache .hypothesis
