"""examples/detectzoo_adapter.py and DetectZoo's own `predict` give equal scores. Builds an
environment; needs PyPI.
"""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app import load_detector
from ray_app.detectors.callables.addition import CallableAddition, add_callable
from ray_app.detectors.card_sections import formula_image
from tests.detectors.callables.other_python import other_python

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SEEDS = Path(__file__).parent.parent / "detectzoo_seeds.py"
# What the image detectors import. pytorch-wavelets wants an old setuptools.
NEEDED = (
    "detectzoo==0.1.4",
    "open-clip-torch",
    "lpips",
    "pytorch-wavelets",
    "ftfy",
    "wcwidth",
    "setuptools<81",
)
PREDICT = """
import json, sys
from detectzoo import load_detector
detector = load_detector(sys.argv[1])
print(json.dumps([detector.predict(path).score for path in sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder with a Python that has DetectZoo, and seeded weights in the package's own cache."""
    folder = tmp_path_factory.mktemp("zoo")
    python = other_python(folder, *NEEDED)
    subprocess.run(
        [python, "-W", "ignore", SEEDS, "npr_deepfake", "safe", "ladeda"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


def pictures(folder):
    """RGB, of sizes odd, portrait, small and large, as JPEG and PNG."""
    folder.mkdir()
    made = []
    for number, (width, height) in enumerate(
        [(224, 224), (301, 227), (97, 131), (640, 480), (480, 641), (800, 533)]
    ):
        pixels = formula_image(width, height) // 2 + np.random.default_rng(number).integers(
            0, 128, (height, width, 3), np.uint8
        )
        for suffix in ("jpg", "png"):
            made.append(folder / f"{number}.{suffix}")
            Image.fromarray(pixels).save(made[-1])
    return [str(path) for path in made]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["npr_deepfake", "safe", "ladeda"])
def test_scores_equal_those_of_its_own_predict(zoo, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("TOUCHSTONE_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in both, or the last bits differ
    python, paths = str(zoo / "venv" / "bin" / "python"), pictures(tmp_path / "pictures")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", PREDICT, name, *paths],
        cwd=zoo,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    adapter = (EXAMPLES / "detectzoo_adapter.py").read_text(encoding="utf-8")
    module = f"adapter_of_{name}"
    (zoo / f"{module}.py").write_text(
        adapter.replace('NAME = "safe"', f'NAME = "{name}"'), encoding="utf-8"
    )
    wanted = CallableAddition(
        f"{module}:Detector", python=python, folder=zoo, name=f"zoo-{name.replace('_', '-')}", scores="probability", images="pil",
        licence="own",
    )  # fmt: skip
    added = add_callable(wanted)
    ours = [next(iter(one.scores.values())) for one in load_detector(added.path).score(paths)]
    assert [1 / (1 + math.exp(-score)) for score in ours] == pytest.approx(theirs, abs=1e-7)
    assert len({round(score, 6) for score in theirs}) > 6, (
        "scores that are all alike would prove nothing"
    )
    assert len(added.opened.identity["files"]) == 1
