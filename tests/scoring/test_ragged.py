"""Images of all sizes through a detector of the published width that keeps every size, in bounded
memory.
"""

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card

SIZES = [(64, 64), (97, 61), (300, 400), (65, 900), (1024, 768), (2400, 1600)]


def write_photographs(folder):
    """JPEG files of noise on a gradient: no two alike, none of them flat."""
    folder.mkdir()
    for number, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(number)
        ramp = np.linspace(0, 200, width, dtype=np.float32)[None, :, None]
        pixels = (ramp + rng.random((height, width, 3), np.float32) * 55).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}-{width}x{height}.jpg", quality=90)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_size_gets_a_score_and_memory_stays_bounded(score_on_ray, tmp_path):
    card = write_card(seeded_card("corvi2023", tmp_path), tmp_path / "card.yaml")
    finished, rows = score_on_ray(
        write_photographs(tmp_path / "photos"), detectors=(str(card),), cluster={"workers": 1}
    )
    assert finished.summary["statuses"] == {"ok": len(SIZES)}
    scores = [rows[uri]["scores"]["corvi2023"] for uri in sorted(rows)]
    allowed = [
        load_card("corvi2023").valid_range.doubt(width, height) is None for width, height in SIZES
    ]
    assert [score is not None for score in scores] == allowed
    assert sum(allowed) == len(SIZES) - 1, (
        "all but 97 × 61, whose short side is below the card's range"
    )
    assert len({score for score in scores if score is not None}) == sum(allowed)
    assert finished.summary["session"]["peak_worker_bytes"] < 2 * 2**30
