import contextlib
import gc
import hashlib
import io
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from ray_app.errors import Status
from ray_app.images import (
    ImageFileFacts,
    ImageRefused,
    decode_image,
    get_decoder_name,
    inspect_bytes,
)
from ray_app.images.facts import MAX_VALUES
from tests.images.outcomes import LIMITS, outcome_of, pixels, refusal
from tests.make import images


@pytest.fixture
def nothing_else(capfd):
    """Warnings that are errors change no outcome, nothing is written on stderr (by libraries in C
    neither), and Pillow stays as it was.
    """
    bomb_limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")
    assert Image.MAX_IMAGE_PIXELS == bomb_limit is not None
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def assert_a_row_holds(facts: ImageFileFacts) -> None:
    for number, most in MAX_VALUES.items():
        assert getattr(facts, number) is None or 0 <= getattr(facts, number) <= most, number
    for word in (facts.mode, facts.decoder, facts.format):
        assert word is None or (word.isprintable() and word.isascii() and len(word) <= 100)


@pytest.mark.parametrize("name", images.SOUND)
def test_image_of_each_format_is_rgb_with_its_facts(name):
    format_name, make = images.SOUND[name]
    data = make()
    image = decode_image(data, LIMITS)
    assert (image.pixels.mode, image.pixels.size) == ("RGB", (96, 64))
    facts = image.facts
    assert (facts.format, facts.width, facts.height) == (format_name, 96, 64)
    assert (facts.frames, facts.orientation, facts.flags) == (1, 1, ())
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert facts.icc is (name == "webp_extended")
    assert facts.decoder == get_decoder_name(format_name)
    assert facts.decoder.startswith(("simplejpeg", "pillow", "pi-heif"))
    assert_a_row_holds(facts)
    assert differs(pixels(data)) < 20, "not the picture that was encoded"
    if format_name != "HEIC":
        with Image.open(io.BytesIO(data)) as plain:
            np.testing.assert_array_equal(pixels(data), np.asarray(plain.convert("RGB")))


def differs(shown, picture=None) -> float:
    picture = images.photo() if picture is None else picture
    return np.abs(np.asarray(shown).astype(int) - np.asarray(picture)).mean()


@pytest.mark.parametrize("name", images.ODD)
def test_odd_image_is_decoded_and_flagged(name, nothing_else):
    flags, make = images.ODD[name]
    image = decode_image(make(), LIMITS)
    assert image.facts.flags == tuple(flags)
    assert image.pixels.mode == "RGB"
    assert image.pixels.size == (image.facts.width, image.facts.height)
    assert_a_row_holds(image.facts)


@pytest.mark.parametrize("name", images.REFUSED)
def test_hazard_is_refused_with_its_status(name, nothing_else):
    status, make = images.REFUSED[name]
    error = refusal(data := make())
    assert error.status == status
    assert error.detail
    assert error.facts.sha256 == hashlib.sha256(data).hexdigest()
    assert error.facts.format == inspect_bytes(data).format
    assert_a_row_holds(error.facts)


@pytest.mark.parametrize(
    "name", ["animated_gif", "animated_png", "animated_webp", "animated_avif", "pages_tiff"]
)
def test_animation_shows_frame_0_and_counts_frames(name):
    image = decode_image(images.ODD[name][1](), LIMITS)
    assert image.facts.frames == 3
    assert differs(image.pixels) < 20


@pytest.mark.parametrize("name", ["grey16_png", "rgb16_png", "grey16_tiff", "grey12_tiff"])
def test_samples_of_more_than_8_bits_are_scaled(name):
    assert pixels(images.ODD[name][1]()).mean() == pytest.approx(127.5, abs=1)


def test_transparent_pixels_are_white():
    for name in ("alpha_png", "alpha_webp", "grey_alpha_png"):
        result = pixels(images.ODD[name][1]())
        assert (result[:, :48] == 255).all()
        assert result[:, 48:].mean() < 200
    result = pixels(images.ODD["palette_alpha_png"][1]())
    assert 0.05 < (result == 255).all(axis=-1).mean() < 0.95


def test_partly_transparent_pixels_are_mixed_with_white():
    data = images.encoded(images.photo().convert("RGBA"), "PNG")
    np.testing.assert_array_equal(pixels(data), np.asarray(images.photo()))
    assert decode_image(data, LIMITS).facts.flags == ("alpha",)
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 51))
    assert pixels(images.encoded(image, "PNG"))[0, 0].tolist() == [204, 224, 244]


def test_cmyk_image_keeps_its_colours_with_a_broken_profile():
    assert differs(pixels(images.cmyk(quality=95))) < 6
    broken = images.cmyk(icc_profile=b"no profile" * 30)
    np.testing.assert_array_equal(pixels(broken), pixels(images.cmyk()))


def test_rgb_profile_is_recorded_and_not_applied():
    data = images.jpeg(icc_profile=images.srgb_profile())
    assert decode_image(data, LIMITS).facts.icc
    np.testing.assert_array_equal(pixels(data), pixels(images.jpeg()))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_is_recorded_and_not_applied(format_name):
    for orientation in range(1, 9):
        image = decode_image(images.oriented(orientation, format_name), LIMITS)
        assert image.facts.orientation == orientation
        assert image.pixels.size == (96, 64)
        assert ("oriented" in image.facts.flags) is (orientation != 1)


@pytest.mark.parametrize("format_name", ["TIFF", "HEIF"])
def test_orientation_that_the_decoder_applies_is_1(format_name):
    image = decode_image(images.oriented(6, format_name), LIMITS)
    assert image.facts.orientation == 1
    assert image.pixels.size == (image.facts.width, image.facts.height) == (64, 96)
    with Image.open(io.BytesIO(images.oriented(6, format_name))) as plain:
        np.testing.assert_array_equal(np.asarray(image.pixels), np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("name", images.SOUND)
def test_file_cut_anywhere_is_truncated_or_whole(name):
    data = images.SOUND[name][1]()
    whole = pixels(data)
    for cut in range(32, len(data), max(len(data) // 37, 1)):
        outcome = outcome_of(data[:cut])
        if isinstance(outcome, ImageRefused):
            assert outcome.status == Status.TRUNCATED_IMAGE, (cut, outcome.detail)
        else:
            shown = np.asarray(outcome.pixels)
            np.testing.assert_array_equal(shown, whole, err_msg=f"padded at {cut}")


def test_refusal_has_the_facts_before_it_and_can_be_pickled():
    facts = refusal(images.lying_jpeg(30_000, 20_000)).facts
    assert (facts.format, facts.width, facts.height, facts.mode) == ("JPEG", 30_000, 20_000, "RGB")
    error = refusal(images.half(images.SOUND["png"][1]))
    assert (error.facts.width, error.facts.height) == (96, 64)
    assert (error.facts.frames, error.facts.orientation) == (1, 1)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.status, copy.detail, copy.facts) == (error.status, error.detail, error.facts)


def test_pixels_have_no_metadata():
    data = images.jpeg(exif=images.exif(6), icc_profile=images.srgb_profile(), comment=b"secret")
    image = decode_image(data, LIMITS).pixels
    again = images.encoded(image, "JPEG")
    assert image.info == {}
    assert b"secret" not in again
    assert b"ICC_PROFILE" not in again
    assert b"Exif" not in again


def test_pixels_of_a_jpeg_outlive_their_decoder():
    """They share the memory that simplejpeg wrote into."""
    image = decode_image(images.jpeg(), LIMITS).pixels
    before = np.array(image)
    gc.collect()
    for _ in range(20):
        np.full((64, 96, 4), 7, np.uint8)
    np.testing.assert_array_equal(np.asarray(image), before)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(image))), before)
    image.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3)


PEAKS = """
import sys
from pathlib import Path
from ray_app.images import *
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
photo, *hazards = [Path(path).read_bytes() for path in sys.argv[1:]]
decode_image(photo, ImageLimits()); before = peak()
for _ in range(30): decode_image(photo, ImageLimits())
print("photo", (peak() - before) // 1024)
for data in hazards:
    try: decode_image(data, ImageLimits())
    except ImageRefused as error: print(error.status, (peak() - before) // 1024)
"""


def test_many_jpegs_and_files_of_400_megapixels_take_no_memory(tmp_path):
    """Pixels of a JPEG lie in memory that is given back: seventy megabytes of them would not be."""
    photo = images.encoded(images.photo(1000, 800), "JPEG")
    hazards = [make(20_000, 20_000) for make in (images.lying_png, images.lying_jpeg)]
    paths = [tmp_path / name for name in "abcd"]
    for path, data in zip(paths, [photo, images.bomb_png(), *hazards], strict=True):
        path.write_bytes(data)
    command, root = [sys.executable, "-c", PEAKS, *map(str, paths)], Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    said = [line.split() for line in done.stdout.splitlines()]
    assert [status for status, _ in said] == ["photo", *[Status.IMAGE_TOO_LARGE] * 3]
    assert int(said[0][1]) < 20
    assert int(said[-1][1]) < 50


def test_images_decode_the_same_in_threads():
    data = [make() for _, make in images.SOUND.values()]

    def decode_all(_) -> list[bytes]:
        return [pixels(each).tobytes() for each in data]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decode_all, range(4))) == [decode_all(0)] * 4


@pytest.mark.parametrize(
    "name",
    ["top_bit_png", "negative_width_bmp", "negative_height_bmp", "wide_bigtiff", "endless_bigtiff"],
)
def test_size_that_no_image_has_is_not_a_fact(name):
    error = refusal(images.REFUSED[name][1]())
    assert error.detail.startswith("the header declares ")
    assert (error.facts.width, error.facts.height) == (None, None)
    assert decode_image(images.endless_apng(), LIMITS).facts.frames is None


def test_refused_file_is_freed_without_a_garbage_collection():
    data = images.encoded(images.photo(64, 48, 1), "JPEG")[:600]
    gc.disable()
    try:
        before = sys.getrefcount(data)
        for _ in range(3):
            with contextlib.suppress(ImageRefused):
                decode_image(data, LIMITS)
        assert sys.getrefcount(data) == before
    finally:
        gc.enable()
