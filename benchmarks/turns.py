"""What turns cost: detectors that do not fit together score one block of large photographs.

    python -m benchmarks.turns --images 56 --worker-gb 4.5

Prints the seconds of loading and of all other work, and the most memory of the process. Loading is
the same for a block of any size, so `load_share_of_planned_block` follows from fewer images. The
detectors have published sizes and random weights. Twelve photographs are written; their bytes are
used again.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import DetectorCard, load_card
from ray_app.ensembles import build_ensemble
from ray_app.images import ImageLimits
from ray_app.inference import Batch, BatchDecoder, ResourceEstimate, StageClock, make_spec
from ray_app.inference.decoder import WALL_LIMIT_S, CrashSafeDecoder
from ray_app.inference.groups import group_detectors
from ray_app.inference.worker import open_group_scorer
from ray_app.scoring.layout import plan_layout

SIZE, PHOTOGRAPHS = (6000, 4000), 12  # 24 megapixels
# The mix of the shipped cards: CLIP and DINOv3 ViT-L, SigLIP 2, SwinV2-S, ViT-S, ResNet-50.
COUNTS = {
    "clip-d-10k-plus": 7,
    "vfm-dinov3-l16": 1,
    "siglip2-open-deepfake": 2,
    "openfake-swinv2-small": 5,
    "community-forensics-vits384": 6,
    "cnndetection": 4,
}


def write_large_photographs(folder: Path) -> None:
    """Write photographs of 24 megapixels, each enlarged from a quarter of its sides."""
    width, height = SIZE
    for path in write_photographs(folder, PHOTOGRAPHS, size=(width // 4, height // 4)):
        with Image.open(path) as image:
            image.resize(SIZE, Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


def write_detectors(folder: Path) -> list[str]:
    """Write cards with random weights, each with weights of its own, and return their paths."""
    paths = []
    for name, count in COUNTS.items():
        for number in range(count):
            own = folder / f"{name}-{number}"
            own.mkdir()
            seeded = seeded_card(name, own, number)
            backbone = seeded.backbone
            if backbone is not None:  # Detectors that share a backbone would be one group.
                backbone = backbone.model_copy(update={"name": f"{backbone.name}-{number}"})
            card = seeded.model_copy(update={"name": f"{name}-{number}", "backbone": backbone})
            paths.append(str(write_card(card, own / "card.yaml")))
    return paths


def measure(
    cards: list[DetectorCard], files: list[Path], images: int, limit: float
) -> dict[str, object]:
    """Score a block of photographs in this process, and return what it took.

    The first group is in memory before, as in a worker after its first block.
    """
    import torch

    torch.set_num_threads(1)
    spec = make_spec(
        build_ensemble([card.name for card in cards]), cards=cards, limits=ImageLimits()
    )
    groups = group_detectors(spec, limit)
    assert groups is not None
    layout = plan_layout(
        ResourceEstimate.from_spec(spec),
        slots=4,
        cpus=1,
        gpus=0,
        workers=1,
        block_members=2048,
        groups=groups,
    )
    clock = StageClock()
    careful = CrashSafeDecoder(spec.limits, None, WALL_LIMIT_S, None)
    decoder, scorer = open_group_scorer(
        spec, groups.groups, clock, careful=careful, kept_bytes=groups.kept_bytes
    )
    data = [file.read_bytes() for file in files]
    cpu_s = time.process_time()
    scorer.score(_batches(decoder, data, images))
    cpu_s, seconds = time.process_time() - cpu_s, clock.take()
    others = sum(seconds.values()) - seconds["load"]
    return {
        "groups": len(groups.groups),
        "weights_gb": round(groups.weights_bytes / 1e9, 2),
        "planned_block": layout.block_members,
        "images": images,
        "load_s": round(seconds["load"], 1),
        "other_s": round(others, 1),
        "cpu_s": round(cpu_s, 1),
        "load_share": round(seconds["load"] / others, 4),
        "load_share_of_planned_block": round(
            seconds["load"] / (others / images * layout.block_members), 4
        ),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "process_gb": round(groups.process_bytes / 1e9, 2),
        "limit_gb": limit / 1e9,
    }


def _batches(decoder: BatchDecoder, data: list[bytes], images: int) -> Iterator[Batch]:
    files = islice(cycle(data), images)
    while some := list(islice(files, 4)):
        yield decoder.decode([(0, file) for file in some])


def main() -> None:
    """Write what is scored, and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=56)
    parser.add_argument("--worker-gb", type=float, default=4.5)
    parser.add_argument("--folder", type=Path, help="where cards and photographs are kept")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    if options.measure:
        cards = [load_card(path) for path in json.loads((folder / "cards.json").read_text())]
        files = sorted((folder / "photographs").iterdir())
        print(json.dumps(measure(cards, files, options.images, options.worker_gb * 1e9)))
        return
    if not (folder / "cards.json").exists():
        write_large_photographs(folder / "photographs")
        (folder / "cards.json").write_text(json.dumps(write_detectors(folder)))
    command = [sys.executable, "-m", "benchmarks.turns", "--measure", "--folder", str(folder)]
    command += ["--images", str(options.images), "--worker-gb", str(options.worker_gb)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
