import pytest

from ray_app.evaluation.label_words import difference_text, headline
from ray_app.metrics.class_differences import Difference


def difference(name, value, real, fake):
    return Difference(name, 100, 100, abs(real - fake), 0.0, value, real, fake)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (difference("format", "PNG", 0, 1), "All fakes are PNG, and none of the real images."),
        (difference("camera", "none", 0.86, 1), "All fakes name no camera in EXIF, and 86 % of the real images."),
        (difference("icc", "present", 0.4, 0), "40 % of the real images have a colour profile, and none of the fakes."),
        (difference("mode", "L", 0.2, 0.005), "20 % of the real images have L as colour mode, and under 1 % of the fakes."),
        (difference("width", 1024.0, 0.3, 0.9), "90 % of the fakes have a width of at most 1,024 px, and 30 % of the real images."),
    ],
)
def test_a_difference_is_a_sentence(one, said):
    assert difference_text(one) == said


def test_doubts_are_counted_against_what_was_looked_at():
    suspicious = {"count": {"real": 3_000, "fake": 2_000}, "n": 100_000, "why": None}
    found = {"n": 1_000_000, "conflicts": [], "differences": [], "shortcut": {"confounded": False}, "suspicious": suspicious}
    assert headline(found) == "5,000 labels of 100,000 are worth a second look."
    assert headline(found | {"suspicious": suspicious | {"n": 1_000_000}}).startswith("Nothing alarming")
