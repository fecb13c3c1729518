"""Memory of a scoring actor's work: flat, whatever it is given.

python -m tests.inference.test_growth FOLDER          → JSON: MiB after a fifth of the images, and at the end
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app.archives import ManifestMember
from ray_app.ensembles import load_ensemble_card
from ray_app.images import ImageLimits
from ray_app.inference import BlockReader, StageClock, judge, make_spec
from ray_app.inference.reuse import ScoreCache
from ray_app.inference.scorer import EnsembleScorer
from ray_app.storage import Fetcher
from tests.images import factory

ROOT = Path(__file__).resolve().parents[2]
IMAGES, BLOCK = 10_000, 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_scoring_actor_that_remembers_what_it_met_does_not_grow_over_ten_thousand_images(tmp_path):
    """Photographs of many sizes, and every oddity and hazard there is among them; all of them differ in a last byte."""
    makers = [make for _, make in [*factory.SOUND.values(), *factory.ODD.values(), *factory.REFUSED.values()]]
    photos = [factory.encoded(factory.photo(200 + 13 * seed, 150 + 7 * seed, seed), "JPEG") for seed in range(60)]
    for number, data in enumerate([*(make() for make in makers), *photos]):
        for copy in range(50):
            (tmp_path / f"{copy:03}-{number:03}").write_bytes(data + bytes([copy]))
    command = [sys.executable, "-m", "tests.inference.test_growth", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["end"] - found["warm"] <= 50


def resident_mib() -> float:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main(folder: Path) -> None:
    spec = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
    clock, recall, warm = StageClock(), ScoreCache(spec), 0.0
    reader, scorer = BlockReader(spec, clock, fetcher=Fetcher(), recall=recall), EnsembleScorer(spec, clock)
    paths = sorted(folder.iterdir())
    for start in range(0, IMAGES, BLOCK):
        chosen = [paths[place % len(paths)] for place in range(start, start + BLOCK)]
        members = [ManifestMember(start + slot, str(path), None, 0, "", -1, 0, slot, {}) for slot, path in enumerate(chosen)]
        outcomes = []
        outputs = scorer.score(reader.read(members, outcomes))
        judge(spec, outcomes, outputs)
        recall.learn(outcomes, outputs)
        if start + BLOCK == IMAGES // 5:
            warm = resident_mib()
    print(json.dumps({"warm": warm, "end": resident_mib(), "counts": reader.decoder.counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
