"""The dry run of a training: what it will do and need."""

import pytest

from ray_app.errors import ConfigError
from ray_app.training.plan import format_plan, format_source_lines
from ray_app.training.run import train
from tests.make.published import write_openfake
from tests.training.trainings import config


def test_dry_run_counts_steps_images_and_memory(labelled):
    facts = train(config(labelled), dry_run=True).facts
    splits, rows = facts["data"]["splits"], facts["data"]["splits"]["train"]["images"]
    assert (facts["steps"], facts["rows_per_epoch"]) == (-(-3 * rows // 8), rows)
    assert (facts["images_per_worker_and_step"], facts["micro_batch"]) == (8, 8)
    images = sum(split["images"] for split in splits.values())
    assert images + facts["data"]["set_aside"]["images"] == 160
    for split in splits.values():
        assert sum(split["generators"].values()) == split["real"] + split["fake"]
    assert set(splits["train"]["generators"]) == {"real:noise", "double-a", "double-b"}
    counts, sizes = facts["memory"]["counts"], dict(facts["memory"]["bytes"])
    assert counts["parameters"] == counts["learning"] > 0
    assert sizes["gradients"] == 4 * counts["learning"]
    assert sizes["optimiser"] == 2 * sizes["gradients"], "two moments of AdamW"
    assert sizes.pop("together") == sum(sizes.values())
    # The output of the first convolution, (8, 4, 62, 62) in fp32, is kept at least.
    assert sizes["activations"] >= 8 * 4 * 62 * 62 * 4
    text = "\n".join(format_plan(facts))
    words = ("steps of 8 images", "parameters", "MiB per worker", "double-a", "leakage", "real")
    assert [word for word in words if word not in text] == []
    halved = train(config(labelled, loop={"micro_batch": 4}), dry_run=True).facts
    assert halved["memory"]["bytes"]["activations"] * 2 == sizes["activations"]


def test_dry_run_claims_no_directory(labelled, tmp_path):
    train(config(labelled, out=str(tmp_path / "out")), dry_run=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "splits.json"]


def test_training_requires_a_directory(labelled):
    with pytest.raises(ConfigError, match="--out DIR is missing"):
        train(config(labelled))


@pytest.mark.parametrize("leaves_out", [False, True])
def test_dry_run_names_known_faults_of_the_data(labelled, tmp_path, leaves_out):
    source = {
        "at": str(write_openfake(tmp_path / "set", 8, "train")),
        "layout": "openfake",
        "arguments": {"version": "v1"},
        "leave_out_faults": leaves_out,
    }
    data = {"train": [source], "validation": {"groups": 0.3}}
    facts = train(config(labelled, data=data), dry_run=True).facts
    faults = [line for line in format_source_lines(facts["sources"]) if line.startswith("fault ")]
    assert any("openfake-v1-prompts" in line and "16 rows" in line for line in faults)
    assert any("left out: 8 × spoiled" in line for line in faults) == leaves_out
    splits = facts["data"]["splits"].values()
    sana = sum(split["generators"].get("sana", 0) for split in splits)
    assert sana == (0 if leaves_out else 8)
