"""The first step comes early, since a training imports no more libraries than it needs."""

import os
import subprocess
import sys

import pytest
import yaml

from tests.training.small_recipes import VIT
from tests.training.trainings import ROOT, recipe

SCRIPT = """
import sys
from ray_app.cli.main import main
assert main(["train", sys.argv[1], "--out", sys.argv[2]]) == 0
heavy = ("ray", "transformers", "peft", "torch.distributed.checkpoint")
print(*(name for name in heavy if name in sys.modules))
"""


@pytest.mark.slow
def test_training_of_a_timm_network_imports_timm_alone(labelled, tmp_path):
    facts = recipe(
        labelled,
        detector="community-forensics-vits384",
        card=VIT | {"preprocessing": {"resize": {"size": 36}, "center_crop": 32}},
        augmentation={"policy": "flips", "arguments": {"crop": 32}},
        loop={"epochs": None, "steps": 2},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(facts))
    words = [sys.executable, "-c", SCRIPT, tmp_path / "recipe.yaml", tmp_path / "out"]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
