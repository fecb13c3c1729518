# Every target sets up what it needs in .venv; a second run reuses it.
PYTHON ?= python3
STAMP := .venv/.ready
BIN := .venv/bin
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup demo test test-cluster test-faults test-endpoint lint bench clean
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

# What needs a cluster, or minutes: GPU layouts, nodes that leave, a submitted job, faults of storage and output, decoders that die.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m slow -k 'not 3000 and not published_width and not thousand and not small_run' tests/benchmarks/test_serving.py tests/scoring \
		--deselect tests/scoring/test_kills.py

# Sixteen kills at seeded moments (10 drivers, 3 workers, 3 nodes), 2,000 images in every form, 3,000 members killed in the middle.
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m slow -k 'kills or thousand or 3000' tests/scoring

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
