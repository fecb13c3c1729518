"""Explain why a file cannot be read as weights (`unreadable`), from its first bytes
(`kind_of_file`).
"""

import re
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from ray_app.errors import DetectorError, describe_error

_HEAD_BYTES = 4096
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_AGAIN = "fetch it again"
_PAGE = "its link leads to a page, a login or an error: download the file itself"
_SAY = "say `format: {}` in the card's weights"
_ONLY_TENSORS = "ask its publisher for safetensors, or save its state_dict() as safetensors where you trust it: such a file can run code"


class FileKind(NamedTuple):
    """Type of a file: `name` is torch, safetensors, json, or empty for any other; `what` describes
    it, `hint` says what to do.
    """

    name: str
    what: str
    hint: str


def kind_of_file(path: Path) -> FileKind:
    """Return the type of a file. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head.lstrip().lower()
    if not head:
        return FileKind("", "an empty file", _AGAIN)
    if head.startswith(_LFS_POINTER):
        return FileKind(
            "",
            "a git-LFS pointer, which only names the file",
            "run `git lfs pull` in its repository",
        )
    if head.startswith(_LEGACY_TORCH) or _is_torch_zip(path):
        return FileKind("torch", "a PyTorch checkpoint", _SAY.format("torch"))
    if head[8:9] == b"{":
        return FileKind("safetensors", "a safetensors file", _SAY.format("safetensors"))
    if b'"weight_map"' in head:
        return FileKind(
            "json", "the index of a checkpoint in several files", _SAY.format("safetensors-index")
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        return FileKind(
            "json" if text.startswith(b"{") else "", "a web page or the error of a server", _PAGE
        )
    return FileKind("", "not a safetensors file or a PyTorch checkpoint", _AGAIN)


def _is_torch_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def unreadable(
    path: Path, wanted: str, error: BaseException, *, name: Literal["torch", "safetensors", "json"]
) -> DetectorError:
    """Return the error for a file that cannot be read as `wanted`, of the type `name`, without
    advice to open it with less care.
    """
    try:
        kind = kind_of_file(path)
    except OSError as fault:
        return DetectorError(
            f"{path}: not readable as {wanted}: {fault.strerror or describe_error(fault)}"
        )
    if kind.name != name:
        return DetectorError(f"{path}: not readable as {wanted}: it is {kind.what}", hint=kind.hint)
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        reason = f"it holds an object of {found[1]}, and not tensors alone"
        return DetectorError(f"{path}: not readable as {wanted}: {reason}", hint=_ONLY_TENSORS)
    if "TorchScript" in str(error):
        return DetectorError(
            f"{path}: not readable as {wanted}: it is a TorchScript program", hint=_ONLY_TENSORS
        )
    reason = "" if "weights_only" in str(error) else f" ({describe_error(error)})"
    return DetectorError(
        f"{path}: not readable as {wanted}: it is damaged or not whole{reason}", hint=_AGAIN
    )
