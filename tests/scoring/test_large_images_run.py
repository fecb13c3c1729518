"""Runs over large images: two workers share one budget, detectors that keep sizes score each, and
what the kernel counts stays under what was printed.
"""

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card
from tests.make import images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BUDGET = 1_300_000_000  # one progressive image of 100 megapixels at a time, or three plain ones
WIDTH, HEIGHT = 11_600, 8_700
COPIES = {"plain.jpg": 6, "progressive.jpg": 6, "page.tif": 2, "small.jpg": 4}


def write_archive(folder):
    """As cameras make them, 100 megapixels in several formats, among ordinary ones."""
    folder.mkdir()
    small = images.photo(WIDTH // 20, HEIGHT // 20)
    large = small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    progressive = {"quality": 85, "progressive": True, "subsampling": 0}
    made = {
        "plain.jpg": images.encoded(large, "JPEG", quality=85),
        "progressive.jpg": images.encoded(large, "JPEG", **progressive),
        "page.tif": images.encoded(large.convert("1"), "TIFF", compression="group4"),
        "small.jpg": images.encoded(images.photo(1600, 1200), "JPEG"),
    }
    for name, data in made.items():
        for number in range(COPIES[name]):
            (folder / f"{number:02}-{name}").write_bytes(data)
    return folder


def test_workers_stay_under_the_printed_memory(score_on_ray, tmp_path):
    cluster = {"workers": 2, "decode_bytes": BUDGET}
    archive = write_archive(tmp_path / "archive")
    finished, rows = score_on_ray(archive, cluster=cluster, block_members=4)
    assert finished.summary["statuses"] == {"ok": sum(COPIES.values())}
    session = finished.summary["session"]
    memory = session["memory"]
    assert (memory["processes"], memory["decode_bytes"]) == (2, BUDGET)
    assert session["seconds"]["wait"] > 0, "two progressive ones at a time do not fit"
    assert session["peak_worker_bytes"] <= memory["process_bytes"] + memory["decode_bytes"]
    for name in COPIES:
        assert len({row["score"] for uri, row in rows.items() if uri.endswith(name)}) == 1, name


SIZES = [(64, 64), (97, 61), (300, 400), (65, 900), (1024, 768), (2400, 1600)]


def write_sizes(folder):
    """JPEG files of noise on a gradient: no two alike, none of them flat."""
    folder.mkdir()
    for number, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(number)
        ramp = np.linspace(0, 200, width, dtype=np.float32)[None, :, None]
        pixels = (ramp + rng.random((height, width, 3), np.float32) * 55).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}-{width}x{height}.jpg", quality=90)
    return folder


def test_detector_that_keeps_sizes_scores_each(score_on_ray, tmp_path):
    """All but 97 × 61, whose short side is below the card's range."""
    card = write_card(seeded_card("corvi2023", tmp_path), tmp_path / "card.yaml")
    photos = write_sizes(tmp_path / "photos")
    finished, rows = score_on_ray(photos, detectors=(str(card),), cluster={"workers": 1})
    assert finished.summary["statuses"] == {"ok": len(SIZES)}
    scores = [rows[uri]["scores"]["corvi2023"] for uri in sorted(rows)]
    limits = load_card("corvi2023").valid_range
    allowed = [limits.describe_mismatch(*size) is None for size in SIZES]
    assert [score is not None for score in scores] == allowed
    assert sum(allowed) == len(SIZES) - 1
    assert len({score for score in scores if score is not None}) == sum(allowed)
    assert finished.summary["session"]["peak_worker_bytes"] < 2 * 2**30
