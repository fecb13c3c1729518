import pickle

import pytest
from pydantic import ValidationError

from ray_app.errors import InputError, Status
from ray_app.images import ImageLimits, ImageRefused, decode_image
from tests.images import factory

FLAT = factory.encoded(factory.photo(1200, 900), "JPEG", quality=1)


def test_every_limit_states_its_reason():
    for name, field in ImageLimits.model_fields.items():
        assert field.description, name
        assert len(field.description) > 40, name


@pytest.mark.parametrize(
    ("limit", "data", "observed"),
    [
        ({"max_bytes": 1000}, factory.jpeg(), len(factory.jpeg())),
        ({"max_pixels": 6143}, factory.jpeg(), 6144),
        ({"max_side": 95}, factory.jpeg(), 96),
        ({"max_aspect": 1.4}, factory.jpeg(), 1.5),
        ({"max_ratio": 50}, FLAT, 1200 * 900 * 3 / len(FLAT)),
    ],
)
def test_each_limit_refuses_and_names_itself_and_both_numbers(limit, data, observed):
    with pytest.raises(ImageRefused) as caught:
        decode_image(data, ImageLimits(**limit))
    ((named, number),) = limit.items()
    assert caught.value.status == Status.IMAGE_TOO_LARGE
    assert named in caught.value.detail
    assert (caught.value.limit, caught.value.observed) == (number, pytest.approx(observed))


def test_the_numbers_of_a_refusal_outlive_pickling():
    with pytest.raises(ImageRefused) as caught:
        decode_image(factory.jpeg(), ImageLimits(max_side=95))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.limit, copy.observed, copy.detail, copy.facts) == (95, 96, caught.value.detail, caught.value.facts)


def test_a_refusal_that_is_not_about_a_number_has_none():
    with pytest.raises(ImageRefused) as caught:
        decode_image(b"no image at all", ImageLimits())
    assert (caught.value.limit, caught.value.observed) == (None, None)


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
    assert caught.value.limit == 4999
    assert caught.value.observed >= 5000


def test_limits_are_frozen_and_bounded():
    with pytest.raises(ValidationError):
        ImageLimits(max_pixels=0)
    with pytest.raises(ValidationError):
        ImageLimits(max_pixel=1)
