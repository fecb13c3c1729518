"""The same images score the same in whatever form they are kept: files, Parquet, WebDataset, tar.gz, zip, a list."""

import pytest

from ray_app.datasets.simulation.archive import write_photographs
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from tests.scoring.forms import FORMS

FP32, BF16 = 1e-5, 5e-3  # of max(1, |log-odds|), and of a probability


@pytest.fixture
def scores(off_ray, tmp_path):
    """Score a source into a run of its own; {sha256: (score, probability)} and the rows."""

    def run(name, *sources, **settings):
        out = str(tmp_path / f"run-{name}")
        score_archive(ScoreConfig(source=sources, out=out, ensemble="tiny", **settings))
        rows = list(current_rows(RunDirectory.open(out)))
        assert {row["status"] for row in rows} == {"ok"}
        return {row["sha256"]: (row["score"], row["probability"]) for row in rows}, rows

    return run


def assert_equal(found, expected, precision):
    assert found.keys() == expected.keys()
    for sha256, (score, probability) in expected.items():
        if precision == "fp32":
            assert abs(found[sha256][0] - score) <= FP32 * max(1, abs(score))
        else:
            assert abs(found[sha256][1] - probability) <= BF16


def test_several_sources_of_several_kinds_in_one_run(scores, tmp_path):
    write_photographs(tmp_path / "photos", 8, size=(320, 240))
    images = sorted((tmp_path / "photos").iterdir())
    sources = {name: FORMS[name](images, tmp_path / name) for name in ("webdataset", "tar.gz", "zip")}
    _, rows = scores("all", str(tmp_path / "photos"), *sources.values(), precision="fp32", block_members=8)
    assert len(rows) == 4 * len(images)
    by_sha = {}
    for row in rows:
        by_sha.setdefault(row["sha256"], []).append(row)
    for same in by_sha.values():
        lowest, *_, highest = sorted(row["score"] for row in same)
        assert highest - lowest <= FP32 * max(1, abs(lowest))
        assert sorted(row["uri"].rpartition("/")[2].partition(".")[2] for row in same) == ["jpg", "tar", "tar.gz", "zip"]
        assert [row["member"] is None for row in same] == [row["uri"].endswith(".jpg") for row in same]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_thousand_images_in_every_form(scores, tmp_path, precision):
    write_photographs(tmp_path / "photos", 2000, size=(320, 240))
    images = sorted((tmp_path / "photos").iterdir())
    expected, _ = scores("files", str(tmp_path / "photos"), precision=precision)
    assert len(expected) == len(images)
    for name, make in FORMS.items():
        found, rows = scores(name, make(images, tmp_path / name), precision=precision)
        assert len(rows) == len(images)
        assert_equal(found, expected, precision)
        labels = [row["input"] for row in rows if row.get("input")]
        assert len(labels) == (len(images) if name in ("parquet", "webdataset", "list") else 0)
