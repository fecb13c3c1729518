# Every target sets up what it needs in .venv; a second run reuses it.
PYTHON ?= python3
STAMP := .venv/.ready
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup demo test test-cluster test-faults test-training test-data test-endpoint lint bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python .venv --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/touchstone demo --out demo-run

# A process of tests that dies ends the run: pytest-xdist would start another one, and wait for the dead one's tests for ever.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 --no-loadscope-reorder tests/scoring tests

# The slow tests that CI runs all the same: GPU nodes, a submitted job, a run whose driver, actors and node are killed, a lost wave, an exported detector that scores.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and ci' tests/training tests/scoring

# The other slow tests of scoring: sixteen kills at seeded moments, nodes that leave, 2,000 images in every form, 1,000 perturbed ones, faults of storage, output and
# decoders, 10,000 files whose headers lie and what they leave in memory, images of 100 megapixels; and of what it is made of and leads to: every layout of every image
# format against libvips, detectors in bf16, evaluations.
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and not ci' tests/images tests/inference tests/scoring tests/runs tests/benchmarks tests/detectors tests/evaluation tests/evaluation/calibrate

# The other slow tests of training: two processes against one, killed trainings, storage on S3, the quick recipe from simulated pictures to a card that scores, notices, bad images, the linear probe.
test-training: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and not ci' tests/training tests/training tests/datasets tests/datasets/simulation

# The slow tests of what makes and fetches images: 2,000 urls with two kills, 64 images with a kill, and the walk of docs/profile.md from prompts to names.
test-data: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/datajobs/download tests/datajobs/generate tests/test_profile_walk.py

# The slow tests of the endpoint: deployed on a cluster, under hostile clients, behind nginx where that is installed, its metrics and its job store; and what a stranger
# gets from every command that starts a Ray.
test-endpoint: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/serving tests/test_strangers.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.scoring --quick --json benchmarks/latest.json

clean:
	rm -rf .venv demo-run .pytest_cache .mypy_cache .ruff_cache build dist
