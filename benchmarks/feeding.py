"""How many cores keep one GPU busy, for each shipped detector.

    python -m benchmarks.feeding [--photographs FOLDER] [--gmac 30000] [DETECTOR …]

It prints a table in Markdown. The processor time of a decoder is measured on one core of this
machine: to check, decode, and prepare JPEG photographs of 1024 × 768, or those of a folder. The
rate of a GPU is estimated from the multiply-adds on the card, as `touchstone plan` does. No weights
and no GPU are needed.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.photographs import write_photographs
from ray_app.config import list_detectors
from ray_app.ensembles import build_ensemble
from ray_app.images import BatchLimits
from ray_app.images.provenance import ProvenanceConfig
from ray_app.inference import ResourceEstimate, ScoringSpec, StageClock, make_spec
from ray_app.inference.worker import open_decoder
from ray_app.scoring.layout import GMAC_PER_S, MIN_GPU_S

PHOTOGRAPHS, WARM_UP = 48, 8  # Decoded in batches of `WARM_UP`, of which the first is not measured.


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feeding", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("detectors", nargs="*", metavar="DETECTOR", help="[all shipped]")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--gmac",
        type=float,
        default=GMAC_PER_S["gpu"],
        help="billions of multiply-adds that the GPU does per second in bf16 [%(default)s]",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # As in a decoder of a run.
    print(
        "| detector | decoder, ms of a core | one core, images/s | GPU, images/s | cores per GPU |"
    )
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="feeding-") as folder:
        photographs = options.photographs or Path(folder)
        if not options.photographs:
            write_photographs(photographs, PHOTOGRAPHS)
        files = [path.read_bytes() for path in sorted(photographs.iterdir())]
        for name in options.detectors or list_detectors():
            spec = make_spec(
                build_ensemble([name]),
                limits=BatchLimits(),
                device="cuda",
                slots=WARM_UP,
                provenance=ProvenanceConfig().policy(),
            )
            on_core_s = measure_decoder(spec, files)
            gmac = sum(ResourceEstimate.from_spec(spec).pool_gmac)
            rate = 1 / max(gmac / options.gmac, MIN_GPU_S)
            print(
                f"| `{name}` | {1000 * on_core_s:.1f} | {1 / on_core_s:.0f} | {rate:,.0f} "
                f"| {max(1, rate * on_core_s):,.0f} |",
                flush=True,
            )


def measure_decoder(spec: ScoringSpec, files: Sequence[bytes]) -> float:
    """Return the processor seconds of a decoder per image, without those of the first images."""
    decoder = open_decoder(spec, StageClock(), hand_over=True)
    for start in range(0, len(files), WARM_UP):
        if start == WARM_UP:
            begin = time.process_time()
        decoder.decode(enumerate(files[start : start + WARM_UP], start))
    return (time.process_time() - begin) / (len(files) - WARM_UP)


if __name__ == "__main__":
    main()
