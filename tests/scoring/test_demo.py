"""`touchstone demo`: the lines for the terminal, and the copy of the shipped sample archive."""

import csv
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from ray_app.config import config_root
from ray_app.errors import ExitCode
from ray_app.images import ImageLimits, decode_image
from ray_app.scoring import demo
from ray_app.scoring.run import ScoringResult
from tests.reports.example import example_summary

ENSEMBLE = {"name": "default", "members": [{"name": "a-detector"}]}
SHIPPED = config_root() / "sample"
NO_IMAGES = {"README.txt", "wire/cut-short.jpg", "wire/nothing.jpg"}


def scored(verdicts):
    """Rows with these verdicts and rising scores."""
    return [
        {"uri": f"/{at}", "verdict": verdict, "score": None if verdict is None else float(at)}
        for at, verdict in enumerate(verdicts)
    ]


def test_comparison_counts_right_wrong_abstained_and_not_scored():
    kinds = [demo.PHOTOGRAPH] * 4 + [demo.SIMULATED] * 3 + [demo.DRAWN] * 2
    rows = scored(["real", "real", "fake", "abstain", "fake", "real", None, "real", "fake"])
    labels = {row["uri"]: kind for row, kind in zip(rows, kinds, strict=True)}
    _, *lines, last = demo.comparison_lines(rows, labels, ENSEMBLE)
    assert lines == [
        "  photographs: 2 of 4 right (no evidence found), 1 flagged as fake, 1 left open",
        "  generated images, simulated: 1 of 3 right (flagged as fake), 1 no evidence found, 1 not scored",
        "  images of simulated cameras: 1 no evidence found, 1 flagged as fake",
    ]
    assert last == demo.SENTENCE


def test_selected_rows_are_some_of_each_verdict_in_order():
    rows = scored(["real", "fake", None, "abstain", "fake", "real"])
    assert [row["uri"] for row in demo.select_rows(rows)] == ["/4", "/1", "/3", "/2", "/5", "/0"]
    shown = demo.select_rows(scored(["real"] * 40 + ["fake"] * 30 + [None] * 3 + ["abstain"]))
    counts = ["fake"] * 8 + ["abstain"] + [None] * 3 + ["real"] * 8
    assert [row["verdict"] for row in shown] == counts
    assert [shown[0]["uri"], shown[12]["uri"]] == ["/69", "/39"]


LABELLED = {"/0": demo.PHOTOGRAPH}


@pytest.mark.parametrize(
    ("archive", "commands"),
    [
        (
            demo.DemoArchive("/my images", {}, limit=90),
            ["touchstone runs gallery /runs/1", "touchstone score '/my images' --out run"],
        ),
        (
            demo.DemoArchive("/archive", LABELLED, Path("/labels.csv"), Path("/CREDITS.txt")),
            ["touchstone evaluate /runs/1 --labels /labels.csv", "touchstone check YOUR.jpg"],
        ),
    ],
    ids=["own images", "sample"],
)
def test_lines_end_with_two_commands(archive, commands):
    finished = ScoringResult(ExitCode.DONE, example_summary(run="/runs/1"))
    lines = list(demo.DemoResult(finished, scored(["real"] * 50 + ["fake"] * 40), archive).lines())
    for line, command in zip(lines[-2:], commands, strict=True):
        assert command in line
    assert lines[-3] == "report: /runs/1/report.html"
    assert any(line.startswith("16 of 90 rows") for line in lines)
    assert any("--images takes more" in line for line in lines) is (archive.limit == 90)
    assert any(line.startswith("the labels, next to") for line in lines) is bool(archive.kinds)
    assert len(lines) <= 35


def test_copy_of_the_sample_knows_the_kind_of_each_image(tmp_path):
    archive = demo.copy_sample(tmp_path)
    kinds = list(archive.kinds.values())
    counts = [kinds.count(kind) for kind in (demo.PHOTOGRAPH, demo.DRAWN, demo.SIMULATED)]
    assert counts == [6, 40, 37]
    assert all(Path(uri.removeprefix("file://")).is_file() for uri in archive.kinds)
    assert demo.copy_sample(tmp_path) == archive, "the second call leaves the copy as it is"


def shipped_files():
    root = SHIPPED / "archive"
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def test_shipped_sample_is_small_and_labels_match_its_files():
    files = shipped_files()
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 2_000_000
    with (SHIPPED / "archive-labels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["path"] for row in rows} == files.keys() - NO_IMAGES
    for row in rows:
        assert hashlib.sha256((SHIPPED / row["uri"]).read_bytes()).hexdigest() == row["sha256"]
    for split in ("train", "test"):
        assert {row["label"] for row in rows if row["split"] == split} == {"real", "fake"}


def test_shipped_sample_credits_each_photograph():
    lines = (SHIPPED / "CREDITS.txt").read_text(encoding="utf-8").splitlines()
    names = {line.partition(":")[0] for line in lines if ": by " in line}
    assert names == {Path(name).name for name in shipped_files() if name.startswith("photographs/")}
    assert any("flower.jpg: by vultilion" in line and "CC BY 2.0" in line for line in lines)


def test_shipped_sample_has_every_format_and_every_odd_file():
    files = shipped_files()
    good = files.keys() - NO_IMAGES
    sizes = [decode_image(files[name].read_bytes(), ImageLimits()).pixels.size for name in good]
    assert min(map(min, sizes)) >= 200
    assert {Path(name).suffix for name in good} == {".jpg", ".png", ".webp", ".gif"}
    assert Image.open(files["desk/for-print.jpg"]).mode == "CMYK"
    assert Image.open(files["travel/2021/moving.gif"]).n_frames == 3
    assert files["wire/nothing.jpg"].stat().st_size == 0
    with pytest.raises(OSError, match="truncated"):
        Image.open(files["wire/cut-short.jpg"]).load()
