# A fresh machine needs two commands: `make run` (the main job on the built-in model) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench tutor clean

run: .venv/installed
	$(BIN)/steerkit run recipes/expertise.yaml --overwrite

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/report.py

tutor: .venv/installed
	$(BIN)/python -m recipes.tutor.train

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build output .pytest_cache .mypy_cache .ruff_cache
