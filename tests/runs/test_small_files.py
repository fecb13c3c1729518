"""Small published files become large ones: names say what is in them, every row stays once, and
every reader finds it.
"""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import manifests
from ray_app.errors import Status
from ray_app.runs import RunDirectory, check_conservation, current_rows, parts, small_files
from ray_app.runs.reader import members_in, publish_vanished
from ray_app.runs.score_files import Published, named, split_off
from tests.runs.small_run import new_run, relist, retried, score_blocks, write_files
from tests.runs.test_readers import assert_all_agree


def fails(name):
    return Status.SOURCE_THROTTLED if name.endswith("1.jpg") else None


def nights(tmp_path, counts, **options):
    """A run of so many new images a night, each night published in a file of its own."""
    run = new_run(tmp_path / "run")
    for number, count in enumerate(counts):
        write_files(tmp_path / "archive", [f"{number}-{image:02}.jpg" for image in range(count)])
        relist(run, tmp_path / "archive")
        publish_vanished(run)
        score_blocks(
            run, number, fails=fails, attempt=number + 1, hashed=number % 2 == 1, **options
        )
        run.publish(number)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return nights(tmp_path_factory.mktemp("nights"), (20, 3, 2, 5), masks=True)


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(small_files, "MOST_SMALL", 2)
    monkeypatch.setattr(parts, "ROW_GROUP", 4)
    return RunDirectory.open(str(shutil.copytree(whole.store.url, tmp_path / "run")))


FILES = (
    Published(0, 0, 7),
    Published(0, 8, 9),
    Published(1, 0, 0),
    Published(0, 8, 0, 1),
    Published(2, 0, 3),
    Published(0, 0, 3, 2),
)


def test_a_name_says_what_is_in_its_file_and_which_files_a_merged_one_stands_in_for():
    assert Published(3, 0, 1, 27).name == "00003-00000000--00027-00000001.parquet"
    for file in FILES:
        assert named([file.name, "x.parquet", "00000-00000000.parquet"]) == [file]
    for some, read in ((FILES[:3], 3), (FILES[:4], 2), (FILES, 1)):
        kept, replaced = split_off(named(file.name for file in some))
        assert len(kept) == read
        assert sorted([*kept, *replaced]) == sorted(some)
    assert split_off([Published(0, 0, 7), Published(0, 1, 3)])[1] == [], (
        "no merge makes such files: rows are there twice"
    )
    merged = Published(1, 4, 2, 3)
    assert [list(merged.blocks_of(number, 6)) for number in range(5)] == [
        [],
        [4, 5],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2],
        [],
    ]
    assert [merged.holds(1, 3), merged.holds(1, 4), merged.holds(3, 2), merged.holds(3, 3)] == [
        False,
        True,
        True,
        False,
    ]


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 5, 9, 30, 63, 70, 130]), max_size=60))
def test_what_is_merged_follows_and_in_the_end_there_are_few(sizes):
    """Night after night, sizes in MiB: no file of neighbours is left out, and what is whole is left
    alone.
    """
    files, bytes_of = [], {}
    written = 0
    for number, size in enumerate(sizes):
        files.append(Published(number, 0, 0))
        bytes_of[files[-1].name] = size * 2**20
        for group in small_files.groups(files, bytes_of):
            assert all(bytes_of[file.name] < parts.PUBLISHED_BYTES for file in group)
            at = files.index(group[0])
            assert files[at : at + len(group)] == group
            files[at : at + len(group)] = [
                merged := Published(group[0].manifest, 0, 0, group[-1].end[0])
            ]
            bytes_of[merged.name] = sum(bytes_of[file.name] for file in group)
            written += bytes_of[merged.name]
            assert bytes_of[merged.name] < 2 * parts.PUBLISHED_BYTES
    whole = sum(bytes_of[file.name] >= parts.PUBLISHED_BYTES for file in files)
    assert len(files) <= (whole + 1) * (2 * small_files.MOST_SMALL + 1) * (
        small_files.MOST_SMALL + 1
    )
    assert written <= 3 * sum(sizes) * 2**20


def test_every_reader_finds_each_row_once(run):
    before = list(current_rows(run))
    tables = {
        number: [row for table in run.tables(number) for row in table.to_pylist()]
        for number in manifests(run.store)
    }
    members = [member for file in run.published() for member in members_in(run, file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_files, "MOST_SMALL", 4)
        assert small_files.merge_small(run) == [], "few files are left as they are"
    assert small_files.merge_small(run, lambda: assert_all_agree(run, at_rest=False)) == [
        "scores/00000-00000000--00003-00000001.parquet"
    ]
    [file] = run.published()
    assert run.all_published() == [file]
    assert [row | {"phash": None} for row in current_rows(run)] == [
        row | {"phash": None} for row in before
    ]
    assert [row["phash"] for row in current_rows(run)] == [row.get("phash") for row in before]
    assert list(members_in(run, file)) == members
    for number, rows in tables.items():
        ids = [
            row["image_id"]
            for table in run.tables(number, ["image_id"])
            for row in table.to_pylist()
        ]
        assert ids == [row["image_id"] for row in rows]
        assert run.done_blocks(number) == set(range(len(run.done_blocks(number))))
    assert check_conservation(run) == len(assert_all_agree(run)) == 30


def test_a_retry_of_merged_nights(run):
    small_files.merge_small(run)
    masks = sum(table.num_rows for number in manifests(run.store) for table in run.masks(number))
    assert retried(run, 9, Status.SOURCE_THROTTLED, masks=True) == 5
    rows = assert_all_agree(run)
    assert sum(attempt == 9 for *_, attempt, _ in rows) == 5
    assert {status for _, _, status, *_ in rows} == {"ok"}
    assert (
        sum(table.num_rows for number in manifests(run.store) for table in run.masks(number))
        == masks + 5
    )
    assert check_conservation(run) == 30
