"""Takes the pictures of the tutorials again, from folders in which their commands have run:

    python -m tests.docs.shell docs/tutorials/archive-overnight.md /tmp/journeys/archive-overnight     (and so the other two)
    python -m tests.docs.pictures /tmp/journeys

Each is a PNG of at most 200 KB with a palette.
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.docs import shell
from tests.docs.blocks import ROOT
from tests.make.browser import chromium

TUTORIALS = ROOT / "docs" / "tutorials"
# Name of the picture: the tutorial, the page in its folder, what is scrolled to (a selector, or the
# beginning of a heading), the height.
SHOTS = {
    "run-report": ("archive-overnight", "run/report.html", "", 820),
    "false-flags": ("archive-overnight", "run/report.html", "How many of these flags", 520),
    "verdicts": ("check-images", "verdicts.html", "", 1000),
    "evaluation": ("your-own-detector", "figures/report.html", "", 560),
}
WIDTH = 1000


def keep(png: bytes, name: str) -> None:
    """With as many colours as 200 KB hold."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (200, 96, 48, 24):
        file = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= 200_000:
            break
    (TUTORIALS / f"{name}.png").write_bytes(file.getvalue())
    print(name, file.tell())


def shoot(browser: Any, page: Path, name: str, heading: str, height: int) -> None:
    tab = browser.new_page(viewport={"width": WIDTH, "height": height})
    tab.goto(page.as_uri())
    if heading:
        tab.locator(
            f"h2:has-text('{heading}'), h3:has-text('{heading}'), summary:has-text('{heading}')"
        ).first.evaluate(
            "one => { let open = one; while ((open = open.parentElement)) if (open.tagName === 'DETAILS') open.open = true;"
            " window.scrollTo(0, one.getBoundingClientRect().top + window.scrollY - 16) }"
        )
    keep(tab.screenshot(), name)
    tab.close()


@contextmanager
def endpoint(folder: Path) -> Iterator[str]:
    """The address of `touchstone serve --ensemble tiny`."""
    variables = shell.environment(folder, Path(sys.executable).parent)
    command = ["touchstone", "serve", "--ensemble", "tiny", "--port", "8417"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(60)


def main(folder: Path) -> None:
    """Take all of them."""
    with chromium() as browser:
        for name, (tutorial, page, heading, height) in SHOTS.items():
            if (folder / tutorial / page).exists():
                shoot(browser, folder / tutorial / page, name, heading, height)
        images = folder / "check-images"
        with endpoint(images) as url:
            tab = browser.new_page(viewport={"width": WIDTH, "height": 820})
            tab.goto(url)
            tab.set_input_files(
                "input[type=file]",
                images / "images" / "archive" / "desk" / "drafts" / "f12ffc.jpg",
            )
            tab.get_by_text("log-odds").first.wait_for(timeout=60_000)
            keep(tab.screenshot(), "endpoint")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
