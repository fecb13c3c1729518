"""Every file that intake must let in, flag or refuse, made in code: small, licence-clean, the same
on every machine.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw

from ray_app.errors import Status

Maker = Callable[[], bytes]


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture with edges, gradients and noise, in RGB."""
    y, x = np.mgrid[0:height, 0:width]
    bands = [np.sin(x / (5 + c)) * 50 + np.cos(y / (7 - c)) * 50 + 128 for c in range(3)]
    waves = np.stack(bands, axis=-1)
    noise = np.random.default_rng(seed).normal(0, 8, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """What Pillow (or pillow-heif) writes for an image."""
    if format_name == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def flat(
    level: float, width: int = 96, height: int = 64, *, noise: float = 0, shade: float = 0
) -> Image.Image:
    """One colour, with Gaussian noise and a shade from side to side of so many levels."""
    shades = level - shade * np.linspace(0, 1, width)[None, :, None]
    levels = shades + np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def jpeg(**options: Any) -> bytes:
    return encoded(photo(), "JPEG", **options)


def png(mode: str = "RGB", **options: Any) -> bytes:
    return encoded(photo().convert(mode), "PNG", **options)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


def oriented(orientation: int, format_name: str = "JPEG") -> bytes:
    return encoded(photo(), format_name, exif=exif(orientation))


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def patched(data: bytes, at: int | bytes, new: bytes, offset: int = 0) -> bytes:
    """The file with bytes changed at a place, or so far behind the first `at`."""
    start = offset + (data.index(at) if isinstance(at, bytes) else at)
    return data[:start] + new + data[start + len(new) :]


def patched_after(data: bytes, at: int, new: bytes, times: int = 1) -> bytes:
    """The file with bytes added at a place."""
    return data[:at] + new * times + data[at:]


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of exactly these scanlines (each with its filter byte), with extra chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def texts_named_as_pillows_own() -> bytes:
    """A good picture whose texts have the names under which Pillow keeps facts of its own."""
    data = png()
    texts = [
        chunk(b"iTXt", name + b"\0\0\0\0\0hello")
        for name in (b"exif", b"icc_profile", b"transparency", b"interlace")
    ]
    return data[:33] + b"".join(texts) + data[33:]


def top_bit_png() -> bytes:
    """One bit of a header: a width of 2 147 483 744 pixels."""
    data = patched(png(), 16, b"\x80")
    return patched(data, 29, struct.pack(">I", zlib.crc32(data[12:29])))


def endless_apng() -> bytes:
    """An animation that claims 2 147 483 648 frames."""
    data = frames("PNG")
    at = data.index(b"acTL") + 4
    claim = chunk(b"acTL", struct.pack(">I", 2**31) + data[at + 4 : at + 8])
    return data[: at - 8] + claim + data[at + 12 :]


def big_tiff_of(width: int, height: int) -> bytes:
    """A BigTIFF whose sizes are 64-bit numbers."""
    data = bytearray(encoded(photo(), "TIFF", big_tiff=True))
    start = struct.unpack_from("<Q", data, 8)[0]
    for entry in range(start + 8, start + 8 + 20 * struct.unpack_from("<Q", data, start)[0], 20):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HHQQ", data, entry, tag, 16, 1, width if tag == 256 else height)
    return bytes(data)


def rgb16_png(*extra: bytes) -> bytes:
    ramp = np.linspace(0, 65535, 256).astype(">u2")
    row = b"\0" + np.repeat(ramp, 3).tobytes()
    return raw_png(256, 16, 16, 2, row * 16, *extra)


def grey16_png(*extra: bytes) -> bytes:
    row = b"\0" + np.linspace(0, 65535, 256).astype(">u2").tobytes()
    return raw_png(256, 16, 16, 0, row * 16, *extra)


def grey12_tiff() -> bytes:
    """Twelve-bit samples, packed three bytes to two: a ramp from 0 to 4095."""
    samples = np.linspace(0, 4095, 256).astype(int).reshape(-1, 2)
    row = b"".join(struct.pack(">I", a << 12 | b)[1:] for a, b in samples.tolist())
    return grey_tiff(256, 16, row * 16, {258: 12})


def grey_tiff(width: int, height: int, body: bytes, tags: dict[int, int] | None = None) -> bytes:
    """A grey TIFF of one strip with these tags, or others in their place."""
    plain = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    return tiff_of(sorted((plain | {279: len(body)} | (tags or {})).items()), body)


def tiff_of(tags: list[tuple[int, int]], body: bytes) -> bytes:
    """A TIFF of one directory of LONG tags, behind its body (which starts at byte 8)."""
    body += b"\0" * (len(body) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def camera_raw() -> bytes:
    return grey_tiff(32, 32, photo(32, 32).convert("L").tobytes(), {254: 1, 50706: 1})


def dng(preview: bytes, width: int = 96, height: int = 64) -> bytes:
    """A camera's raw file: 64 × 64 sensor values, and a JPEG of the camera's own beside them."""
    text, raw = b"Maker Model\0", np.arange(64 * 64, dtype="<u2").tobytes()
    blob = text + raw + preview
    sensor_at = 8 + len(blob) + len(blob) % 2
    sensor = [(254, 4, 0), (256, 4, 64), (257, 4, 64), (258, 3, 16), (259, 3, 1), (262, 3, 32803), (273, 4, 8 + len(text)), (277, 3, 1),
              (278, 4, 64), (279, 4, len(raw)), (33421, 3, (2, 2)), (33422, 1, (0, 1, 1, 2))]  # fmt: skip
    size = 2 + 12 * len(sensor) + 4
    first = [(254, 4, 1), (256, 4, width), (257, 4, height), (259, 3, 7), (262, 3, 6), (271, 2, (12, 8)), (272, 2, (12, 8)),
             (273, 4, 8 + len(text) + len(raw)), (277, 3, 3), (278, 4, height), (279, 4, len(preview)), (330, 4, sensor_at),
             (50706, 1, (1, 4, 0, 0)), (50708, 2, (12, 8))]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", sensor_at + size)
    return head + blob + b"\0" * (len(blob) % 2) + _directory(sensor) + _directory(first)


def _directory(tags: list[tuple[int, int, Any]]) -> bytes:
    """Tags of kind 1 (bytes), 2 (text elsewhere: length and place), 3 (16 bits) and 4 (32 bits)."""
    entries = b""
    for tag, kind, value in tags:
        values = value if isinstance(value, tuple) else (value,)
        if kind == 2:
            entries += struct.pack("<HHII", tag, kind, *values)
        else:
            numbers = struct.pack(f"<{len(values)}{' BBHI'[kind]}", *values).ljust(4, b"\0")
            entries += struct.pack("<HHI", tag, kind, len(values)) + numbers
    return struct.pack("<H", len(tags)) + entries + bytes(4)


def wide_pnm(most: int, channels: int = 1) -> bytes:
    """A ramp from black to white in samples of 16 bits, `most` being white."""
    ramp = np.repeat(np.linspace(0, most, 256).astype(">u2"), channels)
    return b"P%d 256 16 %d\n" % (5 if channels == 1 else 6, most) + ramp.tobytes() * 16


def frames(format_name: str, count: int = 3) -> bytes:
    first, *rest = (photo(seed=seed) for seed in range(count))
    return encoded(first, format_name, save_all=True, append_images=rest)


def cmyk(**options: Any) -> bytes:
    return encoded(photo().convert("CMYK"), "JPEG", **options)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that its first three channels are YCC."""
    return patched(cmyk(), b"Adobe", b"\2", 11)


def lab() -> Image.Image:
    return ImageCms.profileToProfile(
        photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


def jpeg_of_kind(marker: int, bits: int) -> bytes:
    """A JPEG whose frame header says so, whatever its scan is."""
    return patched(patched(jpeg(), b"\xff\xc0", bytes([bits]), 4), b"\xff\xc0", bytes([marker]), 1)


def tiff_with(tag: int, value: int) -> bytes:
    """A grey TIFF of 32 × 32 pixels of 32 bits each at most, with one tag changed."""
    return grey_tiff(32, 32, bytes(4096), {tag: value})


def heif_of_kind(kind: bytes) -> bytes:
    """A HEIC whose pictures are said to be of another kind."""
    return encoded(photo(), "HEIF").replace(b"hvc1", kind)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def see_through(mode: str) -> Image.Image:
    """Left half hidden (with colours below), right half opaque."""
    image = photo().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0] * 48 + [255] * 48], 64, axis=0).astype(np.uint8)))
    return image.convert(mode)


def palette_with_transparency() -> bytes:
    return encoded(photo().quantize(16), "PNG", transparency=bytes([0] * 8 + [255] * 8))


def jpeg_and_zip() -> bytes:
    out = io.BytesIO(jpeg())
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("inside.txt", "a polyglot")
    return out.getvalue()


def broken_exif(format_name: str) -> bytes:
    """A good image whose EXIF block is none: its byte order mark is overwritten in place (and
    checksums repaired).
    """
    block = Image.Exif()
    block[271] = "a maker"
    data = patched(encoded(photo(), format_name, exif=block.tobytes()), b"MM\0*", b"XXXX")
    if format_name == "PNG":
        start = data.index(b"eXIf") - 4
        end = start + 12 + struct.unpack_from(">I", data, start)[0]
        data = data[:start] + chunk(b"eXIf", data[start + 8 : end - 4]) + data[end:]
    return data


def tiff_with_bad_orientation() -> bytes:
    return grey_tiff(32, 32, photo(32, 32).convert("L").tobytes(), {274: 77})


@cache
def bomb_png(side: int = 20_000) -> bytes:
    """A real one-bit picture: 400 million pixels in 49 kB."""
    return raw_png(side, side, 1, 0, bytes((1 + side // 8) * side))


def lying_png(width: int, height: int) -> bytes:
    """A header over one row of pixels."""
    return raw_png(width, height, 8, 2, bytes(100))


def lying_jpeg(width: int, height: int) -> bytes:
    return patched(jpeg(), b"\xff\xc0", struct.pack(">HH", height, width), 5)


def lying_gif(width: int, height: int) -> bytes:
    return patched(encoded(photo(), "GIF"), 6, struct.pack("<HH", width, height))


def lying_bmp(width: int, height: int) -> bytes:
    return patched(encoded(photo(), "BMP"), 18, struct.pack("<ii", width, height))


def lying_webp(width: int, height: int) -> bytes:
    """A canvas of this size around a small picture."""
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return patched(encoded(photo(), "WEBP", icc_profile=srgb_profile()), b"VP8X", sides, 12)


def lying_avif(width: int, height: int) -> bytes:
    return patched(encoded(photo(), "AVIF"), b"ispe", struct.pack(">II", width, height), 8)


def lying_tiff(width: int, height: int) -> bytes:
    return grey_tiff(width, height, bytes(1024))


def looping_tiff() -> bytes:
    """Its only directory names itself as the next."""
    data = grey12_tiff()
    return data[:-4] + data[4:8]


def many_frames(frames: int = 500, side: int = 1000) -> bytes:
    """An animation of half a gigapixel; each of its frames is harmless."""
    data = encoded(Image.new("L", (side, side)), "GIF")
    at = data.index(b",", 13 + 3 * 2 ** (1 + (data[10] & 7)))
    return data[:at] + data[at:-1] * frames + b";"


def text_bomb(
    kind: bytes = b"zTXt", start: bytes = b"Comment\0\0", size: int = 5 * 1024**2
) -> bytes:
    """Five megabytes of text (or of colour profile) in five kilobytes."""
    body = start + zlib.compress(bytes(size), 9)
    return raw_png(8, 8, 8, 0, bytes(72), chunk(kind, body))


def cmyk_with_large_profile() -> bytes:
    """Printing colours whose profile, which they need, is over the limit on metadata."""
    return encoded(
        photo().convert("CMYK"), "TIFF", icc_profile=bytes(36) + b"acsp" + bytes(17 * 1024**2)
    )


def broken_png() -> bytes:
    return patched(png(), b"IDAT", bytes(40), 200)


def half(make: Maker) -> bytes:
    data = make()
    return data[: len(data) // 2]


# By Pillow's format name: sound files of each kind that is let in.
SOUND: dict[str, tuple[str, Maker]] = {
    "jpeg": ("JPEG", jpeg),
    "jpeg_progressive": ("JPEG", lambda: jpeg(progressive=True)),
    "png": ("PNG", png),
    "webp": ("WEBP", lambda: encoded(photo(), "WEBP")),
    "webp_lossless": ("WEBP", lambda: encoded(photo(), "WEBP", lossless=True)),
    "webp_extended": ("WEBP", lambda: encoded(photo(), "WEBP", icc_profile=srgb_profile())),
    "gif": ("GIF", lambda: encoded(photo(), "GIF")),
    "bmp": ("BMP", lambda: encoded(photo(), "BMP")),
    "tiff": ("TIFF", lambda: encoded(photo(), "TIFF")),
    "tiff_lzw": ("TIFF", lambda: encoded(photo(), "TIFF", compression="tiff_lzw")),
    "tiff_jpeg": ("TIFF", lambda: encoded(photo(), "TIFF", compression="jpeg")),
    "tiff_big": ("TIFF", lambda: encoded(photo(), "TIFF", big_tiff=True)),
    "avif": ("AVIF", lambda: encoded(photo(), "AVIF")),
    "heic": ("HEIC", lambda: encoded(photo(), "HEIF")),
    "jpeg2000": ("JPEG2000", lambda: encoded(photo(), "JPEG2000")),
    "jpeg2000_codestream": ("JPEG2000", lambda: encoded(photo(), "JPEG2000", no_jp2=True)),
    "ppm": ("PNM", lambda: encoded(photo(), "PPM")),
}

# Scored, with these flags (below each text becomes a tuple).
ODD: dict[str, Any] = {
    **{
        f"animated_{form.lower()}": ("animated", lambda form=form: frames(form))
        for form in ("GIF", "PNG", "WEBP", "AVIF")
    },
    "endless_apng": ("animated", endless_apng),
    "many_frames_gif": ("animated no_content", many_frames),
    "pages_tiff": ("multipage", lambda: frames("TIFF")),
    "two_pictures_jpeg": ("", lambda: frames("MPO", 2)),
    "grey_jpeg": ("grayscale", lambda: encoded(photo().convert("L"), "JPEG")),
    "one_bit_png": ("grayscale", lambda: png("1")),
    "grey16_png": ("grayscale sixteen_bit", grey16_png),
    "grey16_with_hole_png": (
        "alpha grayscale sixteen_bit",
        lambda: grey16_png(chunk(b"tRNS", b"\0\0")),
    ),
    "grey16_tiff": (
        "grayscale sixteen_bit",
        lambda: encoded(Image.open(io.BytesIO(grey16_png())), "TIFF"),
    ),
    "grey12_tiff": ("grayscale sixteen_bit", grey12_tiff),
    "rgb16_png": ("sixteen_bit", rgb16_png),
    "alpha_png": ("alpha", lambda: encoded(see_through("RGBA"), "PNG")),
    "alpha_webp": ("alpha", lambda: encoded(see_through("RGBA"), "WEBP", lossless=True)),
    "alpha_avif": ("alpha", lambda: encoded(see_through("RGBA"), "AVIF")),
    "grey_alpha_png": ("alpha grayscale", lambda: encoded(see_through("LA"), "PNG")),
    "palette_alpha_png": ("alpha", palette_with_transparency),
    "colour_key_png": ("alpha", lambda: png(transparency=(1, 2, 3))),
    "palette_png": ("", lambda: encoded(photo().quantize(64), "PNG")),
    "cmyk_jpeg": ("cmyk", cmyk),
    "ycck_jpeg": ("cmyk", ycck),
    "cmyk_tiff": ("cmyk", lambda: encoded(photo().convert("CMYK"), "TIFF")),
    "cmyk_broken_icc": ("broken_icc cmyk", lambda: cmyk(icc_profile=b"no profile" * 30)),
    "cmyk_icc_of_rgb": ("broken_icc cmyk", lambda: cmyk(icc_profile=srgb_profile())),
    "rgb_icc": ("", lambda: jpeg(icc_profile=srgb_profile())),
    "rgb_broken_icc": ("broken_icc", lambda: jpeg(icc_profile=b"no profile" * 30)),
    "broken_exif_jpeg": ("broken_exif", lambda: broken_exif("JPEG")),
    "broken_exif_png": ("broken_exif", lambda: broken_exif("PNG")),
    "broken_exif_webp": ("broken_exif", lambda: broken_exif("WEBP")),
    "broken_exif_avif": ("broken_exif", lambda: broken_exif("AVIF")),
    "irregular_jpeg": ("irregular_jpeg", lambda: jpeg()[:20] + b"bytes of nobody" + jpeg()[20:]),
    "lab_tiff": ("", lambda: encoded(lab(), "TIFF")),
    "empty_exif_jpeg": ("broken_exif", lambda: jpeg(exif=b"Exif\0\0" + bytes(60_000))),
    "looping_tiff": ("grayscale sixteen_bit", looping_tiff),
    "bad_orientation_tiff": ("grayscale", tiff_with_bad_orientation),
    "trailing_zeros_jpeg": ("trailing_bytes", lambda: jpeg() + bytes(1000)),
    "trailing_png": ("trailing_bytes", lambda: png() + b"after the end"),
    "trailing_webp": ("trailing_bytes", lambda: encoded(photo(), "WEBP") + b"after the end!"),
    "jpeg_and_zip": ("trailing_bytes", jpeg_and_zip),
    "grey_jpeg2000": ("grayscale", lambda: encoded(photo().convert("L"), "JPEG2000")),
    "alpha_jpeg2000": ("alpha", lambda: encoded(see_through("RGBA"), "JPEG2000")),
    "pgm": ("grayscale", lambda: encoded(photo().convert("L"), "PPM")),
    "pbm": ("grayscale", lambda: encoded(photo().convert("1"), "PPM")),
    "pgm_16": ("grayscale sixteen_bit", lambda: wide_pnm(65_535)),
    "pgm_12": ("grayscale sixteen_bit", lambda: wide_pnm(4095)),
    "ppm_16": ("sixteen_bit", lambda: wide_pnm(65_535, 3)),
    "pgm_plain": ("grayscale", lambda: b"P2 # a comment\n3 2\n255\n0 128 255\n255 128 0\n"),
    "pgm_plain_16": ("grayscale sixteen_bit", lambda: b"P2 3 1 65535\n0 32768 65535\n"),
    "raw_preview": ("preview", lambda: dng(jpeg())),
    "one_pixel_png": ("no_content", lambda: raw_png(1, 1, 8, 2, b"\0abc")),
    "one_pixel_jpeg": ("no_content", lambda: encoded(photo(1, 1), "JPEG")),
    "flat_grey_png": ("no_content", lambda: encoded(flat(128), "PNG")),
    "black_frame_jpeg": ("no_content", lambda: encoded(flat(3, noise=5), "JPEG")),
    "blank_page_tiff": ("no_content", lambda: encoded(flat(238, noise=2, shade=12), "TIFF")),
    "empty_cut_out_png": ("alpha no_content", lambda: encoded(Image.new("RGBA", (96, 64)), "PNG")),
    "texts_named_as_pillows_own_png": ("", texts_named_as_pillows_own),
    "text_bomb": ("grayscale no_content", text_bomb),
    "international_text_bomb": (
        "grayscale no_content",
        lambda: text_bomb(b"iTXt", b"Comment\0\1\0\0\0"),
    ),
    "profile_bomb": ("broken_icc grayscale no_content", lambda: text_bomb(b"iCCP")),
    "text_bomb_over_limit": (
        "grayscale metadata_unread no_content",
        lambda: text_bomb(size=17 * 1024**2),
    ),
    "text_flood": (
        "grayscale metadata_unread no_content",
        lambda: raw_png(8, 8, 8, 0, bytes(72), chunk(b"tEXt", b"Comment\0" + b"a" * 17 * 1024**2)),
    ),
    "large_exif_webp": (
        "broken_exif metadata_unread",
        lambda: encoded(photo(), "WEBP", exif=bytes(17 * 1024**2)),
    ),
    "large_xmp_tiff": (
        "metadata_unread",
        lambda: encoded(photo(), "TIFF", tiffinfo={700: bytes(17 * 1024**2)}),
    ),
    "large_xmp_avif": (
        "metadata_unread",
        lambda: encoded(photo(), "AVIF", xmp=bytes(17 * 1024**2)),
    ),
    "large_profile_heic": (
        "metadata_unread",
        lambda: encoded(photo(), "HEIF", icc_profile=bytes(17 * 1024**2)),
    ),
    "large_exif_jpeg": (
        "broken_exif metadata_unread",
        lambda: patched_after(jpeg(), 2, b"\xff\xe1\xff\xf6Exif\0\0" + bytes(65_518), times=270),
    ),
    "broken_checksum_png": (
        "irregular_png",
        lambda: patched_after(png(), 33, chunk(b"tEXt", b"k\0v")[:-1] + b"\0"),
    ),
    "transparent_colour_of_16_bits_png": (
        "alpha sixteen_bit",
        lambda: rgb16_png(chunk(b"tRNS", bytes(6))),
    ),
}

UNSUPPORTED, LARGE = Status.UNSUPPORTED_FORMAT, Status.IMAGE_TOO_LARGE
TRUNCATED, CORRUPT = Status.TRUNCATED_IMAGE, Status.CORRUPT_IMAGE
# Refused, with this status.
REFUSED: dict[str, tuple[Status, Maker]] = {
    "empty": (Status.EMPTY_FILE, bytes),
    "text": (UNSUPPORTED, lambda: b"Not an image, whatever its name says.\n"),
    "svg": (UNSUPPORTED, lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
    "pdf": (UNSUPPORTED, lambda: b"%PDF-1.7\n1 0 obj\n"),
    "icon": (UNSUPPORTED, lambda: encoded(photo(32, 32), "ICO")),
    "text_that_begins_like_pnm": (UNSUPPORTED, lambda: b"P5 is how this text begins\n"),
    "plain_pnm_flood": (UNSUPPORTED, lambda: b"P3 3000 3000 255\n" + b"0 " * 9_000_000),
    "video": (UNSUPPORTED, lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100)),
    "camera_raw": (UNSUPPORTED, camera_raw),
    "float_tiff": (UNSUPPORTED, lambda: encoded(photo().convert("F"), "TIFF")),
    "32_bit_tiff": (UNSUPPORTED, lambda: tiff_with(258, 32)),
    "signed_tiff": (UNSUPPORTED, lambda: tiff_with(339, 2)),
    "webp_in_tiff": (UNSUPPORTED, lambda: tiff_with(259, 50001)),
    "unknown_compression_tiff": (UNSUPPORTED, lambda: tiff_with(259, 12345)),
    "big_endian_bigtiff": (
        UNSUPPORTED,
        lambda: b"MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + bytes(16),
    ),
    "jpeg_ls": (UNSUPPORTED, lambda: jpeg_of_kind(0xF7, 8)),
    "jpeg_of_12_bits": (UNSUPPORTED, lambda: jpeg_of_kind(0xC1, 12)),
    "hierarchical_jpeg": (UNSUPPORTED, lambda: jpeg_of_kind(0xC5, 8)),
    "uncompressed_heif": (UNSUPPORTED, lambda: heif_of_kind(b"unci")),
    "bomb": (LARGE, bomb_png),
    "bomb_below_pillows_limit": (LARGE, lambda: bomb_png(12_000)),
    "lying_png": (LARGE, lambda: lying_png(20_000, 20_000)),
    "lying_jpeg": (LARGE, lambda: lying_jpeg(60_000, 60_000)),
    "lying_gif": (LARGE, lambda: lying_gif(60_000, 60_000)),
    "lying_bmp": (LARGE, lambda: lying_bmp(30_000, 30_000)),
    "lying_webp": (LARGE, lambda: lying_webp(16_000, 16_000)),
    "lying_tiff": (LARGE, lambda: lying_tiff(30_000, 30_000)),
    "lying_avif": (CORRUPT, lambda: lying_avif(30_000, 30_000)),
    "lying_png_within_limits": (TRUNCATED, lambda: lying_png(900, 900)),
    "lying_bmp_within_limits": (TRUNCATED, lambda: lying_bmp(3000, 3000)),
    "lying_tiff_within_limits": (LARGE, lambda: lying_tiff(3000, 3000)),
    "line_of_60000_pixels": (LARGE, lambda: raw_png(60_000, 1, 1, 0, bytes(7501))),
    "long_line": (LARGE, lambda: raw_png(16_000, 1, 1, 0, bytes(2001))),
    "one_colour": (
        LARGE,
        lambda: encoded(Image.new("RGB", (4000, 4000)), "WEBP", lossless=True, method=0),
    ),
    "no_pixels": (CORRUPT, lambda: lying_png(0, 10)),
    "top_bit_png": (CORRUPT, top_bit_png),
    "negative_width_bmp": (CORRUPT, lambda: lying_bmp(-1, 64)),
    "negative_height_bmp": (CORRUPT, lambda: lying_bmp(96, -(2**31))),
    "wide_bigtiff": (CORRUPT, lambda: big_tiff_of(2**40, 64)),
    "endless_bigtiff": (CORRUPT, lambda: big_tiff_of(96, 2**64 - 1)),
    "large_profile_of_cmyk": (Status.METADATA_TOO_LARGE, cmyk_with_large_profile),
    "broken_png": (CORRUPT, broken_png),
    "only_a_signature": (TRUNCATED, lambda: png()[:8]),
    "jpeg_without_its_last_byte": (TRUNCATED, lambda: jpeg()[:-1]),
    **{
        f"half_{name}": (TRUNCATED, lambda make=make: half(make))
        for name, (_, make) in SOUND.items()
    },
}

ODD = {_name: (tuple(_flags.split()), _make) for _name, (_flags, _make) in ODD.items()}
for _kinds in (SOUND, ODD, REFUSED):  # each is made once
    _kinds |= {_name: (_told, cache(_make)) for _name, (_told, _make) in _kinds.items()}


def chart(width: int = 900, height: int = 600) -> Image.Image:
    """White, with filled shapes and lines of writing, as charts and screenshots have."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for number in range(12):
        draw.rectangle(
            [60 * number + 40, height - 40 * number - 60, 60 * number + 80, height - 40],
            fill=(30, 60 + 12 * number, 160),
        )
    for row in range(40, height // 2, 48):
        for left in range(20, width, 24):
            draw.rectangle([left, row, left + 11, row + 16], fill="black")
    return image
