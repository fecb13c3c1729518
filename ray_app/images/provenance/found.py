"""What a walker may find in a container: blocks as the container delimits them, within limits. Knows no format, no statement."""

from dataclasses import dataclass, field

MOST_BYTES = 256 * 1024  # of one EXIF block, XMP packet or text: a JPEG segment holds 64 KiB, and no camera writes more
MOST_PACKETS = 2  # XMP: the packet, and its extension
MOST_TEXTS = 32
# C2PA 2.1, §11.1.4.2: the type of the superbox that is a manifest store, in any container.
C2PA_STORE = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"


@dataclass(slots=True)
class Found:
    """Metadata blocks of one file, as the container delimits them; empty where there are none.

    `exif` starts with a TIFF header, `xmp` are packets, `texts` are PNG's and comments by keyword, `manifest_bytes` is the size of the
    C2PA manifest store, 0 = none.
    """

    exif: bytes = b""
    xmp: list[bytes] = field(default_factory=list)
    iptc: bytes = b""
    texts: dict[str, str] = field(default_factory=dict)
    manifest_bytes: int = 0

    def add_exif(self, block: bytes) -> None:
        """An EXIF block, with or without its prefix, which some writers put twice; the first of several counts."""
        self.exif = self.exif or block[:MOST_BYTES].removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")

    def add_xmp(self, packet: bytes) -> None:
        """An XMP packet; one over the limit is not XML any more once it is cut, and is left out."""
        if len(packet) <= MOST_BYTES and len(self.xmp) < MOST_PACKETS:
            self.xmp.append(packet)

    def add_text(self, keyword: str, text: str) -> None:
        """A text; the first of a keyword counts."""
        if len(self.texts) < MOST_TEXTS:
            self.texts.setdefault(keyword, text)

    def add_jumbf(self, start: bytes, size: int) -> None:
        """A JUMBF superbox of `size` bytes by its first 48: counts if it is a C2PA manifest store."""
        header = 16 if start[:4] == b"\0\0\0\1" else 8
        is_store = start[4:8] == b"jumb" and start[header + 4 : header + 8] == b"jumd" and start[header + 8 : header + 24] == C2PA_STORE
        if is_store:
            self.manifest_bytes += size
