"""Retries as files: a manifest of the members with a status, whose rows count once it is finished."""

import shutil

import pytest

from ray_app.errors import Status
from ray_app.runs import (
    CurrentRows,
    RunDirectory,
    begin_retry,
    check_conservation,
    current_rows,
    verify_run,
)
from tests.archives.given import Dying
from tests.make.small_run import (
    PLAN,
    begun,
    finish,
    in_small_files,
    new_run,
    relist,
    retried,
    rows_of,
    score_blocks,
    write_files,
)

NAMES = [f"{number:03}.jpg" for number in range(40)]
LATE, GONE = NAMES[3::7], NAMES[5::11]
TIMEOUT, MISSING = Status.SOURCE_TIMEOUT, Status.SOURCE_MISSING


def fails(name):
    return TIMEOUT if name in LATE else MISSING if name in GONE else None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of two listings in several published files, with members that
    timed out and others that were missing.
    """
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        in_small_files(patch)
        run = begun(folder, NAMES[:28], fails=fails, masks=True)
        finish(run)
        write_files(folder / "archive", NAMES[28:])
        relist(run, folder / "archive")
        score_blocks(run, 1, fails=fails, masks=True)
        finish(run)
    assert len(run.published()) > 4
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of it."""
    in_small_files(monkeypatch)
    return RunDirectory.open(str(shutil.copytree(finished / "run", tmp_path / "run")))


def test_retry_replaces_only_rows_with_the_status(run):
    before = rows_of(run)
    begun = begin_retry(CurrentRows.read(run), [TIMEOUT.value], PLAN)
    assert (begun.info.manifest, begun.info.members, begun.refused) == (2, len(LATE), 0)
    assert rows_of(run) == before
    denied = {"003.jpg": Status.SOURCE_DENIED}
    score_blocks(run, 2, attempt=2, masks=True, fails=denied.get)
    assert rows_of(run) == before
    finish(run)
    after = rows_of(run)
    assert sorted(after) == sorted(before)
    for name, row in after.items():
        if name not in LATE:
            assert row == before[name]
            continue
        assert (row["image_id"], row["attempt"]) == (before[name]["image_id"], 2)
        assert row["status"] == ("source_denied" if name == "003.jpg" else "ok")
        assert (row["score"] is None) == (name == "003.jpg")
    assert verify_run(run).current == len(NAMES)
    masks = sorted(mask["image_id"] for mask in CurrentRows.read(run).masks())
    assert masks == sorted(row["image_id"] for row in after.values() if row["status"] == "ok")


def test_retry_killed_at_any_write_is_finished_by_the_next(run):
    """Every prefix of the retry's writes, each continued to the next interruption, then to its end."""
    before = rows_of(run)
    store = Dying(run.store.url, 0)
    dying = RunDirectory(store)

    def command(attempt):
        if dying.last_finished() == 1 and len(dying.store.folders("manifest")) < 3:
            begin_retry(CurrentRows.read(dying), [TIMEOUT.value, MISSING.value], PLAN)
        score_blocks(dying, 2, attempt=attempt, masks=True)
        finish(dying)

    interruptions = 0
    for attempt in range(2, 200):
        store.lives[0] = attempt
        try:
            command(attempt)
        except KeyboardInterrupt:
            interruptions += 1
            now = rows_of(run)
            assert sorted(now) == sorted(before)
            assert all(row == before[name] or row["attempt"] > 1 for name, row in now.items())
            if not run.store.exists("manifest/2/_complete"):
                shutil.rmtree(run.store.local_path("manifest/2"), ignore_errors=True)
            continue
        break
    assert interruptions > 4
    after = rows_of(run)
    assert {row["status"] for row in after.values()} == {"ok"}
    assert {name for name, row in after.items() if row["attempt"] > 1} == {*LATE, *GONE}
    assert len(list(CurrentRows.read(run).masks())) == verify_run(run).current == len(NAMES)


def test_vanished_members_are_not_retried(run, finished):
    relist(run, finished / "archive", exclude=[LATE[0]])
    finish(run)
    begun = begin_retry(CurrentRows.read(run), [TIMEOUT.value], PLAN)
    assert begun.info.members == len(LATE) - 1


def test_listings_with_different_columns_are_retried_together(tmp_path):
    write_files(tmp_path / "archive", NAMES[:12])
    run = new_run(tmp_path / "run")
    places = [str(tmp_path / "archive" / name) for name in NAMES[:12]]
    for number, (columns, some) in enumerate((("label", places[:6]), ("label,camera", places))):
        lines = [f"{place},{'fake,phone' if number else 'fake'}" for place in some]
        (tmp_path / "list.csv").write_text("\n".join([f"uri,{columns}", *lines]))
        relist(run, tmp_path / "list.csv")
        score_blocks(run, number, fails=lambda name: TIMEOUT)
        finish(run)
    retried(run, 2, TIMEOUT)
    rows = list(current_rows(run))
    first, second = {"label": "fake", "camera": None}, {"label": "fake", "camera": "phone"}
    assert [row["input"] for row in rows] == [first] * 6 + [second] * 6
    assert {row["status"] for row in rows} == {"ok"}
    assert check_conservation(run) == 24
