"""Pictures of shapes and their words: seeded, told truly, and divided by combination."""

import csv

import numpy as np
import pytest

from ray_app.attribution.prompts import cleaned
from tests.datasets.simulation.shapes import COLOURS, GROUNDS, PLACES, SHAPES, ShapePicture, divided_shapes, draw_shapes, write_shapes


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_lies_where_the_words_say(place, colour):
    pixels = np.asarray(draw_shapes(ShapePicture("square", colour, place, "grey"), seed=4)).astype(int)
    x, y = PLACES[place]
    middles = {
        at: pixels[17 + 30 * at[1] - 3 : 17 + 30 * at[1] + 3, 17 + 30 * at[0] - 3 : 17 + 30 * at[0] + 3].mean((0, 1))
        for at in PLACES.values()
    }
    for at, seen in middles.items():
        wanted = COLOURS[colour] if at == (x, y) else GROUNDS["grey"]
        assert np.abs(seen - wanted).max() < 25


def test_shapes_differ_and_seeds_repeat():
    drawn = [np.asarray(draw_shapes(ShapePicture(shape, "red", "upper left", "white"), seed=1)) for shape in SHAPES]
    assert all((one != other).any() for number, one in enumerate(drawn) for other in drawn[:number])
    again = np.asarray(draw_shapes(ShapePicture(SHAPES[0], "red", "upper left", "white"), seed=1))
    assert (again == drawn[0]).all()
    assert (np.asarray(draw_shapes(ShapePicture(SHAPES[0], "red", "upper left", "white"), seed=2)) != again).any()


def test_held_out_combinations_are_in_no_training_picture_but_all_their_parts_are():
    train, held = divided_shapes(500, 0.2, seed=0)
    assert len(train) == 500
    assert not {one.combination for one in train} & {one.combination for one in held}
    for part in ("shape", "colour", "place", "ground"):
        assert {getattr(one, part) for one in held} <= {getattr(one, part) for one in train}
    assert cleaned(train[0].prompt) == train[0].prompt


def test_a_folder_has_its_list(tmp_path):
    with write_shapes(tmp_path, train=6, held_out=0.05).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "validation"}
    assert all((tmp_path / row["path"]).is_file() for row in rows)
    assert sum(row["split"] == "train" for row in rows) == 6
