import numpy as np
import pytest
from PIL import Image

from ray_app.archives import ManifestMember
from ray_app.datasets.masks import MaskReader, may_lead, to_mask
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits
from ray_app.storage import Fetcher


@pytest.mark.parametrize(("pixel", "level"), [((127, 127, 128), 0), ((127, 128, 128), 255), ((255, 128, 0), 255), ((255, 127, 0), 0)])
def test_altered_is_where_the_mean_of_the_channels_is_above_one_half(pixel, level):
    mask = to_mask(Image.new("RGB", (3, 2), pixel))
    assert (mask.mode, mask.size) == ("L", (3, 2))
    assert np.unique(np.asarray(mask)).tolist() == [level]


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
def test_two_colons_are_letters_of_a_name_where_nothing_is_chained(place, from_here, from_elsewhere):
    assert (may_lead("/labels.csv", place), may_lead("https://other/labels.csv", place)) == (from_here, from_elsewhere)


def read(label: str, uri: str | None) -> Image.Image:
    member = ManifestMember(1, "/a.png", None, 0, "", -1, 0, 0, {"label": label, "mask_uri": uri})
    return MaskReader(Fetcher(), ImageLimits()).read(member, (7, 4))


@pytest.mark.parametrize(("label", "uri", "level"), [("real", None, 0), ("real", "/of/nothing.png", 0), ("fake", None, 255)])
def test_a_mask_that_the_label_implies_is_not_read(label, uri, level):
    mask = read(label, uri)
    assert mask.size == (7, 4)
    assert np.unique(np.asarray(mask)).tolist() == [level]


def test_a_mask_that_is_no_image_is_told_of_as_such(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="unsupported_format: its mask: text, not an image"):
        read("fake", str(tmp_path / "mask.png"))


def test_a_reference_that_is_none_is_the_user_s_to_change(tmp_path):
    with pytest.raises(ConfigError, match="not a reference into a table"):
        read("fake", f"{tmp_path}/a.parquet#row=x&column=mask")
