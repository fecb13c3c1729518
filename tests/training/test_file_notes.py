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
from tests.make.datasets import labelled

EMPTY = "empty_file: 0 bytes"


@pytest.fixture
def out(tmp_path):
    return Store.open(str(tmp_path / "out"))


@pytest.fixture
def rows(tmp_path):
    rows = [
        {"uri": tmp_path / f"{number}.png", "label": "fake", "mask_uri": f"/masks/{number}.png"}
        for number in range(200)
    ]
    return labelled(rows, chunk=7)


def batch(rows, *, bad=(), **more):
    rows = np.array(rows)
    usable = ~np.isin(rows, bad)
    return {"row": rows, "usable": usable, "detail": np.where(usable, "", EMPTY), **more}


def test_image_that_many_steps_could_not_read_is_listed_once(out, rows, tmp_path):
    for rank, first in ((0, 0), (1, 0), (0, 10)):
        notes = StepNotes(out, rows, rank)
        notes.add(batch([first + rank, 150], bad=[150]), first)
        notes.write(first)
    unreadable = {150: "source_missing: gone", 3: EMPTY}
    write_notes(out, UNREADABLE, "validation", note_images(rows, "validation", unreadable))
    found = write_unreadable(out)
    assert [(note["split"], note["uri"], note["step"], note["times"]) for note in found] == [
        ("train", f"{tmp_path}/150.png", 0, 3),
        ("validation", f"{tmp_path}/150.png", None, 1),
        ("validation", f"{tmp_path}/3.png", None, 1),
    ]
    uris = [note["uri"] for note in found]
    lines = out.read("unreadable.jsonl").splitlines()
    assert [json.loads(line)["uri"] for line in lines] == uris
    assert [file.uri for file in name_files(found)] == uris
    assert join_examples(found).startswith(f"{tmp_path}/150.png: {EMPTY}; ")


def test_member_of_an_archive_is_named_by_both(tmp_path):
    member = ListedMember(f"{tmp_path}/a.tar", "x/1.png", 0, "", -1)
    notes = note_images(labelled([{"item": member, "label": "real"}]), "train", {0: EMPTY})
    assert join_examples(notes) == f"{tmp_path}/a.tar › x/1.png: {EMPTY}"


def test_log_names_each_file_once_and_few_of_many(out, rows, tmp_path):
    def note(step, unreadable):
        notes = note_images(rows, "train", dict.fromkeys(unreadable, EMPTY), step=step)
        write_notes(out, UNREADABLE, f"{step:08}-0000", notes)

    note(0, [0])
    log = FileLog(out)
    assert list(log.new_lines()) == [], "an earlier session named it"
    note(10, [0, 1])
    assert list(log.new_lines()) == [f"train  could not read {tmp_path}/1.png: {EMPTY}"]
    note(20, range(200))
    lines = list(log.new_lines())
    assert len(lines) == MAX_NAMED - 2 + 1
    assert "unreadable.jsonl" in lines[-1]


def test_log_warns_once_of_masks_that_mark_nothing(out, rows):
    log = FileLog(out)
    for rank in (0, 1):
        notes = StepNotes(out, rows, rank)
        for step in (0, 1):
            notes.add(batch([4, 5, 6], coverage=np.array(["empty", "part", "full"])), step)
        notes.write(0)
    [line] = log.new_lines()
    assert line == f"train  warning: {describe_misread_masks(out)}"
    assert "the mask of 1 fake marks nothing as altered, for example /masks/4.png" in line.lower()
    assert "/masks/6.png" in line
    assert list(log.new_lines()) == []
    assert len(out.read(f"{MASKS}/00000000-0000.jsonl").splitlines()) == 2


def test_notes_of_older_versions_are_listed(out):
    note = {"step": 3, "image_id": 7, "detail": EMPTY}
    write_notes(out, UNREADABLE, "00000000-0000", [note] * 2)
    [found] = list_unreadable(out)
    assert (found["uri"], found["times"]) == ("image_id 7", 2)


def test_repeated_work_replaces_its_notes(out, rows):
    notes = note_images(rows, "validation", {1: EMPTY})
    write_notes(out, UNREADABLE, "validation", notes)
    write_notes(out, UNREADABLE, "validation", [])
    assert list_unreadable(out) == []
