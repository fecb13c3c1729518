# Every target sets up what it needs in .venv; a second run reuses it.
PYTHON ?= python3
STAMP := .venv/.ready
BIN := .venv/bin
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup demo test test-cluster test-endpoint lint bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python .venv --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/touchstone demo --out demo-run

test: $(STAMP)
	$(BIN)/python -m pytest

test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m slow -k 'not 3000' tests/scoring/test_split.py tests/scoring/test_killed.py tests/scoring/test_job.py

test-endpoint: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/serving/test_deployed.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.scoring --quick --json benchmarks/latest.json

clean:
	rm -rf .venv demo-run .pytest_cache .mypy_cache .ruff_cache build dist
