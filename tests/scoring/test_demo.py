"""`touchstone demo`: the truth beside the verdicts, of packaged photographs and simulated pictures, and of pictures of the user's."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.errors import ConfigError, ExitCode
from ray_app.scoring import demo
from ray_app.scoring.run import ScoringResult
from tests.reports.example import example_summary

ENSEMBLE = {"name": "default", "members": [{"name": "a-detector"}]}


def row(uri, verdict):
    return {"uri": uri, "verdict": verdict}


def lines(verdicts, kinds):
    truth = {f"/{place}": demo.Truth(kind, source) for place, (kind, source) in enumerate(kinds)}
    return list(demo.ground_truth_lines([row(f"/{place}", verdict) for place, verdict in enumerate(verdicts)], truth, ENSEMBLE))


def test_right_wrong_abstained_and_not_scored_are_told_apart():
    kinds = [(demo.PHOTOGRAPH, "")] * 4 + [(demo.SIMULATED, "")] * 3 + [(demo.DRAWN, "")] * 2
    told = lines(["real", "real", "fake", "abstain", "fake", "real", None, "real", "fake"], kinds)
    assert told == [
        "the truth, beside the verdicts of the ensemble default (a-detector):",
        "  photographs: 2 of 4 right (no evidence found), 1 flagged as fake, 1 abstained",
        "  made: simulated, by us: 1 of 3 right (flagged as fake), 1 no evidence found, 1 not scored",
        "  drawn as a camera takes them, by us: 1 no evidence found, 1 flagged as fake",
        demo.SENTENCE,
    ]


def scored(verdicts):
    """Rows with these verdicts, in whose names stands where they belong among those of their verdict."""
    return [{"uri": f"/{at}", "verdict": verdict, "score": None if verdict is None else float(at)} for at, verdict in enumerate(verdicts)]


def test_the_flagged_come_first_then_what_is_open_then_errors_then_the_rest_by_score():
    rows = scored(["real", "fake", None, "abstain", "fake", "real"])
    assert [row["uri"] for row in demo.shown_rows(rows)] == ["/4", "/1", "/3", "/2", "/5", "/0"]


def test_of_many_rows_some_of_each_verdict_are_shown():
    shown = demo.shown_rows(scored(["real"] * 40 + ["fake"] * 30 + [None] * 3 + ["abstain"]))
    assert [row["verdict"] for row in shown] == ["fake"] * 8 + ["abstain"] + [None] * 3 + ["real"] * 8
    assert [shown[0]["uri"], shown[12]["uri"]] == ["/69", "/39"]


@pytest.mark.parametrize(
    ("known", "following"),
    [
        ({}, ["next: touchstone runs gallery /runs/1 --out gallery", "      touchstone score '/my pictures' --out run"]),
        (
            {"labels": Path("/labels.csv")},
            ["next: touchstone evaluate /runs/1 --labels /labels.csv --out figures", "      touchstone runs gallery /runs/1 --out gallery"],
        ),
        (
            {"labels": Path("/labels.csv"), "credits": Path("/CREDITS.txt")},
            ["next: touchstone evaluate /runs/1 --labels /labels.csv --out figures", "      touchstone check YOUR.jpg"],
        ),
    ],
)
def test_it_ends_with_two_commands_and_is_no_page_of_text(known, following):
    archive = demo.DemoArchive("/my pictures", {"/0": demo.Truth(demo.REAL)} if known else {}, **known, first=None if known else 90)
    finished = ScoringResult(ExitCode.DONE, example_summary(run="/runs/1"))
    told = list(demo.DemoResult(finished, scored(["real"] * 50 + ["fake"] * 40), archive).lines())
    assert told[-2:] == following
    assert told[-3] == "report: /runs/1/report.html"
    assert "16 of 90 rows: at most 8 of each verdict, the highest scores first" in told
    assert ("At most 90 files were taken; --images takes more." in told) is (not known)
    assert (any(line.startswith("the truth") for line in told)) is bool(known)
    assert len(told) <= 35


def test_the_sample_has_the_photographs_beside_the_simulated_pictures(tmp_path):
    archive = demo.sample(tmp_path, 10)
    kinds = [one.kind for one in archive.truth.values()]
    assert {demo.PHOTOGRAPH, demo.DRAWN, demo.SIMULATED} == set(kinds)
    credits = (tmp_path / "CREDITS.txt").read_text().splitlines()
    assert kinds.count(demo.PHOTOGRAPH) == len(credits) >= 1
    assert any("flower.jpg: by vultilion" in credit and "CC BY 2.0" in credit for credit in credits)
    assert not any("china.jpg" in credit for credit in credits), "touchstone-tiny was trained on it"
    assert all((tmp_path / "archive" / uri.split("/archive/")[1]).is_file() for uri in archive.truth)
    with archive.labels.open(newline="") as stream:
        assert [one["label"] for one in csv.DictReader(stream) if one["path"].startswith("photographs/")] == ["real"] * len(credits)
    assert demo.sample(tmp_path, 10) == archive  # a second time it is there, and labelled once


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for label in ("real", "fake"):
        for number in range(4):
            place = folder / label / "somebody" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(place)
    return folder


def test_folders_of_the_user_s(photos, tmp_path):
    archive = demo.chosen(photos, tmp_path / "out", None)
    assert {uri.rpartition("/photos/")[2]: known.kind for uri, known in archive.truth.items()} == {
        f"{label}/somebody/{number}.png": kind for label, kind in (("real", demo.REAL), ("fake", demo.MADE)) for number in range(4)
    }
    some = demo.chosen(photos, tmp_path / "some", 3)
    assert sorted(known.kind for known in some.truth.values()) == [demo.MADE, demo.MADE, demo.REAL]
    assert some.truth.items() <= archive.truth.items()


def test_a_folder_is_labelled_if_it_has_both_labels_or_an_index(photos, tmp_path):
    assert demo.is_labelled(photos)
    assert not demo.is_labelled(photos / "real")
    assert not demo.is_labelled(photos / "real" / "somebody" / "0.png")
    index(photos / "real", {"split": ["test"] * 4})
    assert demo.is_labelled(photos / "real")
    assert demo.is_labelled(photos / "real" / "index.parquet")


def index(folder, splits):
    rows = {"uri": [f"real/somebody/{number}.png" for number in range(4)]}
    rows |= {"label": ["real"] * 4, "generator": ["real:alps"] * 4, "source": ["alps"] * 4}
    pq.write_table(pa.table(rows | splits), folder / "index.parquet")
    return folder


def test_of_a_collection_only_what_was_not_trained_on(photos, tmp_path):
    archive = demo.chosen(index(photos, {"split": ["train", "test", None, "validation"]}), tmp_path / "out", None)
    assert [uri.rpartition("/")[2] for uri in archive.truth] == ["1.png", "3.png"]
    assert set(archive.truth.values()) == {demo.Truth(demo.REAL, "alps")}
    with open(archive.source, newline="") as stream:
        assert [(one["uri"], one["label"], one["source"]) for one in csv.DictReader(stream)] == [
            (str(photos / "real" / "somebody" / f"{number}.png"), "real", "alps") for number in (1, 3)
        ]
    for splits in ({}, {"split": pa.nulls(4, pa.string())}, {"split": ["train"] * 4}):
        with pytest.raises(ConfigError, match="split"):
            demo.chosen(index(photos, splits), tmp_path / "out", None)
