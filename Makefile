# The two commands a newcomer needs: `make demo` and `make test`. Both set up all they need first.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The system's own interpreter where it will do: it is what the product has to run under.
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# What is compiled: a change of it means building again.
EXT_SOURCES := $(wildcard ext/*/*.pyx ext/*/*.pxd ext/*/*.pxi ext/*/*.h ext/*/*.def ext/simnvml/*.c ext/shim/*.c)

.PHONY: setup demo test check bench gpu-test gpu-wheels sim sim-bugs mutants chaos serve generate docs clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml scripts/setup.sh $(EXT_SOURCES)
	@PYTHON="$(PYTHON)" scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	@$(BIN)/python scripts/demo.py

test: setup check
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/check_house.py

bench: setup
	@for b in respawn rpc leases telemetry placement; do $(BIN)/python -m bench.$$b $(BENCH_ARGS) || exit 1; done

# What holds of any GPU driver, on the simulated one and on this host's own where it has one (docs/gpu.md).
gpu-test: setup
	@$(BIN)/python -m pytest tests/gpu $(PYTEST_ARGS)

# What scripts/gpu-check.sh needs on a GPU host without a network.
gpu-wheels: setup
	@PYTHON=$(BIN)/python scripts/gpu-wheels.sh

# The core and runtime against a simulated host; every seed replays exactly.
sim: setup
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.sim --seeds $(or $(SEEDS),2000) $(SIM_ARGS)

# Each planted bug has to be found.
sim-bugs: setup
	@$(BIN)/python -m tests.planted $(SIM_BUGS_ARGS)

# Small faults all over core, which the tests of core have to notice.
mutants: setup
	@$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

# Real processes, and what can happen to them. FAULT names one, N how often, BUG a planted bug that has to be noticed.
chaos: setup
	@$(BIN)/python -m tests.chaos $(if $(FAULT),--fault $(FAULT)) $(if $(N),--count $(N)) $(if $(BUG),--bug $(BUG))

serve: setup
	@$(BIN)/poolmgr serve

generate: setup
	@PYTHON=$(BIN)/python scripts/generate.sh

docs: setup
	@$(BIN)/python scripts/draw_lifecycle.py
	@$(BIN)/python scripts/list_behaviours.py

clean:
	rm -rf $(VENV) build *.egg-info ext/*.egg-info ext/poolmgr_ext/*.so ext/poolmgr_ext/*.c
