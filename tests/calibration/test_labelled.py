import numpy as np
import pytest

from tests.calibration.drawn import drawn, labelled_of


@pytest.mark.parametrize("mask", [False, True])
def test_images_are_taken_with_all_that_is_known_of_them(mask):
    images = drawn(6, 4)
    places = np.array([1, 4, 8])
    taken = images.take(np.isin(np.arange(10), places) if mask else places)
    assert len(taken) == 3
    assert taken.image_id.tolist() == [1, 4, 8]
    assert taken.sha256 == [images.sha256[place] for place in places]
    assert taken.fake.tolist() == [False, False, True]
    assert taken.generator == [None, None, images.generator[8]]
    assert taken.raw.tolist() == images.raw[places].tolist()
    assert taken.detectors == ("coarse", "fine")
    assert taken.raw.shape == (3, 2)


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="source has 1 rows, and there are 2 images"):
        labelled_of([True, False], source=["one"])
    with pytest.raises(ValueError, match="scores of a has 3 rows"):
        labelled_of([True, False], {"a": np.zeros(3, np.float32)})
