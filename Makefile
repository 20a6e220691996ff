# Baton's commands. `make run` and `make test` set up everything they need (.venv) on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PROTO_FLAGS := -Ibaton/wire=proto --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=.
SOURCES := baton kvtransfer services tests benchmarks demo compose

export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help run test lint format proto soak bench-peers clean

help:  ## Show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1	/' | expand -t 20

# The package is installed file by file, so a file added or removed makes the install stale.
PACKAGE_FILES := $(shell find baton kvtransfer services -name '*.py' -o -path 'baton/demo_model/*' -type f | LC_ALL=C sort)

NATIVE_SOURCES := $(shell find baton kvtransfer services -name '*.[ch]' | LC_ALL=C sort)

$(VENV)/requirements.stamp: constraints.txt pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24" "setuptools>=77" wheel
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]' --no-build-isolation --config-settings editable_mode=strict
	@touch $@

$(VENV)/install.stamp: $(VENV)/requirements.stamp $(VENV)/package-files.txt $(NATIVE_SOURCES)
	$(BIN)/pip install --quiet -e . --no-deps --no-build-isolation --config-settings editable_mode=strict
	@touch $@

$(VENV)/package-files.txt: FORCE | $(VENV)/requirements.stamp
	@echo '$(PACKAGE_FILES)' | cmp -s - $@ || echo '$(PACKAGE_FILES)' > $@
FORCE:

run: $(VENV)/install.stamp  ## Serve the demo model with one router, one prefill and one decode worker (ARGS="--port 8001 --decode 2")
	@$(BIN)/baton up $(ARGS)

# A real registry for the tests; those that want one skip with the reason where it cannot be had.
$(VENV)/consul.stamp: tests/tools/fetch_consul.sh | $(VENV)/install.stamp
	command -v consul >/dev/null || tests/tools/fetch_consul.sh $(VENV)/consul-agent || exit 0; touch $@

test: $(VENV)/install.stamp $(VENV)/consul.stamp  ## Run all tests (ARGS="-k name" to choose)
	$(BIN)/pytest $(ARGS)

soak: $(VENV)/install.stamp $(VENV)/consul.stamp  ## Run the long forms of the tests
	$(BIN)/pytest -m soak --timeout 0 $(ARGS)

lint: $(VENV)/install.stamp  ## Check style, types and that the generated stubs are fresh
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p baton
	MYPYPATH=tests:tests/e2e:benchmarks $(BIN)/mypy --explicit-package-bases --exclude 'tests/e2e/conftest\.py$$' tests benchmarks demo compose
	MYPYPATH=tests:tests/e2e $(BIN)/mypy tests/e2e/conftest.py  # apart: to mypy it has the same name as tests/conftest.py
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cp -r proto "$$scratch" && mkdir -p "$$scratch/baton/wire" \
	  && (cd "$$scratch" && PATH="$(abspath $(BIN)):$$PATH" $(abspath $(BIN))/python -m grpc_tools.protoc $(PROTO_FLAGS) proto/*.proto) \
	  && for stub in "$$scratch"/baton/wire/*; do cmp "$$stub" "baton/wire/$$(basename $$stub)" || { echo "stale: run make proto"; exit 1; }; done

format: $(VENV)/install.stamp  ## Rewrite sources in the project's style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: $(VENV)/requirements.stamp  ## Generate baton/wire from proto/
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc $(PROTO_FLAGS) proto/*.proto

# Their requirements are complete lists: NIXL would otherwise bring a CUDA build of torch that it does not need here.
# Torch alone comes with what it depends on, which differs from build to build.
bench-peers: $(patsubst benchmarks/peers/%.txt,.venv-peers/%/stamp,$(wildcard benchmarks/peers/*.txt))  ## Install what the benchmarks compare with, each into an environment of its own

.venv-peers/%/stamp: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/pip install --quiet --upgrade "pip>=24"
	@grep '^torch==' $< | xargs -r .venv-peers/$*/bin/pip install --quiet
	.venv-peers/$*/bin/pip install --quiet --no-deps -r $<
	@touch $@

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) .venv-peers build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
