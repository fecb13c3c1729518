import pytest

from ray_app.datasets.layouts import make_layout
from ray_app.errors import ConfigError
from tests.datasets.layouts.telling import fields, told
from tests.make.published import write_files, write_json


def test_imdlbenco_json(tmp_path):
    write_files(tmp_path, "Tp/1.jpg", "Gt/1.png", "Au/2.jpg")
    pairs = [["Tp/1.jpg", "Gt/1.png"], [f"{tmp_path}/Au/2.jpg", "Negative"]]
    pairs.append(["Tp/gone.jpg", "Negative"])
    file = write_json(tmp_path / "CASIA2.json", pairs)
    layout = make_layout("imdlbenco-json", {"file": str(file)})
    found = told(layout, tmp_path)
    assert fields(found, "label", "generator", "mask_uri") == {
        "1.jpg": ("fake", "CASIA2", f"{tmp_path}/Gt/1.png"),
        "2.jpg": ("real", "real:CASIA2", None),
    }
    assert layout.published == {"all": 3}


@pytest.mark.parametrize(
    "content",
    [[["a.jpg"]], [["a.jpg", 1]], {"a": "b"}, [["a.jpg", "m.png"], ["a.jpg", "Negative"]]],
)
def test_imdlbenco_json_refuses(tmp_path, content):
    with pytest.raises(ConfigError, match=r"is not a pair \[image, mask\]|is listed twice"):
        make_layout("imdlbenco-json", {"file": str(write_json(tmp_path / "x.json", content))})


def test_imdlbenco_folders_pair_by_name(tmp_path):
    write_files(tmp_path, "Tp/a.jpg", "Tp/b.jpg", "Gt/b_gt.png", "Gt/a_gt.png", "readme.md")
    arguments = {"mask_suffix": "_gt", "generator": "splice"}
    found = told(make_layout("imdlbenco-folder", arguments), tmp_path)
    assert fields(found, "label", "generator", "mask_uri") == {
        "a.jpg": ("fake", "splice", f"{tmp_path}/Gt/a_gt.png"),
        "b.jpg": ("fake", "splice", f"{tmp_path}/Gt/b_gt.png"),
    }


def test_imdlbenco_folders_that_do_not_pair_are_refused(tmp_path):
    # IMDLBenCo would pair a with 0, b with a, and leave the rest.
    write_files(tmp_path, "Tp/a.jpg", "Tp/b.jpg", "Gt/0.png", "Gt/a.png", "Gt/b.png")
    with pytest.raises(ConfigError, match=r"1 of 3 names do not pair: .*/0 is a mask of no image"):
        told(make_layout("imdlbenco-folder", {}), tmp_path)
    with pytest.raises(ConfigError, match="no images found in a folder named 'Tp'"):
        told(make_layout("imdlbenco-folder", {}), write_files(tmp_path / "other", "a.jpg"))
