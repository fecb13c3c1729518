"""The table of formats in docs/formats.md, held to the code."""

from pathlib import Path

from ray_app.images import BatchLimits
from ray_app.images.decode import FORMATS
from ray_app.images.limits import LARGEST
from ray_app.serving.config import RequestLimits

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "formats.md").read_text()


def table(head: str) -> list[list[str]]:
    """The rows of the table whose first column is called so."""
    body = PAGE[PAGE.index(f"| {head} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body]


def stated(pixels: int) -> str:
    """A limit as the page writes it."""
    return f"{pixels // 10**6} MP"


def test_every_format_stands_there_with_its_limit_and_whether_the_endpoint_takes_it():
    rows = {row[0]: row for row in table("format")}
    assert set(rows) == {*FORMATS, "RAW"}
    limits, endpoint = BatchLimits(), RequestLimits().formats
    for name, (_, _, _, largest, served) in rows.items():
        is_largest = name in LARGEST or name == "RAW"  # the preview in it is a JPEG
        assert largest == stated(limits.max_pixels if is_largest else limits.max_whole_pixels), name
        assert served == ("yes" if name in endpoint else "no"), name
