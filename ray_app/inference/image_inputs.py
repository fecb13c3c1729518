"""What a caller gives to be scored → one image (`one_image`) or many (`many`), which nobody has
read yet. `ACCEPTED` says what is taken.
"""

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ray_app.errors import ConfigError, InputError, Status, describe_error
from ray_app.inference.batch import File
from ray_app.inference.decoder_pool import PreparedImage
from ray_app.storage import Fetcher, strip_secrets

ACCEPTED = (
    "a path or URL (str or pathlib.Path), a folder or a glob of files, the bytes of a file, a file opened with 'rb', a PIL image, "
    "a uint8 NumPy array (H×W×3, H×W×4 or H×W), a uint8 torch tensor (3×H×W or H×W×3), a dict with `bytes` or `path` as Hugging Face "
    "datasets have it, or a list or any other iterable of these"
)
_CHANNELS = (1, 3, 4)
# What Pillow raises where a file behind an image is gone, or is none.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
)

# one of `ACCEPTED` that is one image; for callers of this package also PreparedImage or InputError
Given = Any


class UnknownInputError(ConfigError, TypeError):
    """What was given is no image and nothing that has images; the message says what is accepted."""


class ImageSource(NamedTuple):
    """One image that nobody has read yet: its path, URL or place among those of a call (None: it
    was the only one), and what was given.

    `picture`: what it can be drawn from later at no cost for memory (a local path, or what the
    caller holds anyway), or None.
    """

    name: str | int | None
    given: Given
    picture: Given = None


class ManySources(NamedTuple):
    """Images one after another; how many, where that is known."""

    sources: Iterator[ImageSource]
    total: int | None


def source_at(place: str) -> ImageSource:
    """A path, or a URL, whose name has no secrets."""
    return (
        ImageSource(strip_secrets(place), place)
        if "://" in place
        else ImageSource(place, place, place)
    )


def many(given: Any) -> ManySources:
    """Images one after another. Raises UnknownInputError for what has none."""
    columns = getattr(given, "column_names", None) or getattr(given, "columns", None)
    if columns is not None and not isinstance(given, Mapping):
        shown = ", ".join(map(str, columns() if callable(columns) else columns))
        raise _unknown(
            f"a {type(given).__name__}, a table with the columns {shown}; give one of them, as score(table[COLUMN])"
        )
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise _unknown(described(given))
    if isinstance(given, list | tuple):
        return ManySources(
            iter([_item(one, place, keeps=True) for place, one in enumerate(given)]), len(given)
        )
    count = len(given) if isinstance(given, Sized) else None
    keeps = isinstance(given, np.ndarray)
    return ManySources(
        (_item(one, place, keeps=keeps) for place, one in enumerate(encoded_column(given))), count
    )


def _item(given: Any, place: int, *, keeps: bool) -> ImageSource:
    """One of many. Raises UnknownInputError where it is none; what is missing (None, NaN) is an
    image that has no file.
    """
    given = given.as_py() if hasattr(given, "as_py") else given  # a scalar of pyarrow
    if given is None or (isinstance(given, float) and math.isnan(given)):
        return ImageSource(
            place, InputError(Status.EMPTY_FILE, "no image was given here: it is missing (None)")
        )
    one = one_image(given, place, keeps=keeps)
    if one is None:
        raise _unknown(described(given, f", image {place} of those given"))
    return one


def one_image(given: Any, place: int | None, *, keeps: bool) -> ImageSource | None:
    """One image; None for what is none, and may have some. `keeps`: the caller holds it, so that
    nothing is lost if a result does, too.

    Raises UnknownInputError for arrays and dicts that cannot be read as one.
    """
    picture = given if keeps else None
    if isinstance(given, str | os.PathLike):
        return source_at(os.fsdecode(given))
    if isinstance(given, bytes | bytearray | memoryview):
        return ImageSource(place, given, picture)
    if isinstance(given, Image.Image):
        return ImageSource(getattr(given, "filename", "") or place, given, picture)
    if isinstance(given, PreparedImage | InputError):
        return ImageSource(place, given)
    if isinstance(given, Mapping):
        return _of_dict(given, place, keeps=keeps)
    if is_array(given):
        return ImageSource(place, given, picture) if _holds_one(given) else None
    if isinstance(given, io.TextIOBase):
        raise _unknown("a file opened as text; open it with open(path, 'rb')")
    if hasattr(given, "read") and not isinstance(given, type):
        name = getattr(given, "name", None)
        return ImageSource(name if isinstance(name, str) else place, given)
    return None


def _of_dict(given: Mapping[str, Any], place: int | None, *, keeps: bool) -> ImageSource | None:
    """An image as Hugging Face datasets keep it encoded: {"bytes": …, "path": …}, where either may
    be None.
    """
    if not given.keys() & {"bytes", "path"}:
        return None
    data, path = given.get("bytes"), given.get("path")
    name = path if isinstance(path, str) and path else place
    if isinstance(data, bytes | bytearray | memoryview):
        return ImageSource(name, data, data if keeps else None)
    if data is None and isinstance(path, str | os.PathLike):
        return source_at(os.fsdecode(path))
    return (
        None
        if data is not None
        else ImageSource(
            place, InputError(Status.EMPTY_FILE, "a dict with neither `bytes` nor `path`")
        )
    )


def is_array(given: Any) -> bool:
    """Whether it has pixels as NumPy, torch and others have them."""
    return hasattr(given, "__array__") and hasattr(given, "shape") and hasattr(given, "dtype")


def is_picture(given: Any) -> bool:
    """Whether a value shows by itself that it is an image: encoded, decoded, or a dict of Hugging
    Face datasets.
    """
    if isinstance(given, Mapping):
        fits = isinstance(given.get("bytes"), bytes | None) and isinstance(
            given.get("path"), str | None
        )
        return fits and bool(given) and given.keys() <= {"bytes", "path"}
    is_pixels = (
        is_array(given)
        and str(given.dtype).removeprefix("torch.") == "uint8"
        and len(given.shape) > 1
    )
    return isinstance(given, bytes | bytearray | Image.Image) or is_pixels


def described(given: Any, where: str = "") -> str:
    """What something is, as an error calls it: its type, and `where` it stands; of a dict also its
    keys.
    """
    kind = type(given).__name__
    if given is None:
        return "None: there is no image"
    if isinstance(given, Mapping):
        keys = ", ".join(map(str, given)) or "none"
        return f"a {kind} with the keys {keys}{where}; if one of them has the image, give that one, as thing[KEY]"
    return f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind}{where}"


def batch_column(batch: Mapping[str, Any], name: str | None) -> Any:
    """The column of a batch that has the images: `name`; or, where that is None, `bytes`, `image`,
    or the only one whose first value shows that it has. Raises ConfigError that names the columns
    where there is none.
    """
    if name is None:
        name = next((usual for usual in ("bytes", "image") if usual in batch), None)
    if name is None:
        fitting = [
            column
            for column in batch
            if is_picture(next((one for one in _encoded(batch, column) if one is not None), None))
        ]
        if len(fitting) != 1:
            found = (
                "none of its columns has images"
                if not fitting
                else f"{' and '.join(fitting)} have images"
            )
            raise ConfigError(
                f"which column of the batch has the images? {found}; the columns are: {', '.join(map(str, batch)) or 'none'}",
                hint="say which: load_ensemble(NAME, image_column='COLUMN')",
            )
        [name] = fitting
    elif name not in batch:
        raise ConfigError(
            f"the batch has no column '{name}'; its columns are: {', '.join(map(str, batch)) or 'none'}",
            hint="load_ensemble(NAME, image_column='COLUMN') says which has the images",
        )
    return _encoded(batch, name)


def _encoded(batch: Mapping[str, Any], name: str) -> Any:
    """A column of a batch; of one that `datasets` passes and has not decoded yet, the files' bytes
    (see `encoded_column`).
    """
    table = getattr(batch, "pa_table", None)
    if table is None or name not in getattr(batch, "keys_to_format", ()):
        return batch[name]
    kind = table.schema.field(name).type
    has_bytes = {kind.field(place).name for place in range(kind.num_fields)} == {"bytes", "path"}
    return table[name].to_pylist() if has_bytes else batch[name]


def encoded_column(column: Any) -> Any:
    """A column of a Hugging Face dataset as its files' bytes and not decoded: what they score is
    what the files score, and one that does not decode is a row. Anything else as it is.
    """
    feature: Any = getattr(column, "features", None)
    dataset: Any = getattr(column, "source", None)
    is_decoded = type(feature).__name__ == "Image" and getattr(feature, "decode", False)
    has_format = (getattr(dataset, "format", None) or {}).get("type") is not None
    if not is_decoded or not hasattr(dataset, "cast_column") or has_format:
        return column
    return dataset.cast_column(column.column_name, replace(feature, decode=False))[
        column.column_name
    ]


def _unknown(found: str) -> UnknownInputError:
    return UnknownInputError(f"cannot score {found}. Accepted are: {ACCEPTED}.")


def _holds_one(array: Any) -> bool:
    """Whether an array is one image (pixels, or the bytes of a file) rather than many. Raises
    UnknownInputError where it is neither.
    """
    shape, kind = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    if (
        len(shape) == 1
        and kind not in ("uint8",)
        and not kind.startswith(("float", "int", "bool", "complex"))
    ):
        return False  # of texts, bytes, objects
    what = f"a {type(array).__name__} of {'×'.join(map(str, shape)) or 'no dimension'}, {kind}"
    if kind != "uint8":
        way = (
            "(x * 255).round().to(torch.uint8)"
            if _is_tensor(array)
            else "(x * 255).round().astype('uint8')"
        )
        advice = f"; pixels are uint8: {way} makes them of values from 0 to 1 (what was normalised for a network is no picture any more)"
        raise _unknown(what + (advice if len(shape) in (2, 3, 4) else ""))
    if len(shape) == 4:
        return False
    if len(shape) == 3:
        _require_layout(array, shape, what)
    elif len(shape) not in (1, 2):
        raise _unknown(what)
    return True


def _require_layout(array: Any, shape: tuple[int, ...], what: str) -> None:
    last, first = shape[2] in _CHANNELS, shape[0] in _CHANNELS
    if _is_tensor(array):
        if last and first:
            raise _unknown(
                f"{what}: its channels may be the first or the last; say which by x.permute(2, 0, 1), or by a larger picture"
            )
        if not (last or first):
            raise _unknown(
                f"{what}: neither the first nor the last dimension is 1, 3 or 4 channels"
            )
    elif not last:
        raise _unknown(
            f"{what}: the last dimension must be 1, 3 or 4 channels"
            + ("; try x.transpose(1, 2, 0)" if first else "")
        )


def _is_tensor(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "torch" or hasattr(array, "detach")


def image_of_array(array: Any) -> File:
    """Pixels as an image; one dimension as the bytes of a file. Raises InputError where there is no
    pixel.
    """
    pixels = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if pixels.ndim == 1:
        return pixels.tobytes()
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if not pixels.size:
        raise InputError(
            Status.EMPTY_FILE, f"an array of {'×'.join(map(str, pixels.shape))} has no pixels"
        )
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    )


def loaded_image(image: Image.Image) -> Image.Image:
    """Raises InputError where the file behind it is closed or does not decode."""
    try:
        image.load()
    except _UNREADABLE as error:
        raise InputError(
            Status.CORRUPT_IMAGE, f"the PIL image cannot be read: {describe_error(error)}"
        ) from None
    return image


def loaded_picture(given: Given, max_bytes: int) -> File:
    """What `ImageSource.picture` holds, read again. Raises InputError."""
    if isinstance(given, str):
        return Fetcher().fetch(given, "", max_bytes)
    if isinstance(given, Image.Image):
        return given
    return (
        bytes(given) if isinstance(given, bytes | bytearray | memoryview) else image_of_array(given)
    )
