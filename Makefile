# make demo | test | lint: each in .venv, created on first use with the versions in constraints.txt
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/core
	$(BIN)/harness sweep pocket

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

# torch first and by its exact version, so that nothing chooses another build
.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,smol]'
	touch $@

clean:
	rm -rf .venv
