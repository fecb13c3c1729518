"""Checkpoints of a training: where they lie and which of them count, by Ray Train's own list. `kept`, `put`, `fetched`, `remove_orphans`.

Ray Train lists a checkpoint once it has reached its controller. One that was uploaded in the last two seconds before a crash is in no
list, for ever (specs/ray.md §A2): such folders are removed when a session begins and when it ends.
"""

import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ray_app.errors import StorageError, describe_error
from ray_app.storage import Store, local_path

FOLDER = "ray"  # of all that Ray Train keeps
RUN = "train"
_LIST = "checkpoint_manager_snapshot.json"
_COPY = f"{FOLDER}/{_LIST}"
_STEP = "step-"
_FACTS = "training.json"


class CheckpointEntry(NamedTuple):
    """One checkpoint of the list: its folder's name, the steps that it has behind it, and the figures that belong to it."""

    name: str
    step: int
    metrics: dict[str, Any]


def new_name(step: int) -> str:
    """A folder's name that no attempt has used before: Ray would mix the files of two that share one."""
    return f"{_STEP}{step:08d}-{secrets.token_hex(4)}"


def step_of(name: str) -> int:
    """The step of a checkpoint, by its folder's name."""
    return int(name.removeprefix(_STEP).partition("-")[0])


def write_facts(folder: Path, *, step: int, finished: bool) -> None:
    """Note in a checkpoint how far it is, and whether no step comes after it."""
    (folder / _FACTS).write_text(json.dumps({"step": step, "finished": finished}))


def read_facts(folder: Path) -> tuple[int, bool]:
    """The step of a checkpoint's folder, and whether it is the last."""
    facts = json.loads((folder / _FACTS).read_text())
    return facts["step"], facts["finished"]


def kept(out: Store) -> list[CheckpointEntry]:
    """The checkpoints that count, by their steps."""
    found = [
        CheckpointEntry(one["checkpoint_dir_name"], one["metrics"]["step"], one["metrics"])
        for one in _listed(out).get("checkpoint_results", ())
    ]
    return sorted(found, key=lambda one: one.step)


def is_trained(out: Store) -> bool:
    """Whether the last step of all was made and committed."""
    latest = _listed(out).get("latest_checkpoint_result")
    return bool(latest and latest["metrics"].get("finished"))


def remove_orphans(out: Store) -> list[str]:
    """Remove the folders of checkpoints that no list knows; returns their names. Only while nobody trains."""
    known = {one.name for one in kept(out)}
    orphans = [name for name in out.folders(f"{FOLDER}/{RUN}") if name.startswith(_STEP) and name not in known]
    for name in orphans:
        out.clear(f"{FOLDER}/{RUN}/{name}")
    return orphans


def copy_list(out: Store) -> None:
    """Keep a whole copy of the list, since Ray writes its own in place and a kill may leave half of it."""
    if (data := _read(out, f"{FOLDER}/{RUN}/{_LIST}")) and _parsed(data) is not None and data != _read(out, _COPY):
        out.write(_COPY, data)


def mend_list(out: Store) -> None:
    """Put the copy in the place of a list that a kill tore."""
    data = _read(out, f"{FOLDER}/{RUN}/{_LIST}")
    if data is not None and _parsed(data) is None:
        copy = _read(out, _COPY)
        if copy is None:
            out.delete(f"{FOLDER}/{RUN}/{_LIST}")
        else:
            out.write(f"{FOLDER}/{RUN}/{_LIST}", copy)


def put(out: Store, folder: Path, *, step: int) -> None:
    """Make a folder the one checkpoint that counts, of a training that had no need of Ray Train."""
    name = new_name(step)
    for file in sorted(folder.iterdir()):
        out.write_file(f"{FOLDER}/{RUN}/{name}/{file.name}", file)
    only = {"checkpoint_dir_name": name, "metrics": {"step": step, "finished": True}}
    out.write(f"{FOLDER}/{RUN}/{_LIST}", json.dumps({"checkpoint_results": [only], "latest_checkpoint_result": only}).encode())


@contextmanager
def fetched(out: Store, name: str) -> Iterator[Path]:
    """A checkpoint as a folder of this machine while the block lasts. Raises StorageError."""
    folder = out.below(f"{FOLDER}/{RUN}/{name}")
    with local_folder(folder, folder.names("")) as here:
        yield here


@contextmanager
def local_folder(source: Store, names: Iterable[str]) -> Iterator[Path]:
    """A folder of this machine with these files: the source where it is here, else copies while the block lasts. Raises StorageError."""
    if "://" not in source.url:
        yield Path(local_path(source.url))
        return
    with TemporaryDirectory(prefix="touchstone-") as scratch:
        for name in names:
            filesystem, place = source.filesystem_and_path(name)
            try:
                filesystem.get_file(place, f"{scratch}/{name}")
            except OSError as error:
                raise StorageError(
                    f"{source.url}/{name} cannot be read: {describe_error(error)}", hint="the same command tries again"
                ) from error
        yield Path(scratch)


def storage(out: Store) -> dict[str, Any]:
    """Where Ray Train is to keep its files, as arguments of its RunConfig."""
    import pyarrow.fs as pafs
    from fsspec.implementations.local import LocalFileSystem

    filesystem, path = out.filesystem_and_path(FOLDER)
    if isinstance(filesystem, LocalFileSystem):
        return {"storage_path": path}
    return {"storage_path": path, "storage_filesystem": pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))}


def _listed(out: Store) -> dict[str, Any]:
    data = _read(out, f"{FOLDER}/{RUN}/{_LIST}")
    return {} if data is None else _parsed(data) or {}


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        listed: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return listed


def _read(out: Store, path: str) -> bytes | None:
    try:
        return out.read(path)
    except FileNotFoundError:
        return None
