"""The checkpoints of a training: folders below `ray/train`, each of which is complete once it holds
the file `DONE`.

`DONE` is written when all files of a checkpoint are in storage. Which checkpoints count follows
from these markers alone. Ray Train keeps a list of its own next to the folders; that list is
private to Ray and changes with its versions, so nothing here depends on it.
"""

import json
import posixpath
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_app.errors import ConfigError, describe_error
from ray_app.storage import Store

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.train import Checkpoint

_STORAGE, RUN = "ray", "train"  # what Ray Train calls storage path and run
FOLDER = f"{_STORAGE}/{RUN}"
DONE = "DONE"
_NAME = re.compile(r"step-(\d+)-.+")
_OLD_FACTS = "training.json"  # in the checkpoints of Touchstone 0.22 and older, in place of DONE


class CheckpointEntry(NamedTuple):
    """A complete checkpoint: its folder's name, the number of steps that it holds, and whether no
    step comes after it.
    """

    name: str
    step: int
    finished: bool


def new_name(step: int) -> str:
    """Return a folder name that no attempt has used before, so that the files of two attempts never
    share a folder.
    """
    return f"step-{step:08d}-{secrets.token_hex(4)}"


def list_checkpoints(out: Store) -> list[CheckpointEntry]:
    """List the complete checkpoints, ordered by step."""
    markers = ((name, _read_marker(out, name)) for name in _folder_names(out))
    entries = (
        CheckpointEntry(name, _step_of(name), marker["finished"])
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


def read_step(folder: Path) -> int:
    """Return the number of steps that a complete checkpoint holds, given its local folder."""
    return int(json.loads((folder / DONE).read_text())["step"])


def save_checkpoint(out: Store, folder: Path, name: str, *, finished: bool) -> None:
    """Copy the files of a local folder into the checkpoint `name`, then mark it as complete. Raises
    StorageError.
    """
    for file in sorted(folder.iterdir()):
        out.write_file(f"{FOLDER}/{name}/{file.name}", file)
    mark_complete(out, name, finished=finished)


def mark_complete(out: Store, name: str, *, finished: bool) -> None:
    """Write the marker of a checkpoint all of whose files are in storage."""
    out.write(
        f"{FOLDER}/{name}/{DONE}",
        json.dumps({"step": _step_of(name), "finished": finished}).encode(),
    )


def remove_superseded(
    out: Store, *, keep: int, values: Mapping[int, float], unjudged: Collection[int] = ()
) -> list[str]:
    """Delete the complete checkpoints that others supersede, and return their names.

    The last checkpoint always stays.

    Args:
        out: The directory of the training.
        keep: Number of the best checkpoints that stay.
        values: The validation metric by step; higher is better. A checkpoint without a value ranks
            below all others, by its step.
        unjudged: Steps whose checkpoints stay because they still have to be validated.
    """
    if len(_folder_names(out)) <= keep:
        return []
    entries = list_checkpoints(out)
    ranked = sorted(
        entries, key=lambda entry: (entry.step in values, values.get(entry.step, 0.0), entry.step)
    )
    kept = {*ranked[-keep:], *entries[-1:]}
    superseded = [
        entry.name for entry in entries if entry not in kept and entry.step not in unjudged
    ]
    for name in superseded:
        _remove(out, name)
    return superseded


def remove_incomplete(out: Store) -> list[str]:
    """Delete the folders of interrupted uploads that a complete checkpoint of as many steps
    supersedes; returns their names.

    A folder whose marker cannot be read stays, and so does one of an older version: either may be a
    whole checkpoint. Call this only while no process of this training runs: an upload in progress
    looks the same.
    """
    last = latest_checkpoint(out)
    superseded = [
        name for name in _folder_names(out) if last is not None and _step_of(name) <= last.step
    ]
    incomplete = [
        name
        for name in superseded
        if not any(out.exists(f"{FOLDER}/{name}/{marker}") for marker in (DONE, _OLD_FACTS))
    ]
    for name in incomplete:
        _remove(out, name)
    return incomplete


def count_folders(out: Store) -> int:
    """Count the checkpoint folders, complete or not."""
    return len(_folder_names(out))


def mark_older_checkpoints(out: Store) -> None:
    """Mark the checkpoints of a training that Touchstone 0.22 or older began, according to Ray
    Train's list of them.

    Raises:
        ConfigError: There are checkpoints of an older version, and Ray Train cannot read its list.
            Nothing is changed.
    """
    older = {name for name in _folder_names(out) if out.exists(f"{FOLDER}/{name}/{_OLD_FACTS}")}
    older -= {entry.name for entry in list_checkpoints(out)}
    if not older:
        return
    from ray.train import Result

    filesystem, path = _ray_place(out)
    try:
        listed = (
            Result.from_path(
                posixpath.join(path, RUN), storage_filesystem=filesystem
            ).best_checkpoints
            or []
        )
    except Exception as error:  # Ray's own errors, those of its models and those of storage
        raise ConfigError(
            f"{out.url}/{FOLDER} holds {len(older)} checkpoints of Touchstone 0.22 or older, and Ray Train cannot read its list of them: "
            f"{describe_error(error)}",
            hint="finish this training with the versions of Touchstone and Ray that began it, or give another --out; nothing was deleted",
        ) from error
    for name in older & {posixpath.basename(checkpoint.path) for checkpoint, _ in listed}:
        mark_complete(
            out, name, finished=json.loads(out.read(f"{FOLDER}/{name}/{_OLD_FACTS}"))["finished"]
        )


def remove_ray_notes(out: Store) -> None:
    """Delete the files that an earlier session of Ray Train left next to the checkpoints, so that
    the next session starts without them.
    """
    out.delete_all(f"{FOLDER}/{name}" for name in out.names(FOLDER))


@contextmanager
def fetched(out: Store, name: str) -> Iterator[Path]:
    """Provide a checkpoint as a local folder while the block lasts. Raises StorageError."""
    folder = out.below(f"{FOLDER}/{name}")
    with local_folder(folder, folder.names("")) as here:
        yield here


@contextmanager
def local_folder(source: Store, names: Iterable[str]) -> Iterator[Path]:
    """Provide files as a local folder: the source if it is local, else copies while the block
    lasts. Raises StorageError.
    """
    here = source.local_path("")
    if here:
        yield here
        return
    with TemporaryDirectory(prefix="touchstone-") as scratch:
        for name in names:
            source.copy_to(name, Path(scratch, name))
        yield Path(scratch)


def ray_storage(out: Store) -> dict[str, Any]:
    """Return the arguments of Ray Train's RunConfig that let it manage the checkpoint folders."""
    filesystem, path = _ray_place(out)
    return {"name": RUN, "storage_path": path, "storage_filesystem": filesystem}


def ray_checkpoint(out: Store, name: str) -> "Checkpoint":
    """Return a checkpoint in the form that Ray Train takes and downloads once per node."""
    from ray.train import Checkpoint

    filesystem, path = _ray_place(out)
    return Checkpoint(posixpath.join(path, RUN, name), filesystem)


def _ray_place(out: Store) -> "tuple[FileSystem, str]":
    """Return the pyarrow file system, and the path on it below which Ray Train keeps its run."""
    import pyarrow.fs as pafs

    here = out.local_path(_STORAGE)
    if here:
        return pafs.LocalFileSystem(), str(here)
    filesystem, path = out.filesystem_and_path(_STORAGE)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _folder_names(out: Store) -> list[str]:
    return [name for name in out.folders(FOLDER) if _NAME.fullmatch(name)]


def _step_of(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found is not None, "only such folders are listed"
    return int(found[1])


def _read_marker(out: Store, name: str) -> dict[str, Any] | None:
    """Return the content of a checkpoint's marker, or None if it is missing or only half written."""
    try:
        marker = json.loads(out.read(f"{FOLDER}/{name}/{DONE}"))
    except (FileNotFoundError, ValueError):
        return None
    return marker if isinstance(marker, dict) and isinstance(marker.get("finished"), bool) else None


def _remove(out: Store, name: str) -> None:
    """Delete a checkpoint, its marker first, so that an interruption leaves no checkpoint that
    looks complete.
    """
    out.delete(f"{FOLDER}/{name}/{DONE}")
    out.clear(f"{FOLDER}/{name}")
