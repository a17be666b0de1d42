# make demo: install, then the whole chain on the bundled model.   make test: what CI runs.   make check: format, lint, types, imports.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= build/demo

.PHONY: demo test check engine-types format clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,tensorrt-rtx,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/erq-export demo --bits w4a4 --to onnx --to tensorrt-rtx --out $(OUT) --overwrite

# What a worker leaves that dies is run by another: tests/support/lost_workers.py.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 4

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

# TensorRT itself cannot be installed without a GPU: its stubs and bindings are downloaded, and only read.
engine-types: .venv/installed
	$(BIN)/python tests/support/tensorrt_names.py --types

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build
