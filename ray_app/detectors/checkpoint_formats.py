"""File types of weights by their first bytes (`kind_of_file`), and what to do about a file that is no such weights (`unreadable`).

Sources of the marks: git-lfs's pointer specification; the HDF5, NumPy, GGUF, safetensors and ONNX formats' own pages; for zips the names
that torch.save, torch.jit.save, torch.export.save and Keras write into theirs.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from ray_app.errors import DetectorError, describe_error

_HEAD = 4096
_MOST_HEADER = 100 << 20  # of safetensors, by its own specification
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_AGAIN = "fetch it again"
_CONVERT = "save its tensors as safetensors with the framework that wrote it, and name that file in the card"
_PAGE = "its link leads to a page, a login or an error: download the file itself"
_SAY = "say `format: {}` in the card's weights"
_UNPACK = "unpack it, and name the file that is in it"
_ONLY_TENSORS = "ask its publisher for safetensors, or save its state_dict() as safetensors where you trust it: such a file can run code"
_MARKS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a git-LFS pointer, which only names the file", "run `git lfs pull` in its repository"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes", _CONVERT),
    (b"GGUF", "a GGUF file of llama.cpp", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
)
# Names in a zip, the first that matches counting.
_ZIPS: tuple[tuple[str, str, str], ...] = (
    (r".*/constants\.pkl", "a TorchScript program (torch.jit.save)", _ONLY_TENSORS),
    (r"(.*/)?(archive_format|serialized_exported_program\.json)", "an exported program (torch.export.save)", _ONLY_TENSORS),
    (r"(.*/)?data\.pkl", "", ""),
    (r"model\.weights\.h5", "a Keras model (.keras)", _CONVERT),
    (r".*\.npy", "NumPy arrays (.npz)", _CONVERT),
)


class FileKind(NamedTuple):
    """`name`: torch, safetensors or json, which are read here, else empty. `what` it is in words, and what to do about it."""

    name: str
    what: str
    hint: str


def kind_of_file(path: Path) -> FileKind:
    """What a file is. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not size:
        return FileKind("", "an empty file", _AGAIN)
    for mark, what, hint in _MARKS:
        if head.startswith(mark):
            return FileKind("", what, hint)
    if head.startswith(b"PK"):
        return _zipped(path)
    if head.startswith(_LEGACY_TORCH):
        return FileKind("torch", "a PyTorch checkpoint of before 1.6", _SAY.format("torch"))
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return FileKind("", "a Python pickle", _ONLY_TENSORS)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MOST_HEADER:
        return _safetensors(path, size)
    if head[257:262] == b"ustar":
        return FileKind("", "a tar archive", _UNPACK)
    if head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] in b"\x12\x1a\x22\x28\x32\x3a\x42":
        return FileKind("", "an ONNX model", _CONVERT)
    return _text(head)


def unreadable(path: Path, wanted: str, error: BaseException, *, name: Literal["torch", "safetensors", "json"]) -> DetectorError:
    """What to say of a file that cannot be read as `wanted`, of the kind `name`: what it is, and no advice to open it with less care."""
    try:
        kind = kind_of_file(path)
    except OSError as fault:
        return DetectorError(f"{path}: not readable as {wanted}: {fault.strerror or describe_error(fault)}")
    if kind.name != name:
        return DetectorError(f"{path}: not readable as {wanted}: it is {kind.what}", hint=kind.hint)
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        reason = f"it holds an object of {found[1]}, and not tensors alone"
        return DetectorError(f"{path}: not readable as {wanted}: {reason}", hint=_ONLY_TENSORS)
    reason = "" if "weights_only" in str(error) else f" ({describe_error(error)})"
    return DetectorError(f"{path}: not readable as {wanted}: it is damaged or not whole{reason}", hint=_AGAIN)


def _zipped(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return FileKind("", "a zip archive, as PyTorch's checkpoints are, that is not whole", _AGAIN)
    for pattern, what, hint in _ZIPS:
        if any(re.fullmatch(pattern, name) for name in names):
            return (
                FileKind("", what, hint) if what else FileKind("torch", "a PyTorch checkpoint", "say `format: torch` in the card's weights")
            )
    return FileKind("", f"a zip archive of {len(names)} files", _UNPACK)


def _safetensors(path: Path, size: int) -> FileKind:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    try:
        ends = [int(one["data_offsets"][1]) for name, one in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        ends = [] if len(header) == length else [1]
    if size < 8 + length + max(ends, default=0):
        return FileKind("", f"a safetensors file that is not whole: {size} bytes", _AGAIN)
    return FileKind("safetensors", "a safetensors file", _SAY.format("safetensors"))


def _text(head: bytes) -> FileKind:
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")):
        return FileKind("", "a web page (HTML)", _PAGE)
    if begin.startswith((b"<?xml", b"<error")):
        return FileKind("", "an XML text, such as a store answers with that refuses", _PAGE)
    if begin.startswith(b"{"):
        if b'"weight_map"' in head:
            return FileKind("json", "the index of a checkpoint in several files", _SAY.format("safetensors-index"))
        return FileKind("json", "a JSON text, perhaps an error that a server sent", _PAGE)
    try:
        shown = head[:60].decode("ascii").split("\n")[0]
    except UnicodeDecodeError:
        return FileKind("", "not a known format of weights", _AGAIN)
    if not shown.isprintable():
        return FileKind("", "not a known format of weights", _AGAIN)
    return FileKind("", f"a text that begins with {shown!r}", _PAGE)
