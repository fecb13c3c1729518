"""Runs of an older default go on with it under another one, and say so."""

import shutil

import pytest
import yaml

from ray_app.errors import ConfigError, ExitCode
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.rescore import decide_run, rescore_run
from ray_app.scoring.run import score_archive
from tests.scoring.conftest import rows_of
from tests.scoring.older import BUCKET, PICTURES, SOURCE, change, copied_configs, picture, put_pictures, put_run
from tests.scoring.stages import without_ray

SAID = (
    "this run was made with touchstone-tiny, the default up to Touchstone 0.11, and goes on with it; "
    "the default is touchstone-new today; a new --out would begin with that"
)
KEPT = {"key": "ensemble", "run": "default (touchstone-tiny)", "today": "default (touchstone-new)"}


@pytest.fixture(autouse=True)
def another_default(tmp_path, monkeypatch):
    """The default is a detector of another name; without it, whatever is shipped."""
    folder = copied_configs(tmp_path / "configs", monkeypatch)
    card = shutil.copy(folder / "detectors" / "touchstone-tiny.yaml", folder / "detectors" / "touchstone-new.yaml")
    change(card, name="touchstone-new", title="Another one", demonstration=False)
    return change(folder / "ensembles" / "default.yaml", members=[{"detector": "touchstone-new"}])


@pytest.fixture
def older(s3):
    """Put the runs back that 0.8.0 made with the default of then, by name; their URL."""
    s3.bucket(BUCKET)
    put_pictures(s3.client())

    def put(name):
        put_run(s3.client(), name)
        return f"s3://{BUCKET}/{name}"

    return put


def scored(out, **given):
    with without_ray():
        return score_archive(ScoreConfig(source=(SOURCE,), out=out, thumbnails=False, **given))


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "the default up to Touchstone" in line]


def test_a_half_done_run_goes_on_with_it_and_says_so_in_one_line(older, capsys):
    half = older("half")
    finished = scored(half)
    assert finished.exit_code is ExitCode.DONE
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "the default up to Touchstone" in line] == [SAID]
    [others] = [line for line in told if line.startswith("settings stay as the run was begun: ")]
    assert "limits.max_pixels" in others
    assert "ensemble" not in others
    assert KEPT in finished.summary["session"]["kept"]
    rows = rows_of(half)
    assert len(rows) == PICTURES
    assert {tuple(row["scores"]) for row in rows.values()} == {("touchstone-tiny",)}
    finished = scored(half, ensemble="default")
    assert (finished.summary["session"]["rows"], said(capsys)) == (0, [SAID])
    assert scored(half, rescore=("corrupt_image",)).exit_code is ExitCode.DONE
    assert said(capsys) == [SAID]


def test_a_finished_run_is_decided_as_it_was_and_a_card_over_it_stays_the_run_s(older, tmp_path, capsys):
    finished = older("finished")
    before = {uri: row["verdict"] for uri, row in rows_of(finished).items()}
    assert decide_run(finished, "default")["ensemble"]["name"] == "default"
    assert said(capsys) == [SAID]
    assert {uri: row["verdict"] for uri, row in rows_of(finished).items()} == before
    assert decide_run(finished, "tiny")["ensemble"]["name"] == "tiny"
    assert {uri: row["verdict"] for uri, row in rows_of(finished).items()} == before
    assert said(capsys) == []
    with pytest.raises(ConfigError, match="no scores of touchstone-new"):
        decide_run(finished, "default")

    thresholds = {"real_below": -9, "fake_above": 9}
    mine = {"name": "mine", "title": "Mine", "members": [{"detector": "touchstone-tiny"}], "thresholds": thresholds}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    decide_run(finished, str(tmp_path / "mine.yaml"))
    assert {"key": "ensemble", "run": "mine", "today": "default"} in scored(finished).summary["session"]["kept"]
    assert said(capsys) == []


def test_a_new_run_is_made_with_the_default_of_now_and_kept_embeddings_are_asked_by_that_of_then(another_default, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.bmp").write_bytes(picture(0))
    given = {"source": (str(tmp_path / "photos"),), "features": ("touchstone-tiny",)}
    change(another_default, members=[{"detector": "touchstone-tiny"}])
    with without_ray():
        score_archive(ScoreConfig(**given, out=str(tmp_path / "run")))
        change(another_default, members=[{"detector": "touchstone-new"}])
        score_archive(ScoreConfig(source=given["source"], out=str(tmp_path / "new")))
    assert RunDirectory.open(str(tmp_path / "new")).describe()["detectors"] == ["touchstone-new"]
    assert said(capsys) == []
    rescore_run(str(tmp_path / "run"), str(tmp_path / "again"), (), "default")
    assert RunDirectory.open(str(tmp_path / "again")).describe()["detectors"] == ["touchstone-tiny"]
    assert said(capsys) == [SAID]
