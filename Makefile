# make test            creates .venv, installs minihra with the test extra, runs the tests
# make test EXTRAS=test,parity   the same, beside PyTorch, transformers, hama and jiwer (what CI runs)
# make demo            installs minihra with matplotlib, and runs the whole job on built-in voices; writes demo/
PYTHON ?= python3
EXTRAS ?= test
BIN := .venv/bin

.PHONY: test lint demo
test: .venv/.installed-$(EXTRAS)
	$(BIN)/python -m pytest

lint: .venv/.installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: .venv/.installed-plot
	$(BIN)/minihra demo --out demo

.venv/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
