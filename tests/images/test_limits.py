import pytest
from pydantic import ValidationError

from ray_app.errors import InputError, Status
from ray_app.images import ImageLimits, ImageRefused, decode_image
from tests.images import factory


def test_every_limit_states_its_reason():
    for name, field in ImageLimits.model_fields.items():
        assert field.description, name
        assert len(field.description) > 40, name


@pytest.mark.parametrize(
    ("limit", "data", "named"),
    [
        ({"max_bytes": 1000}, factory.jpeg(), "max_bytes"),
        ({"max_pixels": 6143}, factory.jpeg(), "max_pixels"),
        ({"max_side": 95}, factory.jpeg(), "max_side"),
        ({"max_aspect": 1.4}, factory.jpeg(), "max_aspect"),
        ({"max_ratio": 50}, factory.encoded(factory.photo(1200, 900), "JPEG", quality=1), "max_ratio"),
    ],
)
def test_each_limit_refuses_and_names_itself(limit, data, named):
    with pytest.raises(ImageRefused) as caught:
        decode_image(data, ImageLimits(**limit))
    assert caught.value.status == Status.IMAGE_TOO_LARGE
    assert named in caught.value.detail


def test_what_stands_exactly_at_the_limits_is_let_in():
    limits = ImageLimits(max_bytes=len(factory.jpeg()), max_pixels=6144, max_side=96, max_aspect=1.5)
    assert decode_image(factory.jpeg(), limits).pixels.size == (96, 64)


def test_the_ratio_is_not_asked_of_small_images():
    ImageLimits().check_size(1000, 1000, size_bytes=100)
    with pytest.raises(InputError, match="max_ratio"):
        ImageLimits().check_size(1000, 1001, size_bytes=100)


def test_text_over_the_limit_is_metadata_too_large():
    data = factory.jpeg(comment=b"x" * 5000)
    assert decode_image(data, ImageLimits()).pixels
    with pytest.raises(ImageRefused) as caught:
        decode_image(data, ImageLimits(max_text_bytes=4999))
    assert caught.value.status == Status.METADATA_TOO_LARGE


def test_limits_are_frozen_and_bounded():
    with pytest.raises(ValidationError):
        ImageLimits(max_pixels=0)
    with pytest.raises(ValidationError):
        ImageLimits(max_pixel=1)
