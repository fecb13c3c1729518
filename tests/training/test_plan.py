"""The dry run: what a training will do and need, with nothing started."""

import pytest

from ray_app.errors import ConfigError
from ray_app.training.plan import plan_lines, source_lines
from ray_app.training.run import train
from tests.datasets.published import write_openfake
from tests.training.conftest import config


def test_steps_images_and_memory_are_counted(labelled):
    planned = train(config(labelled), dry_run=True).facts
    rows = planned["data"]["splits"]["train"]["images"]
    assert (planned["steps"], planned["rows_per_epoch"]) == (-(-3 * rows // 8), rows)
    assert (planned["images_per_worker_and_step"], planned["micro_batch"]) == (8, 8)
    splits = planned["data"]["splits"].values()
    assert sum(split["images"] for split in splits) + planned["data"]["set_aside"]["images"] == 160
    assert all(
        sum(split["generators"].values()) == split["real"] + split["fake"] for split in splits
    )
    assert set(planned["data"]["splits"]["train"]["generators"]) == {
        "real:noise",
        "double-a",
        "double-b",
    }
    memory = planned["memory"]
    assert memory["counts"]["parameters"] == memory["counts"]["learning"] > 0
    assert memory["bytes"]["gradients"] == 4 * memory["counts"]["learning"]
    assert memory["bytes"]["optimiser"] == 2 * memory["bytes"]["gradients"], "two moments of AdamW"
    assert memory["bytes"]["together"] == sum(
        size for name, size in memory["bytes"].items() if name != "together"
    )
    told = "\n".join(plan_lines(planned))
    assert all(
        word in told
        for word in (
            "steps of 8 images",
            "parameters",
            "MiB per worker",
            "double-a",
            "leakage",
            "real",
        )
    )
    halved = train(config(labelled, loop={"micro_batch": 4}), dry_run=True).facts
    assert halved["memory"]["bytes"]["activations"] * 2 == memory["bytes"]["activations"]
    # (N, 4, 62, 62) after the first convolution is kept at the least, in fp32.
    assert memory["bytes"]["activations"] >= 8 * 4 * 62 * 62 * 4


def test_nothing_is_claimed_or_trained_and_a_training_needs_a_place(labelled, tmp_path):
    train(config(labelled, out=str(tmp_path / "out")), dry_run=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "splits.json"]
    with pytest.raises(ConfigError, match="--out DIR is missing"):
        train(config(labelled))


def test_documented_faults_of_the_data_are_told_and_their_images_left_out(labelled, tmp_path):
    source = {
        "at": str(write_openfake(tmp_path / "set", 8, "train")),
        "layout": "openfake",
        "arguments": {"version": "v1"},
    }
    for leaving_out in (False, True):
        data = {
            "train": [source | {"leave_out_faults": leaving_out}],
            "validation": {"groups": 0.3},
        }
        planned = train(config(labelled, data=data), dry_run=True).facts
        told = [line for line in source_lines(planned["sources"]) if line.startswith("fault ")]
        assert any("openfake-v1-prompts" in line and "16 rows" in line for line in told)
        assert any("left out: 8 × spoiled" in line for line in told) == leaving_out
        assert sum(
            split["generators"].get("sana", 0) for split in planned["data"]["splits"].values()
        ) == 8 * (not leaving_out)
