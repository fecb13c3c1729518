"""The pages that people are given, made of a run that was scored for real; and what a browser says
of a page's weight and its figures.
"""

import gzip
import re
from pathlib import Path

from ray_app.cli.main import main
from ray_app.runs import RunDirectory
from ray_app.scoring.gallery import make_gallery
from ray_app.scoring.report import write_report

# Figures that a browser breaks over two lines, with the text that they stand in. Hashes, paths and
# settings may break anywhere.
BROKEN_FIGURES = r"""(() => {
  const broken = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (text.parentElement.closest(".code, .identity, .path, .name, summary, pre, script, style, svg, .unseen")) continue;
    const figure = text.parentElement.closest("p, li, .legend")
      ? /(?<![\w-])[+−-]?\d[\d,.]*/g
      : /(?<![\w-])[<>]?\s?[+−-]?\d[\d,.]*(\s?%| px| [MGk]B)?/g;
    for (const found of text.textContent.matchAll(figure)) { // in a sentence a unit may stand on the next line
      range.setStart(text, found.index);
      range.setEnd(text, found.index + found[0].trimEnd().length);
      if (new Set([...range.getClientRects()].filter(box => box.width > 0).map(box => Math.round(box.top))).size > 1)
        broken.push(`${found[0]} in ${text.textContent.trim().slice(0, 60)}`);
    }
  }
  return broken;
})()"""
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
EAGER = "document.querySelectorAll('img').forEach(one => { one.loading = 'eager'; })"


def write_pages(run: str, image: str, folder: Path) -> dict[str, Path]:
    """By name: run report, gallery, check of one picture and of several."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = RunDirectory.open(run)
    write_report(opened)
    (folder / "report.html").write_bytes(opened.store.read("report.html"))
    make_gallery(run, str(folder / "gallery"), quiet=True)
    one, several = folder / "check.html", folder / "checks.html"
    assert main(["check", image, "--ensemble", "tiny", "--html", str(one)]) == 0
    assert (
        main(["check", str(Path(image).parent), "--ensemble", "tiny", "--html", str(several)]) == 0
    )
    return {
        "report": folder / "report.html",
        "gallery": folder / "gallery" / "index.html",
        "check": one,
        "checks": several,
    }


def paper_pages(page) -> int:
    """On how many sheets of A4 the page that is shown is printed."""
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))


def weight_of(path: Path, page) -> dict[str, int]:
    """Of a page that stands alone: bytes, bytes with gzip, elements, and bytes of its largest
    picture.
    """
    text = path.read_bytes()
    pictures = [
        len(one) * 3 // 4 for one in re.findall(rb"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text)
    ]
    nodes = page.evaluate("document.querySelectorAll('*').length")
    return {
        "bytes": len(text),
        "gzip": len(gzip.compress(text)),
        "elements": nodes,
        "picture": max(pictures, default=0),
    }
