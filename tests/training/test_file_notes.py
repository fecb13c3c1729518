"""Files that a training could not read, and masks that mark nothing: each named once."""

import json

import numpy as np
import pytest

from ray_app.archives import ListedMember
from ray_app.storage import Store
from ray_app.training.file_notes import (
    MAX_NAMED,
    FileLog,
    StepNotes,
    describe_misread_masks,
    join_examples,
    list_unreadable,
    name_files,
    note_images,
    write_notes,
    write_unreadable,
)
from ray_app.training.run_directory import MASKS, UNREADABLE
from tests.datasets.tables import labelled


@pytest.fixture
def out(tmp_path):
    return Store.open(str(tmp_path / "out"))


@pytest.fixture
def rows(tmp_path):
    return labelled(
        [
            {"uri": tmp_path / f"{number}.png", "label": "fake", "mask_uri": f"/masks/{number}.png"}
            for number in range(200)
        ],
        chunk=7,
    )


def batch(rows, *, bad=(), coverage=None):
    rows = np.array(rows)
    usable = ~np.isin(rows, bad)
    made = {"row": rows, "usable": usable, "detail": np.where(usable, "", "empty_file: 0 bytes")}
    return made if coverage is None else made | {"coverage": np.array(coverage)}


def test_an_image_that_many_steps_could_not_read_is_listed_once(out, rows, tmp_path):
    for rank, first in ((0, 0), (1, 0), (0, 10)):
        notes = StepNotes(out, rows, rank)
        notes.add(batch([first + rank, 150], bad=[150]), first)
        notes.write(first)
    write_notes(
        out,
        UNREADABLE,
        "validation",
        note_images(rows, "validation", {150: "source_missing: gone", 3: "empty_file: 0 bytes"}),
    )
    found = write_unreadable(out)
    assert [(note["split"], note["uri"], note["step"], note["times"]) for note in found] == [
        ("train", f"{tmp_path}/150.png", 0, 3),
        ("validation", f"{tmp_path}/150.png", None, 1),
        ("validation", f"{tmp_path}/3.png", None, 1),
    ]
    lines = [json.loads(line) for line in out.read("unreadable.jsonl").splitlines()]
    assert [line["uri"] for line in lines] == [note["uri"] for note in found]
    assert join_examples(found).startswith(f"{tmp_path}/150.png: empty_file: 0 bytes; ")
    assert [file.uri for file in name_files(found)] == [note["uri"] for note in found]


def test_members_of_archives_are_named_by_archive_and_member(out, tmp_path):
    table = labelled(
        [{"item": ListedMember(f"{tmp_path}/a.tar", "x/1.png", 0, "", -1), "label": "real"}]
    )
    assert (
        join_examples(note_images(table, "train", {0: "empty_file: 0 bytes"}))
        == f"{tmp_path}/a.tar › x/1.png: empty_file: 0 bytes"
    )


def test_the_log_names_each_file_once_and_few_of_very_many(out, rows, tmp_path):
    write_notes(
        out,
        UNREADABLE,
        "00000000-0000",
        note_images(rows, "train", {0: "empty_file: 0 bytes"}, step=0),
    )
    log = FileLog(out)
    assert list(log.new_lines()) == [], "an earlier session named it"
    write_notes(
        out,
        UNREADABLE,
        "00000010-0000",
        note_images(rows, "train", dict.fromkeys((0, 1), "empty_file: 0 bytes"), step=10),
    )
    assert list(log.new_lines()) == [f"train  could not read {tmp_path}/1.png: empty_file: 0 bytes"]
    write_notes(
        out,
        UNREADABLE,
        "00000020-0000",
        note_images(rows, "train", dict.fromkeys(range(200), "empty_file: 0 bytes"), step=20),
    )
    lines = list(log.new_lines())
    assert len(lines) == MAX_NAMED - 2 + 1
    assert "unreadable.jsonl" in lines[-1]


def test_masks_that_mark_nothing_are_warned_of_once(out, rows):
    log = FileLog(out)
    for rank in (0, 1):
        notes = StepNotes(out, rows, rank)
        for step in (0, 1):
            notes.add(batch([4, 5, 6], coverage=["empty", "part", "full"]), step)
        notes.write(0)
    [line] = log.new_lines()
    assert line == f"train  warning: {describe_misread_masks(out)}"
    assert "the mask of 1 fake marks nothing as altered, for example /masks/4.png" in line.lower()
    assert "/masks/6.png" in line
    assert list(log.new_lines()) == []
    assert len(out.read(f"{MASKS}/00000000-0000.jsonl").splitlines()) == 2


def test_notes_of_older_versions_are_listed(out):
    write_notes(
        out,
        UNREADABLE,
        "00000000-0000",
        [{"step": 3, "image_id": 7, "detail": "empty_file: 0 bytes"}] * 2,
    )
    [note] = list_unreadable(out)
    assert (note["uri"], note["times"]) == ("image_id 7", 2)


def test_a_repeated_part_of_the_work_replaces_its_notes(out, rows):
    write_notes(
        out, UNREADABLE, "validation", note_images(rows, "validation", {1: "empty_file: 0 bytes"})
    )
    write_notes(out, UNREADABLE, "validation", [])
    assert list_unreadable(out) == []
