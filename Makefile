# `make quickstart` trains, `make test` tests; both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-faults lint clean

quickstart: $(VENV)/.installed-quickstart
	PATH="$(abspath $(BIN)):$$PATH" deepspeed --num_gpus 1 deepres/train.py --config configs/quickstart.yaml

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 FAULT_TABLE=results/faults/table.md $(BIN)/python -m pytest tests/faults -m "slow or not slow" -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# torch first: deepspeed and fairscale then build against it, and nothing pulls in another one.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools wheel torch
	$(INSTALL) -e ".[$*]"
	touch $@
