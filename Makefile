# Everything lands in .venv and in the user's cache folder; no root is needed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# Made anew when what it was made from changes, or when the system has dropped the Python it is of.
INSTALLED := $(VENV)/.installed
$(shell test -x "$(BIN)/python" || rm -f "$(INSTALLED)")
# The first that fits is taken; 3.13 late, see sidecar/local/stub-requirements.in.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.12 python3.11 python3 python3.13 python)
UV_VERSION := 0.13.9
# Of the tests: they wait for servers more than they compute.
WORKERS ?= 2
# Folders of the cache; LLM_ROUTING_SIDECAR_CACHE may name a folder that holds other things, too.
CACHED := checkpoints|engines|environments|locks|node|run|tests|tools
# It reports every import of openvino to the network, and openvino works without it.
UNWANTED := --no-emit-package openvino-telemetry

.PHONY: help
help: ## Print this
	@echo "Usage: make <target>"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1	\2/' | expand -t 14
	@echo "Another Python: make clean setup PYTHON=/path/to/python3.12"

.PHONY: setup
setup: $(INSTALLED) ## Make .venv with everything that is locked

$(INSTALLED): requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked packages into $(VENV), which takes minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps \
	    -r requirements/dev.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps \
	    --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@reasons=""; \
	for candidate in $(CANDIDATES); do \
	  command -v "$$candidate" >/dev/null || { reasons+="  $$candidate is not installed"$$'\n'; continue; }; \
	  if reason=$$("$$candidate" sidecar/local/python_check.py 2>&1); then \
	    echo "Making $(VENV) with $$("$$candidate" --version) ($$candidate)"; \
	    "$$candidate" -m venv --clear $(VENV) && exit 0 || exit 1; \
	  fi; \
	  reasons+="  $$candidate $$(tail -n 1 <<<"$$reason")"$$'\n'; \
	done; \
	printf 'No Python here can run the sidecar:\n%s%s\n' "$$reasons" \
	  "Install one, e.g. on Debian or Ubuntu python3, python3-venv and libpython3, or name one: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

.PHONY: demo
demo: $(INSTALLED) ## Start Triton and the sidecar, route conversations, print a table, stop
	@$(BIN)/sidecar demo

.PHONY: up
up: $(INSTALLED) ## Start Triton and the sidecar in the foreground
	@$(BIN)/sidecar up

.PHONY: test
test: $(INSTALLED) ## Run all tests
	@# Before the tests, whose time limits are not made for downloads.
	@$(BIN)/python -m sidecar.local fetch
	@$(BIN)/sidecar model build >/dev/null
	@$(BIN)/python -m pytest -q -rs -n $(WORKERS)

.PHONY: prove
prove: $(INSTALLED) ## Hold the promises about outages and lost writes; needs an otherwise idle machine
	@SIDECAR_PROVE=1 $(BIN)/python -m pytest -q -s tests/integration/test_outages.py \
	    tests/integration/test_hostile_inputs.py tests/integration/test_envoy_outages.py \
	    tests/integration/test_policy_fleet.py tests/policies/stores/test_durability.py \
	    tests/policies/stores/test_model.py \
	    | grep -v 'decision_id='
	@$(BIN)/sidecar soak --minutes 30 --strict

.PHONY: bench
bench: $(INSTALLED) ## Measure speed; needs an otherwise idle machine (ARGS=--quick for a minute or two)
	@$(BIN)/sidecar bench $(ARGS)

.PHONY: soak
soak: $(INSTALLED) ## Break what can break under steady calls, for minutes (ARGS="--minutes 30")
	@$(BIN)/sidecar soak $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Check style, types, the protocol and the images' files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m sidecar.local buf lint proto
	$(BIN)/python -m sidecar.local buf breaking proto --against proto/released/llmrouter.v1.binpb
	$(BIN)/python -m sidecar.local hadolint docker/*/Dockerfile
	$(BIN)/python -m sidecar.local docker-compose -f docker/compose.yaml --profile cpu --profile gpu config -q

.PHONY: proto
proto: $(INSTALLED) ## Generate sidecar/_generated from proto/
	@$(BIN)/python proto/generate.py

.PHONY: format
format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: lock
lock: $(INSTALLED) ## Choose package versions anew and write the lock files
	@$(BIN)/python -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	@compile() { $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" "$$@" \
	    >/dev/null; }; \
	compile pyproject.toml requirements/build.in --all-extras $(UNWANTED) -o requirements/dev.lock; \
	compile pyproject.toml --extra tracing -c requirements/dev.lock -o requirements/runtime.lock; \
	compile pyproject.toml --extra cpu --extra tracing $(UNWANTED) -c requirements/dev.lock -o requirements/cpu.lock; \
	compile requirements/sbom.in -o requirements/sbom.lock; \
	compile --no-deps sidecar/local/stub-requirements.in -o sidecar/local/stub-requirements.lock
	@echo "Wrote requirements/*.lock and sidecar/local/stub-requirements.lock"

.PHONY: clean
clean: ## Remove .venv and what tools left in this folder; the cache stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-cache
clean-cache: ## Remove the user's cache: unpacked programs, engines, environments
	@base=$${XDG_CACHE_HOME:-}; [[ $$base == /* ]] || base=$$HOME/.cache; \
	cache=$${LLM_ROUTING_SIDECAR_CACHE:-$$base/llm-routing-sidecar}; \
	other=$$(ls -A "$$cache" 2>/dev/null | grep -vxE '$(CACHED)' || true); \
	if [ -n "$$other" ]; then \
	  printf 'Nothing was removed: %s holds what is not of the cache:\n%s\n' "$$cache" "$$other" >&2; \
	  exit 1; \
	fi; \
	rm -rf "$$cache"
