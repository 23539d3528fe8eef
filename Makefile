# Each target does the set-up that it needs; set-up that is done takes a moment.
PYTHON ?= python3
VENV := .venv/bin/python
ARGS ?=
BENCHES := kernels candidates stream topics clients draft votes ensemble mesh sampling gateway sync failover pool

.DEFAULT_GOAL := help
.PHONY: help run test test-rpc check proto model bench clean setup setup-dev

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## set up, start a node, ask it a question (ARGS="--port 9000 …" goes to the node; RPC=1: see README, --pool)
	@$(VENV) scripts/first_run.py $(ARGS)

test: setup-dev ## run the tests (ARGS="-k name" goes to pytest; "-n 0": one after the other)
	@$(VENV) -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-rpc: setup-dev ## run the tests of --pool, on a llama.cpp with RPC that is built once, beside the one in .venv
	@PYTHONPATH="$$($(VENV) scripts/rpc.py)" $(VENV) -m pytest tests/pool tests/e2e/test_e2e_pool.py $(ARGS)

check: setup-dev ## lint, types, generated code, proto rules, layers
	@$(VENV) scripts/check.py

proto: setup-dev ## generate node/v1 from proto/
	@$(VENV) scripts/proto.py generate

model: setup-dev ## train the bundled model again (installs PyTorch into .venv)
	@$(VENV) -c 'import torch' 2>/dev/null || $(VENV) -m pip install --disable-pip-version-check -q -e '.[model]'
	@$(VENV) -m scripts.model all $(ARGS)

bench: setup-dev ## run every benchmark (ARGS=--quick for a minute each)
	@set -e; for each in $(BENCHES); do echo "== $$each"; $(VENV) "scripts/bench/$$each.py" $(ARGS); done

clean: ## remove what set-up and the tools made here
	@rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find node proto scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Clean. Compiled wheels stay in $${XDG_CACHE_HOME:-$$HOME/.cache}/conclave for the next set-up."

setup setup-dev:
	@command -v $(PYTHON) >/dev/null || { echo "set-up: $(PYTHON) was not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) scripts/setup.py $(if $(filter setup-dev,$@),--dev)
