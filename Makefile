# make test            creates .venv, installs minihra with the test extra, runs the tests
#                     (without glibc's cache of small blocks, which keeps from them what tests/conftest.py fills memory with)
# make test EXTRAS=test,parity   the same, beside PyTorch, transformers, hama and jiwer (what CI runs)
# make demo            installs minihra with matplotlib, and runs the whole job on built-in voices; writes demo/
# make gpu-check       on a machine with a GPU: its tests, compute-sanitizer, the bench beside PyTorch; writes gpu_check/
#                      CHECK="--quick", CHECK="--digits FSDD" and others: see benchmarks/gpu_check.py
PYTHON ?= python3
EXTRAS ?= test
GPU_EXTRAS ?= test,parity,cuda12
BIN := .venv/bin

.PHONY: test lint demo gpu-check
test: .venv/.installed-$(EXTRAS)
	GLIBC_TUNABLES=glibc.malloc.tcache_count=0 $(BIN)/python -m pytest -n 2

lint: .venv/.installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: .venv/.installed-plot
	$(BIN)/minihra demo --out demo

gpu-check: .venv/.installed-$(GPU_EXTRAS)
	$(BIN)/python benchmarks/gpu_check.py $(CHECK)

.venv/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
