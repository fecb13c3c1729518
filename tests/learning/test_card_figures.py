from ray_app.learning.card_figures import MOST_GENERATORS, card_figures
from tests.learning.made import figures


def test_thousands_of_generators_do_not_fill_a_card():
    many = figures(3, generators=[f"g{index}" for index in range(20)])
    assert len(card_figures(many, "x", "y")) > 40
    many["generators"] |= {f"h{index}": many["generators"]["g0"] for index in range(MOST_GENERATORS)}
    assert not any("g0" in figure.set for figure in card_figures(many, "x", "y"))


def test_masks_have_figures_of_their_own():
    measured = figures(3) | {"pixel_f1": 0.5, "pixel_iou": 0.25, "n": 7}
    found = {figure.metric: figure for figure in card_figures(measured, "x", "y")}
    assert (found["pixel F1"].value, found["pixel F1"].n, found["pixel IoU"].value) == (0.5, 7, 0.25)
