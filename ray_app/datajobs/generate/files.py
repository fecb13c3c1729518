"""How files are stored (`FileStyle`: format, quality, subsampling, size): measured on a sample of real ones, and written so (`encode`).

Where fakes are PNG and reals JPEG, a detector learns the file and not the picture (specs/detectors.md §12; Grommelt et al. 2024,
arXiv 2403.17608). `encode` marks files as generated: IPTC's DigitalSourceType in XMP (Photo Metadata Standard 2023.1).
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from ray_app import archives
from ray_app.datajobs.generate.config import FileEncoding, Like, Size
from ray_app.datasets.index import is_index
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, jpeg, sniff_format
from ray_app.runs import RunDirectory, current_rows
from ray_app.storage import Fetcher, RetryPolicy, Store, strip_secrets, urls

Mark = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
_SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")  # as Pillow numbers them
# IPTC Photo Metadata Standard 2023.1, cv.iptc.org/newscodes/digitalsourcetype; `ray_app.images.provenance` reads it back.
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{mark}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_WRITTEN = ("JPEG", "PNG", "WEBP")
_WEBP_QUALITY = 80  # of a lossy one; no header says it, and this is what cwebp and Pillow write unless they are asked


@dataclass(frozen=True)
class FileStyle:
    """One way to store an image; `size` (width, height) is that of the real file, None where size is not to be alike.

    `quality` 1 … 100 of JPEG and lossy WebP, None of PNG and lossless WebP; `subsampling` of JPEG alone.
    """

    format: str
    quality: int | None = None
    subsampling: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class FileStyles:
    """The styles of a sample of real files, in a fixed order; `left_out` counts files by why they are none."""

    styles: tuple[FileStyle, ...]
    left_out: dict[str, int]

    def kept(self) -> dict[str, Any]:
        """All, as JSON."""
        return {"looks": [asdict(style) for style in self.styles], "left_out": self.left_out}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "FileStyles":
        """The same, read back."""
        styles = (FileStyle(**one | {"size": one["size"] and tuple(one["size"])}) for one in kept["looks"])
        return cls(tuple(styles), kept["left_out"])

    def facts(self) -> dict[str, Any]:
        """Counts, as JSON."""
        formats = dict(Counter(style.format for style in self.styles).most_common())
        qualities = sorted(style.quality for style in self.styles if style.format == "JPEG" and style.quality is not None)
        subsampling = Counter(style.subsampling for style in self.styles if style.subsampling is not None)
        median = qualities[len(qualities) // 2] if qualities else None
        return {"files": len(self.styles), "formats": formats, "jpeg_quality_median": median, "subsampling": dict(subsampling),
                "left_out": self.left_out}  # fmt: skip


def plain_style(encoding: FileEncoding) -> FileStyle:
    """The one style of a job without a real set."""
    quality = encoding.quality or (90 if encoding.format == "JPEG" else None)
    if encoding.format == "PNG":
        return FileStyle("PNG")
    return FileStyle(encoding.format, quality, encoding.subsampling if encoding.format == "JPEG" else None)


def fetcher_for(place: str, retry: RetryPolicy, *, allow_private: bool) -> Fetcher:
    """What reads the files of a run, an index or an archive, as those who listed them were allowed to."""
    found = archives.fetcher_of([place], retry, allow_private=allow_private)
    if place and has_manifest(place):
        found.guard = found.guard.joined(archives.guard_of(Store.open(place)))
    return found


def has_manifest(place: str) -> bool:
    """Whether it is a run or an index."""
    if "::" in place or urls.scheme_of(place) in ("http", "https"):
        return False
    return RunDirectory(Store.open(place)).exists() or is_index(place)


def members_of(place: str, fetcher: Fetcher) -> Iterator[archives.ManifestMember]:
    """Members of a run, an index or an archive."""
    if not has_manifest(place):
        yield from (archives.as_member(item, slot) for slot, item in enumerate(archives.open_source([place], fetcher=fetcher)))
        return
    store = Store.open(place)
    for number in archives.manifests(store):
        if archives.read_complete(store, number):
            for ref in archives.read_blocks(store, number):
                yield from archives.member_rows(archives.read_block(store, ref))


def measure(like: Like, limits: ImageLimits, retry: RetryPolicy, *, allow_private: bool = False) -> FileStyles:
    """Measure up to `like.sample` real files, evenly spread over the set; where it is labelled, its reals alone. `allow_private`: see
    `fetcher_of`.

    Raises ConfigError where there is no file that could be imitated, StorageError when the set is out of reach.
    """
    fetcher = fetcher_for(like.source, retry, allow_private=allow_private)
    labelled = islice(members_of(like.source, fetcher), 1_000_000)
    reals = [member for member in labelled if str(member.input.get("label", "real")).lower() not in ("fake", "1", "true")]
    if len(reals) > like.sample:
        reals = [reals[round(number * (len(reals) - 1) / (like.sample - 1 or 1))] for number in range(like.sample)]
    styles, left_out = [], Counter[str]()
    for _, data in archives.MemberReader(fetcher, max_bytes=limits.max_bytes).read(reals):
        style = data.status.value if isinstance(data, InputError) else style_of(data, size=like.size)
        if isinstance(style, FileStyle):
            styles.append(style)
        else:
            left_out[style] += 1
    if not styles and "::" not in like.source and RunDirectory(Store.open(like.source)).exists():
        styles = list(_row_styles(RunDirectory.open(like.source), like))
    if not styles:
        raise ConfigError(
            f"like: no JPEG, PNG or WebP was read from {strip_secrets(like.source)}", hint=f"left out: {dict(left_out) or 'nothing there'}"
        )
    return FileStyles(tuple(styles), dict(left_out))


def style_of(data: bytes, *, size: bool = False) -> FileStyle | str:
    """How a file is stored, or the reason why nothing like it is written."""
    kind = sniff_format(data)
    if kind not in _WRITTEN:
        return f"{kind or 'no image'} is not written"
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            area = image.size if size else None
            if kind == "JPEG":
                assert isinstance(image, JpegImagePlugin.JpegImageFile)
                number = JpegImagePlugin.get_sampling(image) if len(image.layer) == 3 else -1  # -1: another one, taken for the last
                found = _SUBSAMPLINGS[number]
                return FileStyle(kind, jpeg.jpeg_quality(image.quantization) or 90, found, area)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, Image.DecompressionBombError) as error:
        return f"unreadable header: {type(error).__name__}"
    is_lossy = kind == "WEBP" and b"VP8 " in data[12:] and b"VP8L" not in data[12:64]
    return FileStyle(kind, _WEBP_QUALITY if is_lossy else None, None, area)


def _row_styles(run: RunDirectory, like: Like) -> Iterator[FileStyle]:
    """From a run's rows, when its files are gone. Rows know no subsampling: most JPEGs are 4:2:0."""
    found = (row for row in current_rows(run, status="ok") if row["format"] in _WRITTEN)
    for row in islice(found, like.sample):
        area = (row["width"], row["height"]) if like.size else None
        is_jpeg = row["format"] == "JPEG"
        yield FileStyle(row["format"], (row["quality"] or 90) if is_jpeg else None, "4:2:0" if is_jpeg else None, area)


def resized_like(image: Image.Image, real: Size | None) -> Image.Image:
    """Shrunk and cropped at the centre to a real file's size; never enlarged, which would leave a trace of its own: a larger real
    file lends its shape alone.
    """
    if real is None:
        return image
    scale = min(1.0, image.width / real[0], image.height / real[1])
    return ImageOps.fit(image, (max(1, round(real[0] * scale)), max(1, round(real[1] * scale))), Image.Resampling.LANCZOS)


def encode(image: Image.Image, style: FileStyle, mark: Mark | None) -> bytes:
    """An RGB picture as a file of this style; `mark` None writes none, and never is anything else written beside the pixels."""
    file = io.BytesIO()
    plain = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())  # without whatever a pipeline attached
    plain.save(file, style.format, **_options(style, _XMP.format(mark=mark).encode() if mark else None))
    return file.getvalue()


def _options(style: FileStyle, xmp: bytes | None) -> dict[str, Any]:
    if style.format == "PNG":
        if xmp is None:
            return {}
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return {"pnginfo": info}
    facts: dict[str, Any] = {} if xmp is None else {"xmp": xmp}
    if style.format == "JPEG":
        return facts | {"quality": style.quality or 90, "subsampling": style.subsampling or "4:2:0"}
    return facts | ({"lossless": True} if style.quality is None else {"quality": style.quality})
