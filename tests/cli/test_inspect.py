"""`touchstone runs explain`, end to end with the detector that is shipped."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ray_app.cli.main import main
from tests.images.factory import encoded, photo

CARD = Path(__file__).resolve().parents[2] / "configs" / "detectors" / "touchstone-tiny.yaml"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.png"
    photo(420, 300).save(path)
    return path


@pytest.fixture(scope="module")
def explained(picture, tmp_path_factory):
    """The folder that one command has filled."""
    out = tmp_path_factory.mktemp("explained") / "new" / "folder"
    assert main(["runs", "explain", str(picture), "--detector", "touchstone-tiny", "--out", str(out), "--grid", "5"]) == 0
    return out


def test_the_map_is_there_as_a_picture_and_as_numbers(explained, picture):
    assert {path.name for path in explained.iterdir()} == {f"touchstone-tiny.{kind}" for kind in ("png", "npy", "json")}
    data = json.loads((explained / "touchstone-tiny.json").read_text())
    cells = np.load(explained / "touchstone-tiny.npy")
    assert cells.shape == (5, 5)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(data["map"], cells)
    assert data["image"] == str(picture)
    assert data["detector"] == "touchstone-tiny"
    assert data["forward_passes"] == 1 + 25 + 20 * 9 + 1
    assert data["seen"] == {"left": 82 / 420, "top": 22 / 300, "right": 338 / 420, "bottom": 278 / 300}
    assert data["deletion"]["curve"][0] == pytest.approx(data["score"])
    assert data["random_deletion"]["lowest"] <= data["random_deletion"]["mean_score"] <= data["random_deletion"]["highest"]
    assert data["demonstration"] is True
    assert data["out_of_range"] is None


def test_the_picture_shows_image_map_and_both_ends_of_the_scale(explained):
    page = np.asarray(Image.open(explained / "touchstone-tiny.png")).astype(int)
    assert page.shape[1] == 1250
    assert page.shape[2] == 3
    bar = page[-270:, 640:1220]  # below the panels
    assert ((bar[..., 0] - bar[..., 2]) > 120).any()
    assert ((bar[..., 2] - bar[..., 0]) > 120).any()


def test_it_says_score_test_and_files_and_takes_a_url(picture, tmp_path, capsys):
    assert main(["runs", "explain", picture.as_uri(), "--detector", "touchstone-tiny", "--out", str(tmp_path), "--grid", "2"]) == 0
    said = capsys.readouterr()
    assert re.match(r"touchstone-tiny: score [+-]\d+\.\d\d \(log-odds of fake\)\n  (Deletion test passed|Not reliable, deletion)", said.out)
    assert str(tmp_path / "touchstone-tiny.png") in said.out
    assert "not for decisions" in said.out
    assert "touchstone-tiny: 186 forward passes" in said.err


def test_every_detector_of_an_ensemble_is_explained_and_json_is_only_json(tmp_path, capsys):
    second = yaml.safe_load(CARD.read_text())
    second |= {"name": "second", "weights": {**second["weights"], "uri": str(CARD.with_suffix(".safetensors"))}}
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(second))
    members = {"name": "two", "title": "Two", "members": [{"detector": "touchstone-tiny"}, {"detector": "second.yaml"}]}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(members))
    (tmp_path / "small.jpg").write_bytes(encoded(photo(50, 40), "JPEG"))
    out = tmp_path / "out"
    assert (
        main(["runs", "explain", f"{tmp_path}/small.jpg", "--ensemble", f"{tmp_path}/two.yaml", "--out", str(out), "--grid", "2", "--json"])
        == 0
    )
    results = json.loads(capsys.readouterr().out)
    assert [result["detector"] for result in results] == ["touchstone-tiny", "second"]
    assert results[0]["score"] == results[1]["score"]
    assert "below the valid range (64 px)" in results[0]["out_of_range"]
    assert all(Path(path).is_file() for result in results for path in result["files"].values())


@pytest.mark.parametrize(
    ("content", "status"), [(None, "source_missing"), (b"", "empty_file"), (b"a text, and no image", "unsupported_format")]
)
def test_an_image_that_cannot_be_read_is_one_line_with_its_status(content, status, tmp_path, capsys):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    assert main(["runs", "explain", str(path), "--detector", "touchstone-tiny", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"touchstone: {path}: {status}: ")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_usage_errors_say_what_to_do(picture, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cases = [
        (["--detector", "touchstone-tiny", "--ensemble", "default", "--out", str(tmp_path / "out")], "cannot be given together"),
        (["--detector", "touchstone-tini", "--out", str(tmp_path / "out")], "did you mean 'touchstone-tiny'?"),
        (["--detector", "touchstone-tiny", "--out", str(tmp_path / "file")], f"--out {tmp_path / 'file'}: File exists"),
        (["--detector", "touchstone-tiny"], "Missing option '--out'"),
    ]
    for arguments, expected in cases:
        assert main(["runs", "explain", str(picture), *arguments]) == 2
        assert expected in capsys.readouterr().err


def test_a_licence_that_has_to_be_accepted_comes_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config.yaml"))
    card = yaml.safe_load(CARD.read_text())
    card |= {"name": "guarded", "licence": "CC-BY-NC-4.0", "terms": "non-commercial"}
    card["weights"]["uri"] = str(CARD.with_suffix(".safetensors"))
    (tmp_path / "guarded.yaml").write_text(yaml.safe_dump(card))
    arguments = ["explain", "/no/such.png", "--detector", str(tmp_path / "guarded.yaml"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 4
    refused = capsys.readouterr().err
    assert "guarded: " in refused
    assert "CC-BY-NC-4.0" in refused
    assert "--accept-licence guarded" in refused
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--accept-licence", str(tmp_path / "guarded.yaml")]) == 2
    assert main(arguments) == 2  # remembered: the image is what is missing now
    assert "source_missing" in capsys.readouterr().err
