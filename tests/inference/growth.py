"""One scoring actor's work without Ray: reads and scores a folder again and again, and says what the process takes.

python -m tests.inference.growth FOLDER IMAGES        → JSON: MiB after a fifth of the images, and at the end
"""

import json
import re
import sys
from pathlib import Path

from ray_app.archives import ManifestMember
from ray_app.ensembles import load_ensemble_card
from ray_app.images import ImageLimits
from ray_app.inference import BlockReader, StageClock, judge, make_spec
from ray_app.inference.reuse import ScoreCache
from ray_app.inference.scorer import EnsembleScorer
from ray_app.storage import Fetcher

BLOCK = 200


def resident_mib() -> float:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main(folder: Path, images: int) -> None:
    spec = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
    clock = StageClock()
    recall = ScoreCache(spec)
    reader, scorer = BlockReader(spec, clock, fetcher=Fetcher(), recall=recall), EnsembleScorer(spec, clock)
    paths = sorted(folder.iterdir())
    warm = 0.0
    for start in range(0, images, BLOCK):
        chosen = [paths[place % len(paths)] for place in range(start, start + BLOCK)]
        members = [ManifestMember(start + slot, str(path), None, 0, "", -1, 0, slot, {}) for slot, path in enumerate(chosen)]
        outcomes = []
        outputs = scorer.score(reader.read(members, outcomes))
        judge(spec, outcomes, outputs)
        recall.learn(outcomes, outputs)
        if start + BLOCK == images // 5:
            warm = resident_mib()
    print(json.dumps({"warm": warm, "end": resident_mib(), "counts": reader.decoder.counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
