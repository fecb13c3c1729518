"""Files known by the SHA-256 of their content, whatever they are called: `file_sha256`, `find_by_sha256`, `may_be_weights`, `keep_file`."""

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from ray_app.detectors.checkpoint_formats import kind_of_file

WEIGHT_SUFFIXES = frozenset(
    (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".th", ".tar", ".pkl", ".pickle", ".model", ".onnx", ".h5", ".gguf", ".npz")
)
FEWEST_BYTES = 256  # an empty state dict has more


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file; gigabytes are hashed once per process. Raises OSError."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    # Size and time stand for the content.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(place: Path) -> Iterator[Path]:
    """A file itself, or every file of a folder and of the folders in it, in the order of their paths."""
    if place.is_dir():
        yield from sorted(path for path in place.rglob("*") if path.is_file())
    else:
        yield place


def may_be_weights(path: Path, names: Collection[str] = ()) -> bool:
    """Whether a file is worth hashing: by a suffix of weights, one of `names`, or its first bytes. Smaller ones than any weights are not.

    Reads a few kilobytes at most. Raises OSError.
    """
    if path.name in names:
        return True
    if path.stat().st_size < FEWEST_BYTES:
        return False
    return path.suffix.lower() in WEIGHT_SUFFIXES or kind_of_file(path).name in ("torch", "safetensors")


def find_by_sha256(place: Path, wanted: Collection[str], worth: Callable[[Path], bool] | None = None) -> Mapping[str, Path]:
    """The wanted files (SHA-256 in hex) at or below a place, whatever they are called: hash → first path. Those absent are left out.

    `worth`: which files are hashed at all; every one if left out. What cannot be read is passed over.
    """
    found: dict[str, Path] = {}
    for path in files_below(place):
        if len(found) == len(set(wanted)):
            break
        try:
            digest = file_sha256(path) if worth is None or worth(path) else None
        except OSError:
            continue
        if digest is not None and digest in wanted:
            found.setdefault(digest, path)
    return found


def keep_file(file: Path, target: Path) -> str:
    """Bring a file to a place in the cache: `linked` to it where the file system can, else `copied`; `there` where it is already.

    In one rename. Raises OSError.
    """
    if target.is_file() and target.stat().st_size == file.stat().st_size and file_sha256(target) == file_sha256(file):
        return "there"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".adopted.")) / target.name
    try:
        try:
            partial.hardlink_to(file.resolve())
            done = "linked"
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, partial)
            done = "copied"
        partial.replace(target)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)
    return done
