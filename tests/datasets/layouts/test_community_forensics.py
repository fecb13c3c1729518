from ray_app.datasets.labels import prompt_group
from ray_app.datasets.layouts import make_layout
from tests.datasets.layouts.telling import fields, refused, row, told
from tests.make.published import write_files, write_parquet


def test_community_forensics(tmp_path):
    shard = write_parquet(
        tmp_path / "data/CompEval-00003-of-00400.parquet",
        {
            "image_name": ["1.png", "2.png"], "image_data": [b"a", b"b"], "model_name": ["dalle2", "RAISE"],
            "prompt": ["a cat", None], "real_source": [None, "RAISE"], "label": [1, 0], "architecture": ["Commercial", "real"],
        },
    )  # fmt: skip
    found = list(told(make_layout("community-forensics", {}), shard).values())
    assert [
        (one.label, one.generator, one.split, one.group, one.architecture, subset)
        for one, subset in found
    ] == [
        ("fake", "dalle2", "CompEval", prompt_group("A cat"), "Commercial", "CompEval"),
        ("real", "real:RAISE", "CompEval", None, None, "CompEval"),
    ]
    assert "model_name is None" in refused(
        make_layout("community-forensics", {}), row(label=1, model_name=None)
    )


def test_folders_of_community_forensics(tmp_path):
    write_files(tmp_path, "SDXL-lora-7/fake/a.png", "LAION/real/b.png", "index.csv")
    found = told(make_layout("community-forensics-folders", {}), tmp_path, include=["**/*"])
    assert fields(found, "label", "generator") == {
        "a.png": ("fake", "SDXL-lora-7"),
        "b.png": ("real", "real:LAION"),
    }
