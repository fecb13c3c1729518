"""A run over images of 100 megapixels: two workers share one budget, and what the kernel counts
stays under what was printed.
"""

from pathlib import Path

import pytest
from PIL import Image

from tests.images import factory

BUDGET = 1_300_000_000  # one progressive image of 100 megapixels at a time, or three plain ones
WIDTH, HEIGHT = 11_600, 8_700
COPIES = {"plain.jpg": 6, "progressive.jpg": 6, "page.tif": 2, "small.jpg": 4}


def write_archive(folder: Path) -> None:
    """As cameras make them, 100 megapixels in several formats, among ordinary ones."""
    folder.mkdir()
    large = factory.photo(WIDTH // 20, HEIGHT // 20).resize(
        (WIDTH, HEIGHT), Image.Resampling.BILINEAR
    )
    made = {
        "plain.jpg": factory.encoded(large, "JPEG", quality=85),
        "progressive.jpg": factory.encoded(
            large, "JPEG", quality=85, progressive=True, subsampling=0
        ),
        "page.tif": factory.encoded(large.convert("1"), "TIFF", compression="group4"),
        "small.jpg": factory.encoded(factory.photo(1600, 1200), "JPEG"),
    }
    for name, data in made.items():
        for number in range(COPIES[name]):
            (folder / f"{number:02}-{name}").write_bytes(data)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_stay_under_the_budget_that_is_printed(score_on_ray, tmp_path):
    write_archive(tmp_path / "archive")
    finished, rows = score_on_ray(
        tmp_path / "archive", cluster={"workers": 2, "decode_bytes": BUDGET}, block_members=4
    )
    assert finished.summary["statuses"] == {"ok": sum(COPIES.values())}
    session = finished.summary["session"]
    memory = session["memory"]
    assert (memory["processes"], memory["decode_bytes"]) == (2, BUDGET)
    assert session["seconds"]["wait"] > 0, "two progressive ones at a time do not fit"
    assert session["peak_worker_bytes"] <= memory["process_bytes"] + memory["decode_bytes"]
    for name in COPIES:
        assert len({row["score"] for uri, row in rows.items() if uri.endswith(name)}) == 1, name
