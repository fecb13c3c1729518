import pytest

from ray_app.archives import Archive
from ray_app.datasets.layouts import make_layout
from tests.datasets.layouts.telling import refused, row, told
from tests.make.published import picture, write_parquet


@pytest.mark.parametrize("names", [["Fake", "Real"], None])
def test_open_deepfake_preview_is_the_other_way_round(tmp_path, names):
    write_parquet(
        tmp_path / "train-00000-of-00001.parquet",
        {"image": [picture(0), picture(1)], "label": [0, 1]},
        labels=names,
    )
    found = told(make_layout("opendeepfake-preview", {}), tmp_path)
    assert [(one.label, subset) for one, subset in found.values()] == [
        ("fake", "fake"),
        ("real", "real"),
    ]


def test_open_deepfake_preview_refuses_swapped_class_names(tmp_path):
    write_parquet(
        tmp_path / "x.parquet", {"image": [picture()], "label": [0]}, labels=["Real", "Fake"]
    )
    [item] = Archive([str(tmp_path)])
    assert "but 'Real' in this table" in refused(make_layout("opendeepfake-preview", {}), item)
    assert "2 is not a label" in refused(make_layout("opendeepfake-preview", {}), row(label=2))
