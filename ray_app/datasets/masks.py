"""The mask of an altered image (`MaskReader`): the one that an index refers to, or the one that the
label implies.

`may_name` and `may_lead` decide which masks an archive may refer to.
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


def may_name(uri: str, member: str | None, place: str) -> bool:
    """Whether the columns of an image may say that its mask lies at `place`: in a cell of its own
    table, or, beside a file that a list names, wherever such a list may lead, which is to local
    files only from local ones. What lies in an archive leads nowhere else.
    """
    if place.startswith(f"{uri}#row="):
        return True
    return member is None and may_lead(uri, place)


def may_lead(source: str, place: str) -> bool:
    """Whether a list or file of labels at `source` may name `place`: what `ListEntries` lets a list
    name, and a store of its own kind.

    A chain of fsspec's (`zip::https://…`) is never one; local paths, s3 and web addresses may have
    `::` in their names.
    """
    scheme, own = urls.scheme_of(place), urls.scheme_of(source)
    named = place.partition("://")[0]
    is_chain = not place.startswith("/") and "::" in (
        named if named.lower() in uri_list_rows.UNCHAINED else place
    )
    return not is_chain and (
        scheme == own or (scheme in uri_list_rows.SCHEMES and scheme != "file")
    )


class MaskReader:
    """Reads masks. One per process: the table that one mask lay in is kept open for the next."""

    def __init__(self, fetcher: Fetcher, limits: ImageLimits) -> None:
        self._fetcher, self._limits = fetcher, limits
        self._members = MemberReader(fetcher, max_bytes=limits.max_bytes)

    def read(self, member: ManifestMember, size: tuple[int, int]) -> Image.Image:
        """The mask of an image of `size` (width, height) as mode L, 255 where it was altered.

        A real is altered nowhere, whatever is kept beside it, and a fake without a mask everywhere
        (specs/localization.md §2.2). Raises InputError where the mask is not readable, or not of
        the image's size.
        """
        uri = member.input.get("mask_uri")
        if member.input["label"] != "fake":
            return Image.new("L", size, 0)
        if uri is None:
            return Image.new("L", size, 255)
        try:
            mask = decode_mask(self._bytes(member, uri), self._limits)
        except InputError as refused:
            raise InputError(refused.status, f"its mask: {refused.detail}") from refused
        if mask.size != size:
            reason = (
                f"its mask is {mask.width} × {mask.height} pixels, the image {size[0]} × {size[1]}"
            )
            raise InputError(Status.CORRUPT_IMAGE, reason)
        return mask

    def _bytes(self, member: ManifestMember, uri: str) -> bytes:
        place = _beside(member, uri)
        if place is not None:
            cell = ManifestMember(
                member.image_id, member.uri, member.member, 0, member.version, -1, 0, 0, {}, place
            )
            [(_, data)] = self._members.read([cell])
            if isinstance(data, InputError):
                raise data
            return data
        if "#row=" in uri:
            return read_referenced(uri, self._fetcher)
        return self._fetcher.fetch(uri, "", self._limits.max_bytes)


def _beside(member: ManifestMember, uri: str) -> MemberLocation | None:
    """Where the mask lies if it is a cell of the image's own row: there it is read as images are,
    without opening the table anew.
    """
    if member.place is None or member.place.kind != "parquet":
        return None
    own, mark, column = uri.partition("&column=")
    if not mark or own != f"{member.uri}#row={member.place.offset}":
        return None
    return MemberLocation("parquet", member.place.offset, -1, member.place.group, column)
