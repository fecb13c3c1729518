import numpy as np
import pytest
from PIL import Image

from ray_app.archives import ManifestMember
from ray_app.datasets.mask_pixels import CoverageTally, measure_coverage, to_mask
from ray_app.datasets.masks import MaskReader, may_lead
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits
from ray_app.storage import Fetcher

SIZE = (60, 40)
ALTERED = np.zeros(SIZE[::-1], bool)
ALTERED[10:30, 15:40] = True
GREY = ALTERED.astype(np.uint8)
PHOTOGRAPH = np.random.default_rng(7).integers(0, 256, (*ALTERED.shape, 3), dtype=np.uint8)


def painted(colour):
    return Image.fromarray(np.where(ALTERED[..., None], np.array(colour, np.uint8), np.uint8(0)))


def with_palette(indices, *colours):
    image = Image.fromarray(indices).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([level for colour in colours for level in colour])
    return image


def with_alpha(colours, alpha):
    shown = np.broadcast_to(np.array(colours, np.uint8), (*ALTERED.shape, 3))
    return Image.fromarray(np.dstack([shown, alpha]))


def noisy(level):
    noise = np.random.default_rng(3).integers(0, 30, GREY.shape)
    return (GREY * level + noise).clip(0, 255).astype(np.uint8)


STORED = {
    "0-255": (Image.fromarray(GREY * 255), "png"),
    "0-1": (Image.fromarray(GREY), "png"),
    "1-bit": (Image.fromarray(ALTERED), "png"),
    "0-1-rgb": (Image.fromarray(GREY).convert("RGB"), "bmp"),
    "grey-with-noise": (Image.fromarray(noisy(200)), "png"),
    "jpeg": (Image.fromarray(GREY * 255), "jpg"),
    "jpeg-rgb": (Image.fromarray(GREY * 255).convert("RGB"), "jpg"),
    "16-bit": (Image.fromarray(GREY.astype(np.uint16) * 65535), "png"),
    "16-bit-0-255": (Image.fromarray(GREY.astype(np.uint16) * 255), "png"),
    "16-bit-0-1": (Image.fromarray(GREY.astype(np.uint16)), "tif"),
    "16-bit-pgm": (Image.fromarray(GREY.astype(np.uint16) * 65535), "pgm"),
    "palette-black-white": (with_palette(GREY, (0, 0, 0), (255, 255, 255)), "png"),
    "palette-voc": (with_palette(GREY, (0, 0, 0), (128, 0, 0)), "png"),
    "palette-reordered": (with_palette(1 - GREY, (64, 0, 0), (0, 0, 0)), "png"),
    "palette-of-one-colour": (with_palette(GREY, (0, 0, 0), (0, 0, 0)), "png"),
    "palette-gif": (with_palette(GREY, (0, 0, 0), (0, 128, 0)), "gif"),
    "red-on-black": (painted((255, 0, 0)), "png"),
    "white-on-transparent": (with_alpha((255, 255, 255), GREY * 255), "png"),
    "red-on-transparent": (with_alpha((200, 0, 0), GREY * 120), "png"),
    "black-and-white-with-opaque-alpha": (Image.fromarray(GREY * 255).convert("RGBA"), "png"),
    "black-and-white-in-a-transparent-frame": (
        with_alpha(GREY[..., None] * 255, np.pad(np.full((36, 56), 255, np.uint8), 2)),
        "png",
    ),
    "grey-and-alpha": (
        Image.merge("LA", [Image.new("L", SIZE, 255), Image.fromarray(GREY * 255)]),
        "png",
    ),
}


@pytest.mark.parametrize("stored", STORED)
def test_mask_is_read_however_it_is_stored(tmp_path, stored):
    image, ending = STORED[stored]
    image.save(tmp_path / f"mask.{ending}")
    mask = read("fake", str(tmp_path / f"mask.{ending}"), SIZE)
    assert mask.mode == "L"
    wrong = (np.asarray(mask) != GREY * 255).sum()
    assert wrong <= (8 if ending == "jpg" else 0)


def test_mask_with_a_transparent_key_colour_is_read(tmp_path):
    Image.fromarray(GREY * 255).save(tmp_path / "mask.png", transparency=0)
    assert np.array_equal(np.asarray(read("fake", str(tmp_path / "mask.png"), SIZE)), GREY * 255)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (with_alpha((0, 0, 0), GREY * 255), "black on transparent"),
        (with_alpha((255, 255, 255), 255 - GREY * 255), "white around a transparent hole"),
        (with_alpha(255 - GREY[..., None] * 255, 255 - GREY * 255), "around a transparent hole"),
        (with_alpha(PHOTOGRAPH, 255 - GREY * 255), "many colours"),
        (with_alpha(PHOTOGRAPH // 5 + 60, 255 - GREY * 255), "many colours"),
    ],
    ids=["black", "hole", "black-hole", "photograph", "dim-photograph"],
)
def test_transparent_mask_of_unclear_meaning_is_refused(tmp_path, image, reason):
    image.save(tmp_path / "mask.png")
    with pytest.raises(
        InputError, match=f"its mask: .*{reason}.*save altered pixels as white on black"
    ):
        read("fake", str(tmp_path / "mask.png"), SIZE)


@pytest.mark.parametrize(
    ("pixel", "level"),
    [((127, 127, 128), 0), ((127, 128, 128), 255), ((255, 128, 0), 255), ((255, 127, 0), 0)],
)
def test_altered_means_a_channel_mean_above_half(pixel, level):
    mask = to_mask(Image.new("RGB", (3, 2), pixel), set(), 8)
    assert (mask.mode, mask.size) == ("L", (3, 2))
    assert np.unique(np.asarray(mask)).tolist() == [level]


def test_large_mask_of_one_shape_is_not_taken_for_a_bomb(tmp_path):
    large = np.zeros((3000, 4000), np.uint8)
    large[100:900, 200:1200] = 255
    Image.fromarray(large).save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(read("fake", str(tmp_path / "mask.png"), (4000, 3000))), large)


def test_masks_that_mark_nothing_or_everything_are_counted():
    tally = CoverageTally()
    assert tally.warning() is None
    for number in range(5):
        tally.add(f"/m/{number}.png", measure_coverage(Image.new("L", (2, 2), 0)))
    tally.add("/m/whole.png", measure_coverage(Image.new("L", (2, 2), 255)))
    tally.add("/m/part.png", measure_coverage(Image.fromarray(GREY * 255)))
    warning = tally.warning()
    assert "masks of 5 fakes mark nothing as altered, for example /m/0.png, /m/1.png" in warning
    assert "the mask of 1 fake marks" in warning
    assert "/m/whole.png" in warning
    assert "/m/part.png" not in warning


@pytest.mark.parametrize(
    ("place", "from_here", "from_elsewhere"),
    [
        ("/a/b::c.png", True, False),
        ("s3://b/c::d.png", True, True),
        ("https://h/c::d.png?e=f::g", True, True),
        ("zip::https://h/a.zip", False, False),
        ("simplecache::file:///etc/passwd", False, False),
    ],
)
def test_two_colons_may_be_part_of_a_name(place, from_here, from_elsewhere):
    assert may_lead("/labels.csv", place) is from_here
    assert may_lead("https://other/labels.csv", place) is from_elsewhere


def read(label: str, uri: str | None, size: tuple[int, int] = (7, 4)) -> Image.Image:
    member = ManifestMember(1, "/a.png", None, 0, "", -1, 0, 0, {"label": label, "mask_uri": uri})
    return MaskReader(Fetcher(), ImageLimits()).read(member, size)


@pytest.mark.parametrize(
    ("label", "uri", "level"),
    [("real", None, 0), ("real", "/of/nothing.png", 0), ("fake", None, 255)],
)
def test_a_mask_that_the_label_implies_is_not_read(label, uri, level):
    mask = read(label, uri)
    assert mask.size == (7, 4)
    assert np.unique(np.asarray(mask)).tolist() == [level]


def test_mask_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="unsupported_format: its mask: text, not an image"):
        read("fake", str(tmp_path / "mask.png"))


def test_invalid_mask_reference_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a reference into a table"):
        read("fake", f"{tmp_path}/a.parquet#row=x&column=mask")
