# Every target sets up what it needs in .venv; a second run reuses it.
PYTHON ?= python3
STAMP := .venv/.ready
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED ?= 0
# Tests start many processes; where Python may write no bytecode, each of them would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-on-ray test-without-ray test-cluster lint docs bench clean
.PHONY: test-kills test-faults test-forms test-ensembles test-memory test-detectors test-training test-recipes test-data test-endpoint test-deployed test-strangers test-statistics test-docs
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/touchstone demo --out demo-run

# What starts a Ray, in a process beside the rest, since two Rays would share two cores; each job shows its whole log when it has ended.
RAY_TESTS := tests/scoring tests/cluster tests/evaluation/on_ray tests/test_readme.py tests/test_strangers.py

test: $(STAMP)
	@echo "two jobs side by side, each shows its log when it has ended: what starts a Ray, and the rest"
	@$(MAKE) --no-print-directory --keep-going --jobs 2 --output-sync=target test-on-ray test-without-ray

test-on-ray: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'ray and not slow' $(RAY_TESTS)

# A process of tests that dies ends the run: pytest-xdist would start another one, and wait for the dead one's tests for ever.
test-without-ray: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -n 2 --dist loadfile --max-worker-restart 0 -m 'not ray and not slow' tests

# The slow tests that CI runs all the same: GPU nodes, a submitted job and its stop, an autoscaler from zero to four nodes and back, cluster.yaml on AWS's API, versions that differ, a run whose driver, actors and node are killed, an exported detector that scores; and the documentation site, built strictly.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and ci' tests/training tests/scoring tests/cluster tests/docs

# The other slow tests, by hand, in groups. Of scoring: sixteen kills at seeded moments on three nodes.
test-kills: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/scoring/test_kills.py

# Nodes that leave, faults of storage, output and decoders, rows that fail, runs that stop and go on, a year of nights.
test-faults: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/scoring/test_killed.py tests/scoring/test_leaving.py tests/scoring/test_decoder_deaths.py tests/scoring/test_faults.py tests/scoring/test_faulty_storage.py tests/scoring/test_failing_rows.py tests/cluster/test_shutdown.py tests/scoring/test_run_more.py tests/storage/test_clouds.py tests/scoring/test_nights.py tests/scoring/test_run_metrics.py tests/scoring/test_pod_end.py

# 2,000 images in every form, 1,000 perturbed ones.
test-forms: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/scoring/test_forms.py tests/scoring/test_views.py

# Runs with eight detectors, two looks, calibrated cards, guarantees, names and words.
test-ensembles: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/scoring/test_zoo_run.py tests/scoring/test_passes.py tests/scoring/test_cascade.py tests/scoring/test_split.py tests/scoring/test_calibrated_card.py tests/scoring/test_guarantee_run.py tests/scoring/test_profile_run.py

# What hostile and huge files leave in memory: 10,000 files whose headers lie, images of 100 megapixels, ragged batches, every layout of every format against libvips.
test-memory: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/scoring/test_hostile_memory.py tests/scoring/test_large_images_run.py tests/scoring/test_ragged.py tests/images tests/inference tests/runs tests/archives

# Detectors in bf16 and against all golden values, evaluations, calibrations, benchmarks.
test-detectors: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/detectors tests/evaluation tests/benchmarks

# Training: two processes against one, killed trainings, storage on S3, bad images, the linear probe; splits, shares of what augmentations draw.
test-training: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/training/test_killed.py tests/training/test_linear_probe.py tests/datasets tests/transforms

# Recipes whole: the quick one from simulated pictures to a card that scores, every family in every precision and as ONNX, the heads that name generators, the models that predict prompts, notices.
test-recipes: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m 'slow and not ci' tests/training/test_quick.py tests/training/test_learner.py tests/training/test_learner_more.py tests/training/test_onnx.py tests/training/test_export.py tests/training/test_captioner_learns.py tests/training/test_notice.py tests/training/test_identifying_e2e.py tests/training/test_describing_e2e.py

# What makes, fetches and packs images: 2,000 urls with two kills, 64 images with a kill, shards, and the walk of docs/profile.md from prompts to names.
test-data: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m slow tests/datajobs/download tests/datajobs/generate tests/datajobs/shards tests/cli tests/test_profile_walk.py

# Reports by axe; the endpoint under hostile clients, on both servers, and its own server’s workers.
test-endpoint: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m slow tests/reports tests/serving --ignore tests/serving/test_deployed.py --ignore tests/serving/test_soak.py

# Deployed on a cluster; and five minutes of hostile traffic.
test-deployed: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m slow tests/serving/test_deployed.py tests/serving/test_soak.py

# What a stranger gets from every command that starts a Ray.
test-strangers: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m slow tests/test_strangers.py

# The wheel, installed where nothing else is: what it holds, and the lines of the documents as a stranger types them; notebooks and guides; the site.
test-docs: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -m slow tests/docs tests/test_distribution.py tests/test_readme.py

# What is promised of errors, simulated on 1,000 seeds each, and the table of it that stands in docs/trust.md.
test-statistics: $(STAMP)
	$(BIN)/python -m pytest --durations 10 -n 2 --dist worksteal --max-worker-restart 0 -m 'slow and not ci' tests/statistics

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
