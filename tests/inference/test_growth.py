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
def test_a_scoring_actor_that_remembers_what_it_met_does_not_grow_over_ten_thousand_images(tmp_path):
    """Photographs of many sizes, and every oddity and hazard there is among them; all of them differ in a last byte."""
    makers = [make for _, make in [*factory.SOUND.values(), *factory.ODD.values(), *factory.REFUSED.values()]]
    photos = [factory.encoded(factory.photo(200 + 13 * seed, 150 + 7 * seed, seed), "JPEG") for seed in range(60)]
    for number, data in enumerate([*(make() for make in makers), *photos]):
        for copy in range(50):
            (tmp_path / f"{copy:03}-{number:03}").write_bytes(data + bytes([copy]))
    command = [sys.executable, "-m", "tests.inference.growth", str(tmp_path), str(IMAGES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["end"] - found["warm"] <= 50
