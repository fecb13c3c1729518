"""Store, list, and delete the checkpoints of a training.

A checkpoint is a folder below `checkpoints/` in the training's directory. When all of its files are
in storage, the file `DONE` is written to it. A checkpoint without this file is incomplete, and a
training never resumes from it.
"""

import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_app.errors import ConfigError
from ray_app.storage import Store

if TYPE_CHECKING:
    from ray_app.training.learner import Learner

FOLDER = "checkpoints"
DONE = "DONE"
_NAME = re.compile(r"step-(\d+)-.+")
_OLD_FOLDER = "ray/train"  # Checkpoints of Touchstone 0.27 and older.


class CheckpointEntry(NamedTuple):
    """A complete checkpoint.

    Attributes:
        name: Name of the checkpoint's folder.
        step: Number of training steps that the network had made.
        finished: Whether it is the last checkpoint of the training.
    """

    name: str
    step: int
    finished: bool


def make_checkpoint_name(step: int) -> str:
    """Return a new, unique folder name for the checkpoint of a step.

    Two attempts that save the same step get different names, so that they never share a folder.
    """
    return f"step-{step:08d}-{secrets.token_hex(4)}"


def list_checkpoints(out: Store) -> list[CheckpointEntry]:
    """List the complete checkpoints of a training, ordered by step."""
    markers = ((name, _read_marker(out, name)) for name in _folder_names(out))
    entries = (
        CheckpointEntry(name, _parse_step(name), marker["finished"])
        for name, marker in markers
        if marker is not None
    )
    return sorted(entries, key=lambda entry: (entry.step, entry.name))


def latest_checkpoint(out: Store) -> CheckpointEntry | None:
    """Return the complete checkpoint with the most steps, or None if there is none."""
    return next(reversed(list_checkpoints(out)), None)


def is_trained(out: Store) -> bool:
    """Return whether the last step of the training is in a complete checkpoint."""
    latest = latest_checkpoint(out)
    return latest is not None and latest.finished


def save_checkpoint(out: Store, folder: Path, name: str, *, finished: bool) -> None:
    """Copy the files of a local folder into a checkpoint, then mark it as complete.

    Args:
        out: The directory of the training.
        folder: The local folder.
        name: Name of the checkpoint.
        finished: Whether it is the last checkpoint of the training.

    Raises:
        StorageError: A file cannot be written.
    """
    for file in sorted(folder.iterdir()):
        out.write_file(f"{FOLDER}/{name}/{file.name}", file)
    mark_complete(out, name, finished=finished)


def mark_complete(out: Store, name: str, *, finished: bool) -> None:
    """Mark a checkpoint as complete by its file `DONE`.

    Call this function when all other files of the checkpoint are in storage.

    Args:
        out: The directory of the training.
        name: Name of the checkpoint.
        finished: Whether it is the last checkpoint of the training.
    """
    out.write(
        f"{FOLDER}/{name}/{DONE}",
        json.dumps({"step": _parse_step(name), "finished": finished}).encode(),
    )


def remove_superseded(
    out: Store, *, keep: int, values: Mapping[int, float], unjudged: Collection[int] = ()
) -> list[str]:
    """Delete complete checkpoints, except the best ones, the last one, and those to be validated.

    Args:
        out: The directory of the training.
        keep: Number of the best checkpoints that stay.
        values: The validation metric by step; higher is better. A checkpoint without a value ranks
            below all others, by its step.
        unjudged: Steps whose checkpoints stay because they still have to be validated.

    Returns:
        The names of the deleted checkpoints.
    """
    if len(_folder_names(out)) <= keep:
        return []
    entries = list_checkpoints(out)
    ranked = sorted(
        entries, key=lambda entry: (entry.step in values, values.get(entry.step, 0.0), entry.step)
    )
    retained = {*ranked[-keep:], *entries[-1:]}
    superseded = [
        entry.name for entry in entries if entry not in retained and entry.step not in unjudged
    ]
    for name in superseded:
        _remove(out, name)
    return superseded


def remove_incomplete(out: Store) -> list[str]:
    """Delete checkpoint folders without a `DONE`, and return their names.

    Such a folder is left by an interrupted upload. It is deleted only if a complete checkpoint has
    at least as many steps. A folder with an unreadable `DONE` stays, since all of its files may be
    there. Call this function only while no process of this training runs, because an upload in
    progress looks the same.
    """
    last = latest_checkpoint(out)
    superseded = [
        name for name in _folder_names(out) if last is not None and _parse_step(name) <= last.step
    ]
    incomplete = [name for name in superseded if not out.exists(f"{FOLDER}/{name}/{DONE}")]
    for name in incomplete:
        _remove(out, name)
    return incomplete


def count_folders(out: Store) -> int:
    """Return the number of checkpoint folders of a training, complete or not."""
    return len(_folder_names(out))


def refuse_older(out: Store) -> None:
    """Raise ConfigError if a training's directory has checkpoints of Touchstone 0.27 or older.

    This version cannot resume from them.
    """
    if out.folders(_OLD_FOLDER):
        raise ConfigError(
            f"{out.url}/{_OLD_FOLDER} holds checkpoints of Touchstone 0.27 or older",
            hint="finish this training with the version that started it, or give another --out; nothing was deleted",
        )


class CheckpointWriter:
    """Saves checkpoints of a learner.

    An upload to remote storage runs in the background while training continues.
    """

    def __init__(self, out: Store) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._upload: Future[None] | None = None

    def save(self, learner: "Learner", *, finished: bool) -> str | None:
        """Save the learner as a new checkpoint. All workers call it; rank 0 writes.

        Args:
            learner: The learner.
            finished: Whether it is the last checkpoint of the training.

        Returns:
            The name of the checkpoint in rank 0, otherwise None.

        Raises:
            StorageError: This checkpoint or the previous one cannot be written.
        """
        if learner.rank != 0:
            learner.save(Path())
            return None
        self.wait()
        name = make_checkpoint_name(learner.step_number)
        local = self._out.local_path(f"{FOLDER}/{name}")
        if local:
            local.mkdir(parents=True)
            learner.save(local)
            mark_complete(self._out, name, finished=finished)
            return name
        scratch = TemporaryDirectory(prefix="touchstone-checkpoint-")
        learner.save(Path(scratch.name))
        self._upload = self._pool.submit(self._send, scratch, name, finished)
        return name

    def wait(self) -> None:
        """Wait for the upload of the last saved checkpoint. Raise StorageError if it failed."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def _send(self, scratch: "TemporaryDirectory[str]", name: str, finished: bool) -> None:
        with scratch as folder:
            save_checkpoint(self._out, Path(folder), name, finished=finished)


@contextmanager
def fetch_checkpoint(out: Store, name: str, files: Iterable[str] | None = None) -> Iterator[Path]:
    """Provide the files of a checkpoint as a local folder inside the `with` block.

    Args:
        out: The directory of the training.
        name: Name of the checkpoint.
        files: The files that are needed. None for all.

    Raises:
        StorageError: A file cannot be read.
    """
    folder = out.subdir(f"{FOLDER}/{name}")
    with provide_local_folder(folder, folder.names("") if files is None else files) as local:
        yield local


@contextmanager
def provide_local_folder(source: Store, names: Iterable[str]) -> Iterator[Path]:
    """Provide files of a store as a local folder inside the `with` block.

    If the store is local, its own folder is provided, without a copy. Otherwise the files are
    copied to a temporary folder.

    Args:
        source: The store.
        names: The files to copy from a remote store.

    Raises:
        StorageError: A file cannot be read.
    """
    local = source.local_path("")
    if local:
        yield local
        return
    with TemporaryDirectory(prefix="touchstone-") as scratch:
        for name in names:
            source.copy_to(name, Path(scratch, name))
        yield Path(scratch)


def _folder_names(out: Store) -> list[str]:
    return [name for name in out.folders(FOLDER) if _NAME.fullmatch(name)]


def _parse_step(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None, "only such folders are listed"
    return int(match[1])


def _read_marker(out: Store, name: str) -> dict[str, Any] | None:
    """Return the content of a checkpoint's marker, or None if it is missing or half written."""
    try:
        marker = json.loads(out.read(f"{FOLDER}/{name}/{DONE}"))
    except (FileNotFoundError, ValueError):
        return None
    return marker if isinstance(marker, dict) and isinstance(marker.get("finished"), bool) else None


def _remove(out: Store, name: str) -> None:
    """Delete a checkpoint, its marker first: an interruption leaves none that looks complete."""
    out.delete(f"{FOLDER}/{name}/{DONE}")
    out.clear(f"{FOLDER}/{name}")
