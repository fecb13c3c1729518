"""Read masks, which show the altered pixels of an image (`MaskReader`).

An untrusted archive or label file could name a private file as a mask. `may_name` and `may_lead`
decide which paths and URLs it may name.
"""

from PIL import Image

from ray_app.archives import (
    ManifestMember,
    MemberLocation,
    MemberReader,
    read_referenced,
    uri_list_rows,
)
from ray_app.datasets.mask_pixels import decode_mask
from ray_app.errors import InputError, Status
from ray_app.images import ImageLimits
from ray_app.storage import Fetcher, urls


def may_name(uri: str, member: str | None, mask_uri: str) -> bool:
    """Return whether the metadata of an image may refer to a mask at a path or URL.

    The metadata may come from an untrusted archive, which must not make Touchstone read private
    files. The mask of an image in a table must be in a cell of the same table. The mask of an image
    that is a file may be at any path or URL that `may_lead` allows. An image in a zip or tar may
    not refer to a mask.

    Args:
        uri: URI of the image, or of the container it is in.
        member: Path or row of the image in its container. None if the image is a file.
        mask_uri: Path or URL of the mask.
    """
    if mask_uri.startswith(f"{uri}#row="):
        return True
    return member is None and may_lead(uri, mask_uri)


def may_lead(source: str, uri: str) -> bool:
    """Return whether a list of images or labels may refer to a file at a path or URL.

    The list may be untrusted, and must not make Touchstone read private files. Only a local list
    may name local files. A list may name URLs with its own scheme, and with the schemes that lists
    of images allow (`uri_list_rows.SCHEMES`), such as https. A chain of fsspec, such as
    `zip::https://…`, is not allowed. Local paths, s3, and web addresses may contain `::`.

    Args:
        source: Path or URL of the list.
        uri: The path or URL that the list names.
    """
    scheme, source_scheme = urls.get_scheme(uri), urls.get_scheme(source)
    prefix = uri.partition("://")[0]
    is_chain = not uri.startswith("/") and "::" in (
        prefix if prefix.lower() in uri_list_rows.UNCHAINED else uri
    )
    return not is_chain and (
        scheme == source_scheme or (scheme in uri_list_rows.SCHEMES and scheme != "file")
    )


class MaskReader:
    """Reads the masks of labelled images. Use one reader per process.

    A reader keeps the last table open, because masks of neighbouring rows are often in one table.
    """

    def __init__(self, fetcher: Fetcher, limits: ImageLimits) -> None:
        self._fetcher, self._limits = fetcher, limits
        self._members = MemberReader(fetcher, max_bytes=limits.max_bytes)

    def read(self, member: ManifestMember, size: tuple[int, int]) -> Image.Image:
        """Return the mask of an image as mode L, 255 where the image was altered.

        A real image is altered nowhere, even if there is a mask, and a fake without a mask is
        altered everywhere.

        Args:
            member: The image.
            size: Width and height of the image.

        Raises:
            InputError: The mask cannot be read, or has another size than the image.
        """
        uri = member.input.get("mask_uri")
        if member.input["label"] != "fake":
            return Image.new("L", size, 0)
        if uri is None:
            return Image.new("L", size, 255)
        try:
            mask = decode_mask(self._read_bytes(member, uri), self._limits)
        except InputError as error:
            raise InputError(error.status, f"its mask: {error.detail}") from error
        if mask.size != size:
            reason = (
                f"its mask is {mask.width} × {mask.height} pixels, the image {size[0]} × {size[1]}"
            )
            raise InputError(Status.CORRUPT_IMAGE, reason)
        return mask

    def _read_bytes(self, member: ManifestMember, uri: str) -> bytes:
        location = _locate_in_row(member, uri)
        if location is not None:
            cell = ManifestMember(
                member.image_id,
                member.uri,
                member.member,
                0,
                member.version,
                -1,
                0,
                0,
                {},
                location,
            )
            [(_, data)] = self._members.read([cell])
            if isinstance(data, InputError):
                raise data
            return data
        if "#row=" in uri:
            return read_referenced(uri, self._fetcher)
        return self._fetcher.fetch(uri, "", self._limits.max_bytes)


def _locate_in_row(member: ManifestMember, uri: str) -> MemberLocation | None:
    """Return the location of a mask that is a cell of the image's own row; None for other masks.

    Such a mask is read as images are, without opening the table again.
    """
    if member.place is None or member.place.kind != "parquet":
        return None
    row_uri, separator, column = uri.partition("&column=")
    if not separator or row_uri != f"{member.uri}#row={member.place.offset}":
        return None
    return MemberLocation("parquet", member.place.offset, -1, member.place.group, column)
