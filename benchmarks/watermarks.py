"""Watermarks: how many marked pictures are still read after what happens to files, and whether an unmarked one ever is.

    python -m benchmarks.watermarks survive FOLDER --count 1000 [--json FILE]
    python -m benchmarks.watermarks false FOLDER --count 20000 [--variants 1] [--json FILE]

`survive` crops pictures of FOLDER to sizes that the generators make, marks each as one of their codes would, with the package's own code
(`pip install invisible-watermark opencv-python-headless PyWavelets`, no torch needed), and reads it as it is and after each change.
`false` reads every picture as it is, and `variants` further sizes, crops and qualities of each; it lists what it reads.
"""

import argparse
import importlib.util
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_app.images import ImageLimits
from ray_app.images.decode import decode_image
from ray_app.images.facts import ImageRefused
from ray_app.images.provenance.watermark import MESSAGES, SIZES, read_watermark
from ray_app.reports.run import measured_rate

LIMITS = ImageLimits()
# Message, width and height, whether floats are marked, and whether red stands where OpenCV has blue.
CODES = (
    (0, SIZES[:1], False, False),  # Stable Diffusion 1
    (1, SIZES[:2], False, False),
    (2, SIZES[2:9], False, False),  # InvokeAI
    (3, SIZES[2:9], True, False),  # SDXL: generative-models, and diffusers today
    (3, SIZES[2:9], True, True),  # diffusers at first
    (4, (SIZES[2], (1360, 768)), True, False),
)  # fmt: skip


def jpeg(picture: Image.Image, quality: int, subsampling: int = 2) -> Image.Image:
    """Saved and read again; chroma at half size (2), as is usual, or whole (0)."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(file).convert("RGB")


def resized(picture: Image.Image, scale: float) -> Image.Image:
    """By Lanczos."""
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


def cropped(picture: Image.Image, left: int, top: int) -> Image.Image:
    """Without these columns and rows, and 50 at the other sides."""
    return picture.crop((left, top, picture.width - 50, picture.height - 50))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as written (PNG)": lambda picture: picture,
    **{f"JPEG {quality}": lambda picture, quality=quality: jpeg(picture, quality) for quality in (95, 90, 80, 75, 70)},
    **{f"JPEG {quality}, 4:4:4": lambda picture, quality=quality: jpeg(picture, quality, 0) for quality in (95, 75)},
    **{f"resized × {scale}": lambda picture, scale=scale: resized(picture, scale) for scale in (0.9, 0.75, 0.5)},
    "cropped by a multiple of 8": lambda picture: cropped(picture, 64, 40),
    "cropped elsewhere": lambda picture: cropped(picture, 61, 43),
    "resized × 0.75, JPEG 90": lambda picture: jpeg(resized(picture, 0.75), 90),
}  # fmt: skip


def _package() -> Any:
    """Its module of this mark alone: the package's `__init__` imports torch."""
    found = importlib.util.find_spec("imwatermark")
    if found is None or not found.submodule_search_locations:
        sys.exit("pip install --no-deps invisible-watermark opencv-python-headless PyWavelets")
    spec = importlib.util.spec_from_file_location("maxDct", Path(found.submodule_search_locations[0]) / "maxDct.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EmbedMaxDct


def pictures(folder: Path, seed: int = 0) -> Iterator[tuple[Path, Image.Image]]:
    """All that decode, in an order by the seed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(seed).shuffle(paths)
    for path in paths:
        try:
            yield path, decode_image(path.read_bytes(), LIMITS).pixels
        except ImageRefused:
            continue


def survive(folder: Path, count: int) -> dict[str, Any]:
    """How many of `count` marked pictures are read after each change, with intervals; how many the package reads whole; and wrong names."""
    encoder, chance = _package(), random.Random(1)
    read, package, wrong, done = dict.fromkeys(CHANGES, 0), 0, 0, 0
    for _, picture in pictures(folder):
        place, sizes, floats, swapped = CODES[done % len(CODES)]
        width, height = chance.choice(sizes)
        scale = max(width / picture.width, height / picture.height)
        if scale > 1 or read_watermark(picture) is not None:
            continue
        picture = picture.resize(
            (max(width, round(picture.width * scale)), max(height, round(picture.height * scale))), Image.Resampling.LANCZOS
        )
        message = MESSAGES[place]
        pixels = np.ascontiguousarray(np.asarray(picture.crop((0, 0, width, height)))[..., :: 1 if swapped else -1])
        mark = encoder(list(message.bits.astype(int)), wmLen=len(message.bits)).encode(pixels.astype(np.float32) if floats else pixels)
        mark = np.ascontiguousarray(mark.clip(0, 255).round().astype(np.uint8)[..., :: 1 if swapped else -1])
        if done < 200:  # it takes its time
            bits = encoder([], wmLen=len(message.bits)).decode(np.ascontiguousarray(mark[..., ::-1]))
            package += bool((bits == message.bits).all())
        for name, change in CHANGES.items():
            found = read_watermark(change(Image.fromarray(mark)))
            read[name] += found is not None and found.of == message.of
            wrong += found is not None and found.of != message.of
        done += 1
        if done % 100 == 0:
            print(done, read, file=sys.stderr, flush=True)
        if done == count:
            break
    rates = {name: measured_rate(right / done, done)._asdict() for name, right in read.items()}
    return {"pictures": done, "read": rates, "whole_by_package_of_the_first_200": package, "wrong_names": wrong}


def false(folder: Path, variants: int, count: int) -> dict[str, Any]:
    """What is read of pictures that nobody marked on purpose; look at each."""
    chance, seen, hits, seconds = random.Random(2), 0, [], 0.0
    for path, picture in pictures(folder):
        for variant in range(1 + variants):
            if variant:
                left, top = chance.randrange(picture.width // 4 + 1), chance.randrange(picture.height // 4 + 1)
                picture = resized(picture.crop((left, top, picture.width, picture.height)), chance.uniform(0.5, 1))
                picture = jpeg(picture, chance.randrange(60, 100), chance.choice((0, 2)))
            started = time.process_time()
            found = read_watermark(picture)
            seconds += time.process_time() - started
            seen += 1
            if seen % 2000 == 0:
                print(f"{seen} readings, {len(hits)} marks", file=sys.stderr, flush=True)
            if found is not None:
                hits.append({"file": str(path), "variant": variant, **found.model_dump()})
        if seen >= count:
            break
    return {"read": seen, "ms": 1000 * seconds / max(seen, 1), "hits": hits}


def main() -> None:
    """Measure, and print or write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("survive", "false"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="marked pictures, or readings of unmarked ones")
    parser.add_argument("--variants", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = survive(given.folder, given.count) if given.what == "survive" else false(given.folder, given.variants, given.count)
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text)


if __name__ == "__main__":
    main()
