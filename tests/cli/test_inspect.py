"""`touchstone runs explain`, end to end with the detector that is shipped."""

import json

import numpy as np
import pytest
from PIL import Image

from ray_app.cli.main import main
from tests.images.factory import photo


def test_the_map_is_there_as_a_picture_and_as_numbers_and_the_command_says_what_it_is_worth(tmp_path, capsys):
    picture, out = tmp_path / "photo.png", tmp_path / "new" / "folder"
    photo(420, 300).save(picture)
    assert main(["runs", "explain", picture.as_uri(), "--detector", "touchstone-tiny", "--out", str(out), "--grid", "3"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("touchstone-tiny: score ")
    assert "eletion test passed" in said.out or "Not reliable, deletion" in said.out
    assert "not for decisions" in said.out
    assert {path.name for path in out.iterdir()} == {f"touchstone-tiny.{kind}" for kind in ("png", "npy", "json")}
    data, cells = json.loads((out / "touchstone-tiny.json").read_text()), np.load(out / "touchstone-tiny.npy")
    assert cells.shape == (3, 3)
    np.testing.assert_allclose(data["map"], cells)
    assert data["seen"] == {"left": 82 / 420, "top": 22 / 300, "right": 338 / 420, "bottom": 278 / 300}
    assert data["deletion"]["curve"][0] == pytest.approx(data["score"])
    assert Image.open(out / "touchstone-tiny.png").width == 1250
