# make test            creates .venv, installs minihra with the test extra, runs the tests
# make test EXTRAS=test,parity   the same, beside PyTorch and jiwer (what CI runs)
PYTHON ?= python3
EXTRAS ?= test
BIN := .venv/bin

.PHONY: test lint
test: .venv/.installed-$(EXTRAS)
	$(BIN)/python -m pytest

lint: .venv/.installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/.installed-$(EXTRAS): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@
