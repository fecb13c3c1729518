"""Retries as files: begun, interrupted anywhere, merged; every member keeps exactly one row."""

import shutil

import pytest

from ray_app.errors import Status
from ray_app.runs import (
    RunDirectory,
    begin_retry,
    begun_retry,
    check_conservation,
    current_masks,
    merge_retry,
)
from tests.archives.given import Dying
from tests.runs.small_run import (
    PLAN,
    begun,
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
        run.publish(0)
        write_files(folder / "archive", NAMES[28:])
        relist(run, folder / "archive")
        score_blocks(run, 1, fails=fails, masks=True)
        run.publish(1)
    assert len(run.published()) > 4
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of it."""
    in_small_files(monkeypatch)
    return RunDirectory.open(str(shutil.copytree(finished / "run", tmp_path / "run")))


def test_only_members_with_the_status_are_retried_and_the_others_stay_as_they_are(run):
    before = rows_of(run)
    retry = begin_retry(run, 2, [TIMEOUT.value], PLAN)
    assert retry.members == len(LATE) == sum(ref.members for ref in retry.pending())
    assert rows_of(run) == before
    score_blocks(
        retry.directory,
        0,
        attempt=2,
        masks=True,
        fails=lambda name: Status.SOURCE_DENIED if name == "003.jpg" else None,
    )
    assert not retry.pending()
    merge_retry(run, retry)
    after = rows_of(run)
    assert list(after) == list(before)
    for name, row in after.items():
        if name not in LATE:
            assert row == before[name]
            continue
        assert (row["image_id"], row["attempt"]) == (before[name]["image_id"], 2)
        assert row["status"] == ("source_denied" if name == "003.jpg" else "ok")
        assert (row["score"] is None) == (name == "003.jpg")
    assert check_conservation(run) == len(NAMES)
    masks = [mask["image_id"] for mask in current_masks(run)]
    assert sorted(masks) == sorted(
        row["image_id"] for row in after.values() if row["status"] == "ok"
    )
    assert begun_retry(run) is None
    assert run.store.folders("retries") == []


def test_interrupted_at_any_write_it_is_finished_by_the_next_command(run):
    """Every prefix of the retry's writes, each continued to the next interruption, then to its end."""
    before = rows_of(run)
    store = Dying(run.store.url, 0)
    dying = RunDirectory(store)

    def command(attempt):
        retry = begun_retry(dying) or begin_retry(
            dying, attempt, [TIMEOUT.value, MISSING.value], PLAN
        )
        if retry is not None:
            score_blocks(
                retry.directory,
                0,
                attempt=attempt,
                masks=True,
                blocks={ref.block for ref in retry.pending()},
            )
            merge_retry(dying, retry)

    interruptions = 0
    for attempt in range(2, 200):
        store.lives[0] = attempt
        try:
            command(attempt)
        except KeyboardInterrupt:
            interruptions += 1
            now = rows_of(run)
            assert list(now) == list(before)
            assert all(row == before[name] or row["attempt"] > 1 for name, row in now.items())
            continue
        break
    assert interruptions > 4
    after = rows_of(run)
    assert {row["status"] for row in after.values()} == {"ok"}
    assert {name for name, row in after.items() if row["attempt"] > 1} == {*LATE, *GONE}
    assert check_conservation(run) == len(list(current_masks(run))) == len(NAMES)
    assert begun_retry(run) is None


def test_vanished_members_are_not_retried(run, finished):
    relist(run, finished / "archive", exclude=[LATE[0]])
    assert begin_retry(run, 2, [TIMEOUT.value], PLAN).members == len(LATE) - 1


def test_nothing_to_retry_leaves_nothing(run):
    assert begin_retry(run, 2, ["decode_timeout"], PLAN) is None
    assert begun_retry(run) is None


def test_listings_with_other_columns_of_their_own_are_retried_together(tmp_path):
    write_files(tmp_path / "archive", NAMES[:12])
    run = new_run(tmp_path / "run")
    places = [str(tmp_path / "archive" / name) for name in NAMES[:12]]
    for number, (columns, some) in enumerate((("label", places[:6]), ("label,camera", places))):
        lines = [f"{place},{'fake,phone' if number else 'fake'}" for place in some]
        (tmp_path / "list.csv").write_text("\n".join([f"uri,{columns}", *lines]))
        relist(run, tmp_path / "list.csv")
        score_blocks(run, number, fails=lambda name: TIMEOUT)
        run.publish(number)
    retried(run, 2, TIMEOUT)
    rows = rows_of(run).values()
    assert [row["input"] for row in rows] == [{"label": "fake", "camera": None}] * 6 + [
        {"label": "fake", "camera": "phone"}
    ] * 6
    assert {row["status"] for row in rows} == {"ok"}
    assert check_conservation(run) == 12
