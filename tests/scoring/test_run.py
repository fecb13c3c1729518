"""Retries: only what is asked for is scored, under the same ids, and everything else stays as it
was.
"""

import os

import pytest

from ray_app.errors import ConfigError, ExitCode, Status
from ray_app.runs import RunDirectory, current_rows, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import work_of
from ray_app.scoring.run import ScoringRun, score_archive
from tests.runs.small_run import score_blocks, write_files
from tests.scoring.stages import without_ray
from tests.scoring.test_run_more import save_photo

BAD = ("corrupt_image", "truncated_image")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `score` on made-up rows, without Ray: `command(fails, stops_after, **config)`."""
    write_files(tmp_path / "archive", [f"{number:02}.jpg" for number in range(20)])

    def run(fails=lambda name: None, *, dies=False, **config):
        def score(scoring, listing):
            directory = scoring.directory
            work = work_of(directory)
            for number in {ref.manifest for ref in work.pending}:
                blocks = {ref.block for ref in work.pending if ref.manifest == number}
                blocks = set(list(blocks)[:1]) if dies else blocks
                attempt = scoring.session.number
                score_blocks(directory, number, fails=fails, attempt=attempt, blocks=blocks)
            if dies:
                raise KeyboardInterrupt

        out = str(tmp_path / "run")
        monkeypatch.setattr(ScoringRun, "score", score)
        settings = {"ensemble": "tiny", "thumbnails": False, "block_members": 4}
        with without_ray():
            return score_archive(
                ScoreConfig(source=(str(tmp_path / "archive"),), out=out, **settings, **config)
            ).summary

    return run


def is_late(name):
    return Status.SOURCE_TIMEOUT if int(name[:2]) % 4 == 0 else None


def test_an_interrupted_retry_is_finished_by_the_same_command(command, tmp_path):
    command(is_late)
    run = RunDirectory.open(str(tmp_path / "run"))
    before = {row["uri"]: row for row in current_rows(run)}
    with pytest.raises(KeyboardInterrupt):
        command(dies=True, rescore=("source_timeout",))
    assert {row["uri"]: row for row in current_rows(run)} == before
    summary = command(rescore=("source_timeout",))
    after = {row["uri"]: row for row in current_rows(run)}
    assert [uri for uri in before if after[uri] != before[uri]] == [
        uri for uri in before if before[uri]["status"] != "ok"
    ]
    assert {row["status"] for row in after.values()} == {"ok"}
    retry = {"listing": 1, "statuses": ["source_timeout"], "members": 5}
    assert summary["session"]["retries"] == [retry]
    assert verify_run(run).current == 20


def test_nothing_to_retry_is_reported_and_a_run_is_finished_first(command, tmp_path, capsys):
    command(is_late)
    summary = command(rescore=("decode_timeout", "source_denied"))
    assert (
        "no file has the status decode_timeout or source_denied: nothing to retry"
        in capsys.readouterr().err
    )
    assert summary["listing"] == 0
    write_files(tmp_path / "archive", ["20.jpg", "21.jpg"])
    with pytest.raises(KeyboardInterrupt):
        command(is_late, dies=True)
    folder = tmp_path / "run" / "parts" / "00001"
    for part in folder.iterdir():
        part.unlink()
    with pytest.raises(ConfigError, match="not all files have been scored once"):
        command(rescore=("source_timeout",))


def test_what_cannot_be_retried_is_said_before_a_cluster_starts(tmp_path):
    for words in (("ok",), ("sourcetimeout",)):
        with pytest.raises(ValueError, match=r"these are: empty_file, .*detector_failed"):
            ScoreConfig(rescore=words)
    with pytest.raises(ConfigError, match=r"there is no run in .* to retry"):
        score_archive(
            ScoreConfig(
                source=(str(tmp_path),), out=str(tmp_path / "none"), rescore=("source_timeout",)
            )
        )


def break_file(path):
    """Make a file unreadable without a change of size or time; returns what makes it whole again."""
    whole, times = path.read_bytes(), path.stat()

    def write(data):
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    write(whole[:200] + bytes(len(whole) - 200))
    return lambda: write(whole)


def test_a_retry_scores_nothing_but_what_is_asked_for(score, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        save_photo(photos / f"{index:02}.jpg", index)
    repair = break_file(photos / "11.jpg")
    break_file(photos / "10.jpg")
    _, before = score(photos)

    repair()
    save_photo(photos / "new.jpg", 99)
    finished, after = score(photos, rescore=BAD)
    assert finished.exit_code is ExitCode.DONE
    session = finished.summary["session"]
    assert (session["rows"], session["decoded"], session["seconds"]["list"]) == (2, 2, 0)
    assert finished.summary["listing"] == 1
    assert sorted(after) == sorted(before), "the source is not listed"
    assert session["retries"] == [{"listing": 1, "statuses": list(BAD), "members": 2}]
    changed = {"11.jpg": ("ok", 2), "10.jpg": (before[str(photos / "10.jpg")]["status"], 2)}
    for uri, row in after.items():
        name = os.path.basename(uri)
        assert row["image_id"] == before[uri]["image_id"]
        assert (
            (row["status"], row["attempt"]) == changed[name]
            if name in changed
            else row == before[uri]
        )
