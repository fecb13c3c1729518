"""A run as Python reads it (`load_run`): its table, its images and their files, wherever these lie."""

import io
import tarfile

import pytest

import ray_app
from ray_app.cli.main import main
from ray_app.errors import ConfigError, SourceError
from tests.make.images import encoded, photo
from tests.make.stages import without_ray


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two pictures of their own, two in a tar, and a text."""
    folder = tmp_path_factory.mktemp("archive")
    files = {
        name: encoded(photo(160, 120, seed=seed), "PNG")
        for seed, name in enumerate(("a.png", "b.png", "c.png", "d.png"))
    }
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(files[name])
    with tarfile.open(folder / "more.tar", "w") as tar:
        for name in ("c.png", "d.png"):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    (folder / "notes.txt").write_text("no picture")
    return folder, files


@pytest.fixture(scope="module")
def run(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    with without_ray():
        assert main(["score", str(archive[0]), "--ensemble", "tiny", "--out", str(out)]) == 0
    return ray_app.load_run(out)


def test_table_and_frame_have_a_row_for_each_file(run):
    table = run.table()
    assert len(table) == run.summary["members"] == sum(len(part) for part in run.tables()) == 5
    assert {"uri", "member", "status", "scores", "verdict"} <= set(table.column_names)
    assert run.table(["verdict", "score"]).column_names == ["verdict", "score"]
    assert repr(run).startswith(f"ScoredRun('{run.url}', 5 images: ")
    with pytest.raises(ConfigError, match=r"no column vedict; .*verdict"):
        run.table(["vedict"])
    ok = run.to_frame()
    ok = ok[ok["status"] == "ok"]
    assert ok["score_touchstone-tiny"].tolist() == pytest.approx(ok["score"].tolist())
    assert list(run.to_frame(["uri", "scores"])) == ["uri", "score_touchstone-tiny"]


def test_images_open_in_files_and_containers(run, archive):
    folder, files = archive
    images = list(run.images(status="ok"))
    tar = str(folder / "more.tar")
    plain = [(str(folder / name), None) for name in ("a.png", "b.png")]
    packed = [(tar, name) for name in ("c.png", "d.png")]
    assert [(one.uri, one.member) for one in images] == plain + packed
    assert [one.read() for one in images] == list(files.values())
    assert [one.open().size for one in images] == [(160, 120)] * 4
    assert "data:image/jpeg" in images[3]._repr_html_()
    assert "more.tar · d.png" in images[3]._repr_html_()
    assert len(list(run.images())) == 5


def test_images_are_selected_by_verdict_and_name(run):
    verdicts = run.summary["verdicts"]
    assert {word: len(list(run.images(word))) for word in verdicts} == verdicts
    images = run.images(match="*.tar", max_score=100.0)
    assert [one.uri.rpartition("/")[2] for one in images] == ["more.tar"] * 2
    for wanted, message in (
        ({"verdict": "fakes"}, "unknown verdict 'fakes'; use one of: fake, abstain, real"),
        ({"status": "okay"}, "unknown status 'okay'; use one of: ok, empty_file"),
        ({"generator": "midjourney"}, "this run did not identify generators"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.images(**wanted)


def test_deleted_file_raises_a_source_error(run, archive):
    gone = next(run.images(status="ok"))
    path = archive[0] / "a.png"
    away = path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(SourceError):
            gone.read()
        assert "<img" not in gone._repr_html_()
    finally:
        away.rename(path)


def test_missing_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in .*: it has no run\.json"):
        ray_app.load_run(tmp_path)
