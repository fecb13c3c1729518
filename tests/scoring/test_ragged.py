"""An archive of images of all sizes through a detector that keeps every size, in bounded memory."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card

SIZES = [(64, 64), (97, 61), (300, 400), (1024, 768), (65, 900), (1500, 1100)]
GIB = 2**30


def write_photographs(folder, sizes):
    """JPEG files of noise on a gradient: no two alike, none of them flat."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        rng = np.random.default_rng(number)
        ramp = np.linspace(0, 200, width, dtype=np.float32)[None, :, None]
        pixels = (ramp + rng.random((height, width, 3), np.float32) * 55).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}-{width}x{height}.jpg", quality=90)
    return folder


def run(score, tmp_path, card, sizes):
    finished, rows = score(write_photographs(tmp_path / "photos", sizes), detectors=(str(write_card(card, tmp_path / "card.yaml")),))
    assert json.loads(json.dumps(finished.summary))["statuses"] == {"ok": len(sizes)}
    return finished.summary["session"], [rows[uri] for uri in sorted(rows)]


@pytest.mark.slow
def test_every_size_gets_a_score_and_memory_stays_bounded(score_on_ray, tmp_path):
    card = load_card("corvi2023")
    narrow = card.architecture.model_copy(update={"arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}})
    session, rows = run(score_on_ray, tmp_path, seeded_card(card.model_copy(update={"architecture": narrow}), tmp_path), SIZES)
    scores = [row["scores"]["corvi2023"] for row in rows]
    allowed = [card.valid_range.doubt(width, height) is None for width, height in SIZES]
    assert [score is not None for score in scores] == allowed
    assert sum(allowed) == len(SIZES) - 1, "all but 97 × 61, whose short side is below the card's range"
    assert len({score for score in scores if score is not None}) == sum(allowed)
    assert session["peak_worker_bytes"] < 2 * GIB


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_published_width_takes_24_megapixels_within_4_gib(score_on_ray, tmp_path):
    sizes = [(64, 64), (300, 400), (1024, 768), (6000, 4000)]
    session, rows = run(score_on_ray, tmp_path, seeded_card("corvi2023", tmp_path), sizes)
    assert all(row["scores"]["corvi2023"] is not None for row in rows)
    assert session["peak_worker_bytes"] < 4 * GIB
