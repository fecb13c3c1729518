"""The same images score the same in whatever form they are kept: files, Parquet, WebDataset, tar.gz, zip, a list; all in one run."""

from collections import defaultdict

import pytest

from ray_app.datasets.simulation.archive import write_photographs
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from tests.scoring.forms import FORMS

SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar", "tar.gz": ".tar.gz", "zip": ".zip"}


def test_images_score_the_same_in_every_form(off_ray, tmp_path):
    write_photographs(tmp_path / "photos", 8, size=(320, 240))
    images = sorted((tmp_path / "photos").iterdir())
    sources = {name: make(images, tmp_path / name) for name, make in FORMS.items() if name != "list"}
    listed = FORMS["list"](images, tmp_path / "list")
    found = {}
    for name, source in (("packed", (str(tmp_path / "photos"), *sources.values())), ("listed", (listed,))):
        config = ScoreConfig(source=source, out=str(tmp_path / name), ensemble="tiny", precision="fp32", block_members=8)
        score_archive(config)
        found[name] = list(current_rows(RunDirectory.open(config.out)))
    assert {row["status"] for rows in found.values() for row in rows} == {"ok"}
    by_sha = defaultdict(list)
    for row in found["packed"]:
        by_sha[row["sha256"]].append(row)
    assert len(by_sha) == len(images) == len(found["listed"])
    for row in found["listed"]:
        same = by_sha[row["sha256"]]
        assert [one["score"] for one in same] == pytest.approx([row["score"]] * len(same), rel=1e-5, abs=1e-5)
        assert row["input"]["label"] in ("real", "fake")
        kept_in = {name: one for one in same for name, suffix in SUFFIXES.items() if one["uri"].endswith(suffix)}
        assert kept_in.keys() == SUFFIXES.keys()
        assert len(same) == len(SUFFIXES) + 1
        assert all(one["member"] is not None for one in kept_in.values())
        assert all(kept_in[name]["input"] for name in ("parquet", "webdataset"))
