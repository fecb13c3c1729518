"""Measure how many damaged images `decode_image` refuses, for each kind of damage.

    python -m benchmarks.damage FOLDER [--files 300] [--format JPEG] [--json FILE]

Takes intact JPEGs below FOLDER, the same number of each subfolder if possible, and damages a seeded copy of each in every way. With
another `--format`, the images are encoded in that format first. Prints a Markdown table. An image passes if it is decoded and its pixels
differ from the intact ones. Passing images with the flag `irregular_jpeg` are counted separately. Nothing is written below FOLDER.
"""

import argparse
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np

from ray_app.images import DecodedImage, ImageLimits, ImageRefused, decode_image, jpeg

LENGTH = 512  # bytes of one damaged place
SEED = 58
MIN_BYTES = 8 * LENGTH  # of the coded data; smaller images are left out
LIMITS = ImageLimits()
ENCODERS = {
    "JPEG": {},
    "PNG": {"format": "PNG"},
    "WEBP": {"format": "WEBP", "quality": 85},
    "TIFF": {"format": "TIFF", "compression": "jpeg", "quality": 90},
    "AVIF": {"format": "AVIF", "quality": 75},
    "HEIC": {"format": "HEIF", "quality": 75},
}

Damage = Callable[[bytes, bytes, int, np.random.Generator], bytes]


def overwrite(data: bytes, at: int, piece: bytes) -> bytes:
    """Replace bytes of a file and keep its length."""
    return data[:at] + piece + data[at + len(piece) :]


def splice(data: bytes, donor: bytes, at: int, rng: np.random.Generator) -> bytes:
    """Write coded data of another image over a file's own."""
    start, end = coded_range(donor)
    start += int(rng.integers(0, end - start - LENGTH))
    return overwrite(data, at, donor[start : start + LENGTH])


def convert_line_ends(data: bytes, *_: object) -> bytes:
    """Turn every LF into CR LF, as FTP in ASCII mode does."""
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


DAMAGES: dict[str, Damage] = {
    "512 bytes of another image": splice,
    "512 zeros": lambda data, _, at, __: overwrite(data, at, bytes(LENGTH)),
    "512 random bytes": lambda data, _, at, rng: overwrite(data, at, rng.bytes(LENGTH)),
    "512 random bytes without 0xFF": lambda data, _, at, rng: overwrite(data, at, rng.integers(0, 255, LENGTH, np.uint8).tobytes()),
    "512 bytes removed": lambda data, _, at, __: data[:at] + data[at + LENGTH :],
    "one bit changed": lambda data, _, at, __: overwrite(data, at, bytes((data[at] ^ 16,))),
    "LF to CR LF": convert_line_ends,
    "cut off": lambda data, _, at, __: data[:at],
    "cut off, with an end marker": lambda data, _, at, __: data[:at] + data[-2:],
}


def coded_range(data: bytes) -> tuple[int, int]:
    """Find the largest scan of a JPEG, or the second half of another file, most of which is coded data."""
    if not data.startswith(b"\xff\xd8"):
        return len(data) // 2, len(data) - 64
    scans = [segment for segment in jpeg.segments(data) if segment.marker == jpeg.SCAN]
    return max(((scan.start, scan.end) for scan in scans), key=lambda scan: scan[1] - scan[0])


def decode(data: bytes) -> DecodedImage | ImageRefused:
    """Decode an image, or return why it is refused."""
    try:
        return decode_image(data, LIMITS)
    except ImageRefused as refusal:
        return refusal


def list_files(folder: Path) -> Iterator[Path]:
    """Yield JPEGs of every subfolder in turn."""
    folders = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file():
            folders[path.parent].append(path)
    return (path for path in chain.from_iterable(zip_longest(*folders.values())) if path is not None)


def intact_images(folder: Path, format_name: str) -> Iterator[tuple[bytes, DecodedImage]]:
    """Yield files that are decoded without a flag of damage, in the given format, with their pixels."""
    for path in list_files(folder):
        data = path.read_bytes()
        image = decode(data)
        if isinstance(image, ImageRefused) or "irregular_jpeg" in image.facts.flags:
            continue
        if options := ENCODERS[format_name]:
            out = io.BytesIO()
            image.pixels.save(out, **options)
            data = out.getvalue()
            image = decode(data)
        start, end = coded_range(data)
        if isinstance(image, DecodedImage) and end - start >= MIN_BYTES:
            yield data, image


def measure(folder: Path, count: int, format_name: str) -> dict[str, Counter[str]]:
    """Count outcomes for each kind of damage: refused, irregular_jpeg, or passed."""
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in DAMAGES}
    donor = b""
    for number, (data, image) in enumerate(islice(intact_images(folder, format_name), count + 1)):
        if number:
            start, end = coded_range(data)
            for name, damage in DAMAGES.items():
                rng = np.random.default_rng((SEED, number, list(DAMAGES).index(name)))
                at = start + int(rng.integers(0, end - start - LENGTH))
                result = decode(damage(data, donor, at, rng))
                outcomes[name][judge(result, image)] += 1
        donor = data
    return outcomes


def judge(result: DecodedImage | ImageRefused, intact: DecodedImage) -> str:
    """Return the status of a damaged image, or how its pixels differ from those of the intact image."""
    if isinstance(result, ImageRefused):
        return result.status.value
    if result.pixels.tobytes() == intact.pixels.tobytes():
        return "same pixels"
    return "passed with irregular_jpeg" if "irregular_jpeg" in result.facts.flags else "passed"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--format", choices=ENCODERS, default="JPEG")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.format == "HEIC":
        import pillow_heif

        pillow_heif.register_heif_opener()
    outcomes = measure(args.folder, args.files, args.format)
    print(f"| damage ({args.format}) | images | refused | passed with `irregular_jpeg` | passed | same pixels |\n|" + " --- |" * 6)
    for name, counts in outcomes.items():
        shown = [counts["passed with irregular_jpeg"], counts["passed"], counts["same pixels"]]
        print(f"| {name} | {counts.total()} | {counts.total() - sum(shown)} | " + " | ".join(map(str, shown)) + " |")
    if args.json:
        args.json.write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
