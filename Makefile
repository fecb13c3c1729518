# Every target sets up what it needs in .venv; a second run reuses it.
PYTHON ?= python3
STAMP := .venv/.ready
BIN := .venv/bin
# uv keeps what it fetched below HOME, where it may write there.
CACHE := $(shell test -w "$$HOME" || echo --no-cache)
export RAY_USAGE_STATS_ENABLED ?= 0
# Tests start many processes; where Python may write no bytecode, each of them would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-neural test-newest lint docs bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install $(CACHE) --quiet --compile-bytecode --python .venv --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/touchstone demo --out demo-run
	@echo "open in a browser: demo-run/run/report.html"

# A process of tests for each core. One that dies ends the run: pytest-xdist would start another one, and wait for the dead one's tests for ever.
TOGETHER := -n auto --dist loadgroup --no-loadscope-reorder --max-worker-restart 0

test: $(STAMP)
	$(BIN)/python -m pytest --durations 10 $(TOGETHER)

# What networks compute, once more in the precision that this processor would not choose.
OTHER := from ray_app.detectors.cpu import cpu_precision; print('fp32' if cpu_precision() == 'bf16' else 'bf16')
NEURAL := tests/detectors tests/identification tests/inference tests/training

test-neural: $(STAMP)
	TOUCHSTONE_CPU_PRECISION=$$($(BIN)/python -c "$(OTHER)") $(BIN)/python -m pytest $(TOGETHER) $(NEURAL)

# The slow tests, by groups that tests/groups.py lists: `make test-faults`, `make test-all`.
test-%: $(STAMP)
	$(BIN)/python -m tests.groups $*

# The default tests with the newest versions that pyproject.toml allows, in an environment of their own.
test-newest:
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install --quiet uv
	build/newest/bin/uv pip install $(CACHE) --quiet --compile-bytecode --python build/newest --editable '.[dev]'
	build/newest/bin/python -m pytest --durations 20 $(TOGETHER)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site, in build/site: open build/site/index.html. `python -m`, so that its hooks find the package.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m benchmarks.scoring --quick --json benchmarks/latest.json

clean:
	rm -rf .venv demo-run .pytest_cache .mypy_cache .ruff_cache build dist
