"""Take the screenshots of the documentation. Run it again when a page looks different.

    python -m tests.reports.screenshots [DEMO]
    python -m tests.reports.screenshots --tutorials FOLDER

The first command takes the pages of a demo's run and writes the table of their sizes into
docs/performance.md. DEMO is the folder of a `touchstone demo`; without it, one is made. The second
command takes the pages that the tutorials show. FOLDER is what the tutorials wrote, of

    pytest -m slow tests/docs/test_journeys.py --basetemp FOLDER -o tmp_path_retention_policy=all

Both need Chromium.
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ray_app.config import config_root
from tests.make.browser import chromium
from tests.make.page_browser import score_many, score_one
from tests.reports import pages
from tests.reports.real_pages import EAGER, paper_pages, weight_of, write_pages
from tests.serving.served import served

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH, HEIGHT = 1440, 1000
MOST_BYTES = 200_000
DECODED = "Promise.all([...document.images].map(one => one.decode().catch(() => null)))"
_BEGIN, _END = (
    "<!-- weights: python -m tests.reports.screenshots -->\n",
    "<!-- end of weights -->\n",
)
_NAMES = {
    "report": "run report", "gallery": "gallery, 60 images of 86", "check": "check of one image",
    "checks": "check of a folder", "evaluation": "evaluation (example)",
}  # fmt: skip


TUTORIALS = {
    "verdicts": ("verdicts.html", "verdicts.html", 1000, None),
    "run-report": ("flagged.parquet", "run/report.html", 820, None),
    "false-flags": ("flagged.parquet", "run/report.html", 520, "h-false"),
    "evaluation": ("mine.yaml", "figures/report.html", 560, None),
}
"""By image of a tutorial: a file that only the folder of this tutorial has, the page in it, the
height of the window, and the id of the heading to show.
"""


def main() -> None:
    if sys.argv[1:2] == ["--tutorials"]:
        take_tutorials(Path(sys.argv[2]))
    else:
        take_pages()


def take_tutorials(folder: Path) -> None:
    """Take the pages that the tutorials wrote below `folder`, and the page of an endpoint."""
    with chromium() as browser:
        for name, (only_here, file, height, heading) in TUTORIALS.items():
            path = next(folder.glob(f"*/{only_here}")).parent / file
            page = browser.new_page(
                viewport={"width": 1000, "height": height}, color_scheme="light"
            )
            page.goto(path.as_uri())
            page.evaluate(EAGER)
            page.evaluate(DECODED)
            if heading:
                page.evaluate(f"document.getElementById('{heading}').scrollIntoView()")
            keep(page, DOCS / "tutorials" / f"{name}.png")
            page.close()
        photo = next(folder.glob("*/images/archive/desk/drafts/f12ffc.jpg"))
        with served("--workers", "1", ensemble="tiny") as endpoint:
            page = browser.new_page(
                viewport={"width": 1000, "height": 820},
                color_scheme="light",
                reduced_motion="reduce",
            )
            page.goto(f"http://127.0.0.1:{endpoint.port}")
            page.wait_for_selector("#drop-note:not(:empty)")
            score_one(page, photo.name, photo.read_bytes())
            keep(page, DOCS / "tutorials" / "endpoint.png")


def take_pages() -> None:
    """Take the pages of a demo's run, and write the table of their sizes."""
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        folder = Path(place)
        demo = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "demo"
        if len(sys.argv) == 1:
            subprocess.run(
                [sys.executable, "-m", "ray_app.cli", "demo", "--out", str(demo)], check=True
            )
        top = json.loads((demo / "run" / "summary.json").read_text())["top"]
        found = write_pages(str(demo / "run"), top[2]["uri"], folder / "pages")
        found["evaluation"] = folder / "evaluation.html"
        found["evaluation"].write_text(pages.page_of("evaluation"), encoding="utf-8")
        (DOCS / "pages").mkdir(exist_ok=True)
        weights = dict(_seen(browser, found))
        weights["endpoint, one image scored"] = _endpoint(browser)
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    (DOCS / "performance.md").write_text(
        before + _BEGIN + _table(weights) + _END + rest.split(_END)[1], encoding="utf-8"
    )


def _seen(browser, found):
    """A picture of each page that is the reader's first, and each page's weight."""
    for name, path in found.items():
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(path.as_uri())
        page.evaluate(EAGER)
        page.evaluate(DECODED)
        if name == "report":
            keep(page, DOCS / "report.png")
            page.evaluate("document.getElementById('h-top').scrollIntoView()")
        if name == "evaluation":
            keep(page, DOCS / "evaluation.png")
        if name in ("report", "gallery", "check"):
            keep(page, DOCS / "pages" / f"{name}.png")
        if name == "gallery":
            page.click(".tile button.frame")
            keep(page, DOCS / "pages" / "enlarged.png")
            page.keyboard.press("Escape")
        yield _NAMES[name], weight_of(path, page) | {"paper": paper_pages(page)}
        page.close()


def _endpoint(browser):
    """The page of an endpoint with the default ensemble: one image, and several."""
    photos = sorted((config_root() / "sample" / "archive" / "photographs").glob("*.jpg"))[:8]
    with served("--workers", "1", ensemble="default") as endpoint:
        port = endpoint.port
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="light",
            reduced_motion="reduce",
        )
        transferred = []
        page.on("response", lambda response: transferred.append(response))
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#drop-note:not(:empty)")
        score_one(page, photos[0].name, photos[0].read_bytes())
        bodies = [
            one.body()
            for one in transferred
            if one.request.method == "GET" and one.url.startswith("http")
        ]
        weight = {
            "bytes": sum(map(len, bodies)),
            "gzip": None,
            "picture": 0,
            "paper": paper_pages(page),
        }
        keep(page, DOCS / "pages" / "endpoint.png")
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#drop-note:not(:empty)")
        score_many(page, [(path.name, path.read_bytes()) for path in photos])
        page.evaluate(DECODED)
        keep(page, DOCS / "pages" / "endpoint-many.png")
        page.close()
    return weight


def keep(page, path: Path) -> None:
    """The window as a PNG of few colours, at most 200 KB."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for colours in (256, 128, 64, 32):
        shot.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return
    shot.resize((WIDTH // 2, HEIGHT // 2)).quantize(128).save(path, optimize=True)


def _table(weights) -> str:
    lines = ["| page | HTML | with gzip | largest image | A4 sheets |", "|---|---|---|---|---|"]
    for name, one in weights.items():
        sizes = [
            f"{one[key] / 1000:,.0f} kB" if one[key] else "–"
            for key in ("bytes", "gzip", "picture")
        ]
        lines.append(f"| {name} | {' | '.join(sizes)} | {one['paper']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
