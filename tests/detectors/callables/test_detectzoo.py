"""examples/detectzoo_adapter.py and DetectZoo's own `predict` give equal scores. Builds an
environment; needs PyPI.
"""

import json
import math
import subprocess
from pathlib import Path

import pytest

from ray_app import load_detector
from ray_app.detectors.callables.addition import CallableAddition, add_callable
from tests.detectors.callables.other_python import (
    EXAMPLES,
    other_python,
    python_of,
    run_code,
    write_image,
)

pytestmark = pytest.mark.slow
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


SIZES = [(224, 224), (301, 227), (97, 131), (640, 480), (480, 641), (800, 533)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["npr_deepfake", "safe", "ladeda"])
def test_scores_equal_those_of_its_own_predict(zoo, tmp_path, same_last_bits, name):
    files = [(f"{number}.{suffix}", number) for number in range(6) for suffix in ("jpg", "png")]
    paths = [write_image(tmp_path / file, SIZES[number], number) for file, number in files]
    theirs = json.loads(run_code(zoo, PREDICT, name, *paths))
    adapter, module = (EXAMPLES / "detectzoo_adapter.py").read_text(), f"adapter_of_{name}"
    (zoo / f"{module}.py").write_text(adapter.replace('NAME = "safe"', f'NAME = "{name}"'))
    wanted = CallableAddition(
        f"{module}:Detector", python=python_of(zoo), folder=zoo, name=f"zoo-{name.replace('_', '-')}", scores="probability",
        images="pil", licence="own",
    )  # fmt: skip
    added = add_callable(wanted)
    ours = [next(iter(one.scores.values())) for one in load_detector(added.path).score(paths)]
    assert [1 / (1 + math.exp(-score)) for score in ours] == pytest.approx(theirs, abs=1e-7)
    assert len({round(score, 6) for score in theirs}) > 6, "equal scores would prove nothing"
    assert len(added.opened.identity["files"]) == 1
