"""EXIF tags → camera, software, and the texts that generators hide where people write remarks. Never names, never places."""

from dataclasses import dataclass, field

from ray_app.images.provenance.found import MOST_BYTES
from ray_app.images.tiff import Entry, Tiff, TiffError

# CIPA DC-008 (Exif 3.0), tables 4 to 8.
_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE = 270, 271, 272, 305
_EXIF_DIRECTORY, _TAKEN, _USER_COMMENT = 34665, 36867, 37510
_LINE_BYTES = 2000  # of a tag that is one line
_GRAPHS = ("prompt:{", "workflow:{")  # ComfyUI's, in any text tag of a WebP


@dataclass(slots=True)
class ExifStatements:
    """`texts`: what may be a generator's, by PNG's keywords; a person's remark is nobody's business and is read by no one else."""

    make: str = ""
    model: str = ""
    taken: str = ""
    software: str = ""
    texts: dict[str, str] = field(default_factory=dict)


def read_exif(block: bytes) -> ExifStatements:
    """What an EXIF block says; one bad pointer costs what lies behind it, not what was read before."""
    said = ExifStatements()
    try:
        tiff = Tiff(block)
        tags = tiff.first_directory()
        for tag in (_MAKE, _MODEL, _DESCRIPTION):
            if tag in tags:
                _note(said, tag, tiff, tags[tag])
        if _SOFTWARE in tags:
            said.software = _text(tiff.octets(tags[_SOFTWARE], _LINE_BYTES))
        if _EXIF_DIRECTORY in tags:
            _read_inner(said, tiff, tiff.integers(tags[_EXIF_DIRECTORY])[0])
    except (TiffError, LookupError):
        pass
    return said


def _note(said: ExifStatements, tag: int, tiff: Tiff, entry: Entry) -> None:
    text = _text(tiff.octets(entry, MOST_BYTES))
    if text.startswith(_GRAPHS):
        name, _, graph = text.partition(":")
        said.texts[name] = graph
    elif tag == _MAKE:
        said.make = text
    elif tag == _MODEL:
        said.model = text
    else:
        said.texts["Description"] = text


def _read_inner(said: ExifStatements, tiff: Tiff, offset: int) -> None:
    inner = tiff.directory(offset)
    if _TAKEN in inner:
        said.taken = _text(tiff.octets(inner[_TAKEN], 32))
    if _USER_COMMENT in inner:
        said.texts["parameters"] = _comment(tiff.octets(inner[_USER_COMMENT], MOST_BYTES))


def _comment(octets: bytes) -> str:
    code, text = octets[:8], octets[8:]
    if code != b"UNICODE\0":
        return text.decode("utf-8", "replace")
    # The standard leaves the byte order open: in the right one, Latin letters have a zero before or after them.
    return text.decode("utf-16-be" if text[::2].count(0) >= text[1::2].count(0) else "utf-16-le", "replace")


def _text(octets: bytes) -> str:
    return octets.partition(b"\0")[0].decode("utf-8", "replace")
