"""Turn what a user passes to a scoring call into one source of an image, or into many.

For one image call `parse_image`, for many `list_sources`.

The images are not read here. `ACCEPTED` lists the accepted types.
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
# Pillow raises these if the file behind an image is deleted or is not an image.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
)

# One image, in one of the `ACCEPTED` types. Callers in this package may also pass a PreparedImage
# or an InputError.
ImageValue = Any


class UnknownInputError(ConfigError, TypeError):
    """The input is neither an image nor contains images. The message lists the accepted types."""


class ImageSource(NamedTuple):
    """One image that is not read yet.

    Attributes:
        name: The path or URL, or else the position of the image in the call. None for a single
            image that has neither path nor URL.
        value: The image as the caller passed it.
        picture: A local path or an object from which the image can be displayed later. It takes no
            extra memory, because the caller keeps the object anyway. None if there is no such
            value.
    """

    name: str | int | None
    value: ImageValue
    picture: ImageValue = None


class ManySources(NamedTuple):
    """The sources of many images.

    Attributes:
        sources: An iterator over the sources.
        total: The number of images. None if the number is unknown.
    """

    sources: Iterator[ImageSource]
    total: int | None


def make_source(location: str) -> ImageSource:
    """Return the source for a path or URL. Secrets are removed from the name of a URL."""
    return (
        ImageSource(strip_secrets(location), location)
        if "://" in location
        else ImageSource(location, location, location)
    )


def list_sources(images: Any) -> ManySources:
    """Return the sources of the images in an iterable.

    It may be a list, a column of a data set, or an array of several images. Paths of folders and
    globs are not listed here (see `ensemble.ImageInputs.resolve`).

    Raises:
        UnknownInputError: The argument is not an iterable of images. The items of a list or tuple
            are checked at once, those of any other iterable when they are read.
    """
    columns = getattr(images, "column_names", None) or getattr(images, "columns", None)
    if columns is not None and not isinstance(images, Mapping):
        names = ", ".join(map(str, columns() if callable(columns) else columns))
        raise _make_error(
            f"a {type(images).__name__}, a table with the columns {names}; pass one of them, as score(table[COLUMN])"
        )
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise _make_error(describe_input(images))
    if isinstance(images, list | tuple):
        return ManySources(
            iter([_parse_item(item, index, keeps=True) for index, item in enumerate(images)]),
            len(images),
        )
    count = len(images) if isinstance(images, Sized) else None
    keeps = isinstance(images, np.ndarray)
    return ManySources(
        (
            _parse_item(item, index, keeps=keeps)
            for index, item in enumerate(get_encoded_column(images))
        ),
        count,
    )


def _parse_item(value: Any, index: int, *, keeps: bool) -> ImageSource:
    """Return the source of one of many images. A missing item (None, NaN) counts as an empty file.

    Raises:
        UnknownInputError: The item is not an image.
    """
    value = value.as_py() if hasattr(value, "as_py") else value  # A scalar of pyarrow.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ImageSource(index, InputError(Status.EMPTY_FILE, "the image is missing (None)"))
    source = parse_image(value, index, keeps=keeps)
    if source is None:
        raise _make_error(describe_input(value, f", at index {index} of the images"))
    return source


def parse_image(value: Any, index: int | None, *, keeps: bool) -> ImageSource | None:
    """Return the source of one image, or None if the value is not an image but may contain images.

    Args:
        value: The value that the caller passed.
        index: The position of the image in the call. None for a single image.
        keeps: Whether the caller keeps the value in memory. The result may then refer to it for
            display without taking more memory.

    Raises:
        UnknownInputError: An array or dict cannot be read as an image.
    """
    picture = value if keeps else None
    if isinstance(value, str | os.PathLike):
        return make_source(os.fsdecode(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return ImageSource(index, value, picture)
    if isinstance(value, Image.Image):
        return ImageSource(getattr(value, "filename", "") or index, value, picture)
    if isinstance(value, PreparedImage | InputError):
        return ImageSource(index, value)
    if isinstance(value, Mapping):
        return _read_dict(value, index, keeps=keeps)
    if is_array(value):
        return ImageSource(index, value, picture) if _is_one_image(value) else None
    if isinstance(value, io.TextIOBase):
        raise _make_error("a file opened as text; open it with open(path, 'rb')")
    if hasattr(value, "read") and not isinstance(value, type):
        name = getattr(value, "name", None)
        return ImageSource(name if isinstance(name, str) else index, value)
    return None


def _read_dict(value: Mapping[str, Any], index: int | None, *, keeps: bool) -> ImageSource | None:
    """Return the source of an encoded image of Hugging Face datasets: {"bytes": …, "path": …}.

    Either value may be None.
    """
    if not value.keys() & {"bytes", "path"}:
        return None
    data, path = value.get("bytes"), value.get("path")
    name = path if isinstance(path, str) and path else index
    if isinstance(data, bytes | bytearray | memoryview):
        return ImageSource(name, data, data if keeps else None)
    if data is None and isinstance(path, str | os.PathLike):
        return make_source(os.fsdecode(path))
    return (
        None
        if data is not None
        else ImageSource(
            index, InputError(Status.EMPTY_FILE, "a dict with neither `bytes` nor `path`")
        )
    )


def is_array(value: Any) -> bool:
    """Return whether a value is an array with a shape and a data type, as of NumPy or torch."""
    return hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype")


def is_picture(value: Any) -> bool:
    """Return whether the type of a value shows that it is an image.

    Such values are bytes, PIL images, uint8 arrays of two or more dimensions, and dicts of Hugging
    Face datasets with `bytes` or `path`. A path or URL as text is not among them.
    """
    if isinstance(value, Mapping):
        fits = isinstance(value.get("bytes"), bytes | None) and isinstance(
            value.get("path"), str | None
        )
        return fits and bool(value) and value.keys() <= {"bytes", "path"}
    is_pixels = (
        is_array(value)
        and str(value.dtype).removeprefix("torch.") == "uint8"
        and len(value.shape) > 1
    )
    return isinstance(value, bytes | bytearray | Image.Image) or is_pixels


def describe_input(value: Any, location: str = "") -> str:
    """Describe a rejected value for an error message: its type, and the keys of a dict.

    Args:
        value: The value.
        location: Where the value was found. The text is added after the type.
    """
    kind = type(value).__name__
    if value is None:
        return "None: there is no image"
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value)) or "none"
        return f"a {kind} with the keys {keys}{location}; if one of them has the image, pass that value, as thing[KEY]"
    return f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind}{location}"


def find_image_column(batch: Mapping[str, Any], name: str | None) -> Any:
    """Return the column of a batch that contains the images.

    Args:
        batch: The columns of the batch, by name.
        name: The name of the column. None looks for `bytes`, then for `image`, and then for the
            only column whose first value is clearly an image.

    Raises:
        ConfigError: There is no such column. The message lists the columns.
    """
    if name is None:
        name = next((default for default in ("bytes", "image") if default in batch), None)
    if name is None:
        matching = [
            column
            for column in batch
            if is_picture(
                next((value for value in _get_encoded(batch, column) if value is not None), None)
            )
        ]
        if len(matching) != 1:
            problem = (
                "no column has images" if not matching else f"{' and '.join(matching)} have images"
            )
            raise ConfigError(
                f"cannot tell which column of the batch has the images: {problem}; the columns are: {', '.join(map(str, batch)) or 'none'}",
                hint="name the column: load_ensemble(NAME, image_column='COLUMN')",
            )
        [name] = matching
    elif name not in batch:
        raise ConfigError(
            f"the batch has no column '{name}'; its columns are: {', '.join(map(str, batch)) or 'none'}",
            hint="name the column with the images: load_ensemble(NAME, image_column='COLUMN')",
        )
    return _get_encoded(batch, name)


def _get_encoded(batch: Mapping[str, Any], name: str) -> Any:
    """Return a column of a batch.

    If `datasets` passes the column and has not decoded it yet, return the bytes of the files (see
    `get_encoded_column`).
    """
    table = getattr(batch, "pa_table", None)
    if table is None or name not in getattr(batch, "keys_to_format", ()):
        return batch[name]
    kind = table.schema.field(name).type
    has_bytes = {kind.field(index).name for index in range(kind.num_fields)} == {"bytes", "path"}
    return table[name].to_pylist() if has_bytes else batch[name]


def get_encoded_column(column: Any) -> Any:
    """Return the encoded files of an image column of a Hugging Face dataset.

    Without this, `datasets` would decode the images: scores could differ from those of the files,
    and a file that does not decode would raise. Any other value is returned unchanged.
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


def _make_error(description: str) -> UnknownInputError:
    return UnknownInputError(f"cannot score {description}. Accepted inputs: {ACCEPTED}.")


def _is_one_image(array: Any) -> bool:
    """Return whether an array is one image (pixels, or the bytes of a file) rather than many.

    Raises:
        UnknownInputError: The array is neither.
    """
    shape, kind = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    if (
        len(shape) == 1
        and kind not in ("uint8",)
        and not kind.startswith(("float", "int", "bool", "complex"))
    ):
        return False  # An array of texts, bytes, or objects.
    description = (
        f"a {type(array).__name__} of {'×'.join(map(str, shape)) or 'no dimension'}, {kind}"
    )
    if kind != "uint8":
        expression = (
            "(x * 255).round().to(torch.uint8)"
            if _is_tensor(array)
            else "(x * 255).round().astype('uint8')"
        )
        advice = f"; pixels must be uint8: {expression} converts values from 0 to 1 (values normalised for a network are not pixels)"
        raise _make_error(description + (advice if len(shape) in (2, 3, 4) else ""))
    if len(shape) == 4:
        return False
    if len(shape) == 3:
        _require_layout(array, shape, description)
    elif len(shape) not in (1, 2):
        raise _make_error(description)
    return True


def _require_layout(array: Any, shape: tuple[int, ...], description: str) -> None:
    last, first = shape[2] in _CHANNELS, shape[0] in _CHANNELS
    if _is_tensor(array):
        if last and first:
            raise _make_error(
                f"{description}: the channels may be the first or the last dimension; pass x.permute(2, 0, 1) or a larger image"
            )
        if not (last or first):
            raise _make_error(
                f"{description}: neither the first nor the last dimension has 1, 3 or 4 channels"
            )
    elif not last:
        raise _make_error(
            f"{description}: the last dimension must have 1, 3 or 4 channels"
            + ("; try x.transpose(1, 2, 0)" if first else "")
        )


def _is_tensor(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "torch" or hasattr(array, "detach")


def read_array(array: Any) -> File:
    """Convert an array of pixels to an image, or an array with one dimension to bytes of a file.

    Raises:
        InputError: The array has no pixels.
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


def load_image(image: Image.Image) -> Image.Image:
    """Load the pixels of a PIL image, and return the image.

    Raises:
        InputError: The file of the image is closed or does not decode.
    """
    try:
        image.load()
    except _UNREADABLE as error:
        raise InputError(
            Status.CORRUPT_IMAGE, f"the PIL image cannot be read: {describe_error(error)}"
        ) from None
    return image


def load_picture(value: ImageValue, max_bytes: int) -> File:
    """Read an image again for display.

    Args:
        value: The value of `ImageSource.picture`.
        max_bytes: Maximum size of a file.

    Raises:
        InputError: The image cannot be read, or its file is too large.
    """
    if isinstance(value, str):
        return Fetcher().fetch(value, "", max_bytes)
    if isinstance(value, Image.Image):
        return value
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else read_array(value)
