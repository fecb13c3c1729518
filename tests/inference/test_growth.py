"""Memory of a scoring process: flat, whatever it is given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import factory

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["plain", "reuse"])
def test_a_scoring_actor_does_not_grow_over_ten_thousand_images(tmp_path, how):
    """Photographs of many sizes, and every oddity and hazard there is among them; with reuse all of them differ in a last byte."""
    makers = [make for _, make in [*factory.SOUND.values(), *factory.ODD.values(), *factory.REFUSED.values()]]
    photos = [lambda seed=seed: factory.encoded(factory.photo(200 + 13 * seed, 150 + 7 * seed, seed), "JPEG") for seed in range(60)]
    for number, make in enumerate([*makers, *photos] if how == "plain" else photos):
        data = make()
        for copy in range(1 if how == "plain" else 170):
            (tmp_path / f"{number:03}-{copy:03}").write_bytes(data if how == "plain" else data + bytes([copy]))
    command = [sys.executable, "-m", "tests.inference.growth", str(tmp_path), str(IMAGES), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{how}: {found}")
    assert found["end"] - found["warm"] <= 50
