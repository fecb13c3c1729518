"""Retries: only what is asked for is scored, under the same ids, and everything else stays as it
was.
"""

import os

import pytest

from ray_app.errors import ConfigError, Status
from ray_app.runs import RunDirectory, current_rows, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import find_work
from ray_app.scoring.run import ScoringRun, score_archive
from tests.make.archives import write_photo
from tests.make.small_run import score_blocks, write_files
from tests.make.stages import without_ray

BAD = ("corrupt_image", "truncated_image")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `score` on made-up rows, without Ray: `command(fails, dies=…, **config)`."""
    write_files(tmp_path / "archive", [f"{number:02}.jpg" for number in range(20)])

    def run(fails=lambda name: None, *, dies=False, **config):
        def score(scoring, listing):
            directory = scoring.directory
            work = find_work(directory)
            for number in {ref.manifest for ref in work.pending}:
                blocks = {ref.block for ref in work.pending if ref.manifest == number}
                blocks = set(list(blocks)[:1]) if dies else blocks
                attempt = scoring.session.number
                score_blocks(directory, number, fails=fails, attempt=attempt, blocks=blocks)
            if dies:
                raise KeyboardInterrupt

        monkeypatch.setattr(ScoringRun, "score", score)
        settings = {"ensemble": "tiny", "thumbnails": False, "block_members": 4} | config
        source, out = str(tmp_path / "archive"), str(tmp_path / "run")
        with without_ray():
            return score_archive(ScoreConfig(source=(source,), out=out, **settings)).summary

    return run


def is_late(name):
    return Status.SOURCE_TIMEOUT if int(name[:2]) % 4 == 0 else None


def test_interrupted_retry_is_finished_by_the_same_command(command, tmp_path):
    command(is_late)
    run = RunDirectory.open(str(tmp_path / "run"))
    before = {row["uri"]: row for row in current_rows(run)}
    with pytest.raises(KeyboardInterrupt):
        command(dies=True, rescore=("source_timeout",))
    assert {row["uri"]: row for row in current_rows(run)} == before
    summary = command(rescore=("source_timeout",))
    after = {row["uri"]: row for row in current_rows(run)}
    late = [uri for uri in before if before[uri]["status"] != "ok"]
    assert [uri for uri in before if after[uri] != before[uri]] == late
    assert {row["status"] for row in after.values()} == {"ok"}
    retry = {"listing": 1, "statuses": ["source_timeout"], "members": 5}
    assert summary["session"]["retries"] == [retry]
    assert verify_run(run).current == 20


def test_retry_needs_a_finished_run_with_the_status(command, tmp_path, capsys):
    command(is_late)
    summary = command(rescore=("decode_timeout", "source_denied"))
    assert "nothing to retry" in capsys.readouterr().err
    assert summary["listing"] == 0
    write_files(tmp_path / "archive", ["20.jpg", "21.jpg"])
    with pytest.raises(KeyboardInterrupt):
        command(is_late, dies=True)
    for part in (tmp_path / "run/parts/00001").iterdir():
        part.unlink()
    with pytest.raises(ConfigError, match="not all files have been scored yet"):
        command(rescore=("source_timeout",))


def test_retry_of_a_wrong_status_or_no_run_is_refused(tmp_path):
    for status in ("ok", "sourcetimeout"):
        with pytest.raises(ValueError, match=r"these are: empty_file, .*detector_failed"):
            ScoreConfig(rescore=(status,))
    none = {"out": str(tmp_path / "none"), "rescore": ("source_timeout",)}
    with pytest.raises(ConfigError, match=r"there is no run in .* to retry"):
        score_archive(ScoreConfig(source=(str(tmp_path),), **none))


def break_file(path):
    """Make a file unreadable without a change of size or time; returns what makes it whole again."""
    whole, times = path.read_bytes(), path.stat()

    def write(data):
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    write(whole[:200] + bytes(len(whole) - 200))
    return lambda: write(whole)


def test_retry_scores_only_files_with_the_status(score, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        write_photo(photos / f"{index:02}.jpg", index)
    repair = break_file(photos / "11.jpg")
    break_file(photos / "10.jpg")
    _, before = score(photos)

    repair()
    write_photo(photos / "new.jpg", 99)
    finished, after = score(photos, rescore=BAD)
    session = finished.summary["session"]
    assert (session["rows"], session["decoded"], session["seconds"]["list"]) == (2, 2, 0)
    assert finished.summary["listing"] == 1
    assert sorted(after) == sorted(before), "the source is not listed"
    assert session["retries"] == [{"listing": 1, "statuses": list(BAD), "members": 2}]
    broken = str(photos / "10.jpg")
    changed = {str(photos / "11.jpg"): ("ok", 2), broken: (before[broken]["status"], 2)}
    for uri, row in after.items():
        assert row["image_id"] == before[uri]["image_id"]
        if uri in changed:
            assert (row["status"], row["attempt"]) == changed[uri]
        else:
            assert row == before[uri]
