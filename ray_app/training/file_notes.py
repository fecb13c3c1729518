"""Record the files of a training that could not be read, and masks that mark nothing or everything.

A process that meets such a file writes a note to the training's directory. A note is a JSON record
of the image and its problem (`note_images`, `write_notes`). Reports and logs name each file once,
even if there are several notes on it: `list_unreadable`, `describe_misread_masks`, and the lines of
`FileLog` while the training runs.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import rows_to_members
from ray_app.datasets.mask_pixels import CoverageTally
from ray_app.reports.format import escape_invisible, file_name
from ray_app.reports.training import UnreadableFile
from ray_app.storage import Store
from ray_app.training.run_directory import MASKS, UNREADABLE, HistoryWriter, read_history

MAX_NAMED = 100  # Files that a log or a report names. `unreadable.jsonl` names all of them.
MAX_EXAMPLES = 3
_COLUMNS = (
    "image_id",
    "uri",
    "member",
    "occurrence",
    "version",
    "size_bytes",
    "block",
    "slot",
    "place",
    "refused",
    "input",
)


def note_images(
    rows: pa.Table, split: str, details: Mapping[int, str], *, step: int | None = None
) -> list[dict[str, Any]]:
    """Return a note on each image in `details`: a JSON record of the image and its problem.

    Args:
        rows: The labelled rows of the split.
        split: Name of the split.
        details: The problem of each image, by row number.
        step: The training step that loaded the images. None if they were not loaded for a step.

    Returns:
        Notes with the keys `step`, `split`, `image_id`, `uri`, `member`, `mask`, and `detail`, the
        problem.
    """
    columns = rows.select([name for name in _COLUMNS if name in rows.schema.names])
    members = [rows_to_members(columns.slice(number, 1).combine_chunks())[0] for number in details]
    return [
        {
            "step": step,
            "split": split,
            "image_id": member.image_id,
            "uri": member.uri,
            "member": member.member,
            "mask": member.input.get("mask_uri"),
            "detail": detail,
        }
        for member, detail in zip(members, details.values(), strict=True)
    ]


def write_notes(out: Store, folder: str, name: str, notes: Sequence[Mapping[str, Any]]) -> None:
    """Write the notes of a task other than a training step on unreadable images or odd masks.

    Such a task is the evaluation of a split, or the embedding of a block of rows. Notes of an
    earlier attempt at the task are replaced. `StepNotes` writes the notes of training steps.

    Args:
        out: The directory of the training.
        folder: Folder of the notes.
        name: Name of the task, such as `validation`, which becomes the name of the file.
        notes: The notes, see `note_images`. If there are none, the file is deleted.
    """
    path = f"{folder}/{name}.jsonl"
    if notes:
        out.write(path, "".join(json.dumps(note) + "\n" for note in notes).encode())
    else:
        out.delete(path)


class StepNotes:
    """Collects notes on the unreadable images and odd masks that one worker's steps load.

    A note is a JSON record of the image and its problem. A mask is odd if it marks nothing or
    everything.

    Args:
        out: The directory of the training.
        rows: The labelled rows of the training split.
        rank: Rank of the worker.
    """

    def __init__(self, out: Store, rows: pa.Table, rank: int) -> None:
        self._rows, self._seen_masks = rows, set[int]()
        self._unreadable, self._masks = (
            HistoryWriter(out, folder, rank) for folder in (UNREADABLE, MASKS)
        )
        self.first_unreadable: list[dict[str, Any]] = []

    def add(self, batch: Mapping[str, npt.NDArray[Any]], step: int) -> None:
        """Note the unreadable images of a batch, and its odd masks that were not noted before.

        Args:
            batch: The batch.
            step: Number of its step.
        """
        details = {
            int(batch["row"][slot]): str(batch["detail"][slot])
            for slot in (~batch["usable"]).nonzero()[0]
        }
        notes = note_images(self._rows, "train", details, step=step)
        for note in notes:
            self._unreadable.add(note)
        self.first_unreadable = [*self.first_unreadable, *notes][:MAX_NAMED]
        odd = {
            row: detail
            for row, detail in find_odd_masks(batch).items()
            if row not in self._seen_masks
        }
        self._seen_masks.update(odd)
        for note in note_images(self._rows, "train", odd, step=step):
            self._masks.add(note)

    def write(self, first: int) -> None:
        """Write the notes that were added after the previous call to the training's directory.

        A note is a JSON record of an unreadable image or an odd mask. Each of the two kinds has a
        file of its own, which is written only if there are new notes.

        Args:
            first: The first step that the notes cover. It names the files.
        """
        self._unreadable.write(first)
        self._masks.write(first)


def find_odd_masks(batch: Mapping[str, npt.NDArray[Any]]) -> dict[int, str]:
    """Return the fake images of a batch whose stored masks mark nothing or everything.

    The keys are row numbers, and the values are "empty" or "full".
    """
    coverage = batch.get("coverage")
    if coverage is None:
        return {}
    return {
        int(batch["row"][slot]): str(coverage[slot])
        for slot in np.isin(coverage, ("empty", "full")).nonzero()[0]
    }


def list_unreadable(out: Store) -> list[dict[str, Any]]:
    """Return one note per unreadable image of a training, as `note_images` makes them.

    A note is a JSON record of the image and its problem. If an image has several notes, the first
    is returned. The added key `times` is the number of notes on the image.
    """
    return list(_merge(read_history(out, UNREADABLE)).values())


def write_unreadable(out: Store) -> list[dict[str, Any]]:
    """Write a note on each unreadable image of a training to `unreadable.jsonl`.

    A note is a JSON record of the image and its problem. The function returns the notes, one per
    image, as `list_unreadable` does.
    """
    notes = list_unreadable(out)
    lines = ({name: value for name, value in note.items() if name != "mask"} for note in notes)
    out.write(f"{UNREADABLE}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return notes


def describe_misread_masks(out: Store) -> str | None:
    """Return a warning about the masks of fakes that mark nothing or everything.

    The warning has counts and examples. Return None if no such mask was noted.
    """
    tally = CoverageTally()
    for note in _merge(read_history(out, MASKS)).values():
        tally.add(note["mask"], note["detail"])
    return tally.warning()


def name_files(unreadable: Sequence[Mapping[str, Any]]) -> tuple[UnreadableFile, ...] | None:
    """Return up to `MAX_NAMED` unreadable files for the report of a training.

    Args:
        unreadable: The notes on the files, as `list_unreadable` returns them.

    Returns:
        The files. None without notes.
    """
    return (
        tuple(
            UnreadableFile(**{name: note[name] for name in UnreadableFile.__dataclass_fields__})
            for note in unreadable[:MAX_NAMED]
        )
        or None
    )


def describe_note(note: Mapping[str, Any]) -> str:
    """Return a line with the path of an unreadable image and the reason.

    `note` is the JSON record of the image that `note_images` made.
    """
    return escape_invisible(f"{file_name(note['uri'], note['member'])}: {note['detail']}")


def join_examples(notes: Iterable[Mapping[str, Any]]) -> str:
    """Return a few of the images in `notes`, each with its reason, as text for a message.

    Args:
        notes: JSON records of images and their problems, as `note_images` returns them.

    Returns:
        Up to `MAX_EXAMPLES` images, separated by semicolons.
    """
    return "; ".join([describe_note(note) for note in _merge(notes).values()][:MAX_EXAMPLES])


class FileLog:
    """Makes log lines about files that could not be read, from the notes of all workers.

    A note is a JSON record of an image and its problem, in the training's directory. Up to
    `MAX_NAMED` files are named, each once. Files that an earlier session of the training noted are
    not named again. A single line warns of masks that mark nothing or everything.
    """

    def __init__(self, out: Store) -> None:
        self._out = out
        self._read = {folder: set(out.names(folder)) for folder in (UNREADABLE, MASKS)}
        self._named = set(_merge(read_history(out, UNREADABLE)))
        self._has_warned = bool(self._read[MASKS])

    def print_new(self) -> None:
        """Print new log lines on unreadable images and odd masks to the standard error stream."""
        for line in self.new_lines():
            print(line, file=sys.stderr, flush=True)

    def new_lines(self) -> Iterator[str]:
        """Yield log lines for notes that any worker has written since the previous call.

        The first call covers the notes written since this object was created.
        """
        for name in self._new_names(UNREADABLE):
            yield from self.lines(
                map(json.loads, self._out.read(f"{UNREADABLE}/{name}").splitlines())
            )
        if (
            self._new_names(MASKS)
            and not self._has_warned
            and (warning := describe_misread_masks(self._out))
        ):
            self._has_warned = True
            yield f"train  warning: {warning}"

    def lines(self, notes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """Yield a log line for each noted file that no earlier line named.

        `notes` are on files that could not be read, see `note_images`.
        """
        for key, note in _merge(notes).items():
            if key in self._named:
                continue
            self._named.add(key)
            if len(self._named) <= MAX_NAMED:
                yield f"train  could not read {describe_note(note)}"
            elif len(self._named) == MAX_NAMED + 1:
                yield f"train  could not read more than {MAX_NAMED} files: all are in {self._out.url}/{UNREADABLE}.jsonl at the end"

    def _new_names(self, folder: str) -> list[str]:
        names = [name for name in self._out.names(folder) if name not in self._read[folder]]
        self._read[folder].update(names)
        return names


def _merge(notes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return one note per image, the first, with the number of notes as `times`."""
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for note in notes:
        key = note.get("split", "train"), note["image_id"]
        if key in merged:
            merged[key]["times"] += 1
        else:
            # Notes of version 0.22 and older have no URI.
            merged[key] = {
                "split": "train",
                "uri": f"image_id {note['image_id']}",
                "member": None,
                **note,
                "times": 1,
            }
    return merged
