"""The history of a training has each step once, also after work was repeated."""

import struct

from tensorboardX.proto.event_pb2 import Event

from ray_app.storage import Store
from ray_app.training.run_directory import (
    HISTORY,
    SAMPLES,
    HistoryWriter,
    delete_history_from,
    make_event_file,
    read_history,
    write_events,
)


def write(out, first, last, *, rank=0, folder=HISTORY, take=0):
    history = HistoryWriter(out, folder, rank)
    for step in range(first, last):
        history.add({"step": step, "rank": rank, "take": take})
    history.write(first)


def test_repeated_steps_replace_those_of_before(tmp_path):
    out = Store.open(str(tmp_path))
    for first in (0, 10, 20):
        write(out, first, first + 10)
        write_events(out, first, [{"step": first, "loss": 0.5}])
    out.write("tensorboard/readme.txt", b"mine")
    delete_history_from(out, 10)
    assert out.names("tensorboard") == ["events.out.tfevents.00000000.train", "readme.txt"]
    for first in (10, 15):
        write(out, first, first + 5, take=1)
    found = [(line["step"], line["take"]) for line in read_history(out, HISTORY)]
    assert found == [(step, int(step >= 10)) for step in range(20)]


def test_ranks_write_files_of_their_own(tmp_path):
    out = Store.open(str(tmp_path))
    for rank in (1, 0):
        write(out, 0, 2, rank=rank, folder=SAMPLES)
    write(out, 2, 2, folder=SAMPLES)  # Nothing is written without a line.
    assert out.names(SAMPLES) == ["00000000-0000.jsonl", "00000000-0001.jsonl"]
    found = [(line["rank"], line["step"]) for line in read_history(out, SAMPLES)]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_events_are_numbers_in_the_format_of_tensorboard():
    """The message types of tensorboardX read them."""
    lines = [
        {"step": 3, "loss": 0.25, "note": "text", "rate": float("nan")},
        {"step": 4, "loss": 0.125},
    ]
    data, found, at = make_event_file(lines, "train"), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 12 + length + 4
    assert found == [(3, "train/loss", 0.25), (4, "train/loss", 0.125)]
