import pytest

from ray_app.archives import Archive
from ray_app.datasets.layouts import make_layout
from ray_app.errors import ConfigError
from tests.datasets.layouts.telling import fields, refused, row, told
from tests.make.published import picture, write_files, write_parquet, write_zip


def test_openfake_on_the_hub(tmp_path):
    common = {"image": [picture(number) for number in range(3)]}
    common |= {"prompt": ["A dog", "a dog", None], "label": ["fake", "real", "fake"]}
    common["model"] = ["flux.1-dev", "real", "sd-3.5"]
    more = {"type": ["Base", "real", "LoRA"], "release_date": [None, None, "2025"]}
    v1 = write_parquet(tmp_path / "data/test-00000-of-00002.parquet", common)
    v2 = write_parquet(tmp_path / "core/validation-00001-of-00009.parquet", common | more)
    first = list(told(make_layout("openfake", {"version": "v1"}), v1).values())
    assert [(one.label, one.generator, one.split, subset) for one, subset in first] == [
        ("fake", "flux.1-dev", "test", "default/test"),
        ("real", "real", "test", "default/test"),
        ("fake", "sd-3.5", "test", "default/test"),
    ]
    assert first[0][0].group == first[1][0].group is not None
    assert first[2][0].group is None
    second = told(make_layout("openfake", {"version": "v2"}), v2).values()
    assert [subset for _, subset in second] == ["core/validation"] * 3


def test_openfake_in_the_wild_names_no_models():
    layout, places = (
        make_layout("openfake", {"version": "v2"}),
        ("/of/reddit/test-00003-of-00005.parquet", "/of/core/test-00003-of-00013.parquet"),
    )
    found = [layout.labels(row(places[0], label=label, model=model)).generator for label, model in
             (("fake", None), ("fake", "reddit"), ("real", None), ("real", "reddit"))]  # fmt: skip
    assert found == ["reddit", "reddit", "real:reddit", "real:reddit"]
    assert "its column 'model' is None" in refused(layout, row(places[1], label="fake", model=None))


def test_openfake_labels_of_either_version_and_no_unknown_one():
    layout = make_layout("openfake", {})
    for value in ("full_synthetic", "Tampered", 1):
        assert layout.labels(row(label=value, model="m")).label == "fake"
    for value in (0, "REAL"):
        assert layout.labels(row(label=value, model="real")).label == "real"
    assert "'unsure' is not a label" in refused(layout, row(label="unsure", model="m"))
    assert "its column 'model' is 'real'" in refused(layout, row(label="fake", model="real"))


def test_openfake_label_file_of_version_1(tmp_path):
    write_files(tmp_path, "images/real/a.jpg", "images/flux/a.jpg", "images/flux/unlisted.jpg")
    csv = tmp_path / "images/labels.csv"
    csv.write_text("filename,typ\na.jpg,real\na.jpg,flux\ngone.jpg,flux\n")
    layout = make_layout("openfake-csv", {"file": str(csv)})
    found = {item.uri: layout.labels(item) for item in Archive([str(tmp_path / "images")])}
    generators = {
        uri.removeprefix(f"{tmp_path}/images/"): labels.generator
        for uri, labels in found.items()
        if labels
    }
    assert generators == {"flux/a.jpg": "flux", "real/a.jpg": "real"}
    assert layout.published == {"all": 3}


def test_openfake_split_file_of_version_2_as_the_source(tmp_path):
    write_files(tmp_path, "001999999.jpg", "pexels-7.jpg", "b.png")
    (tmp_path / "test.csv").write_text(
        "file_name,prompt,label,model,type,release_date\n"
        "001999999.jpg,,real,pexels,real,\npexels-7.jpg,,real,pexels,real,\nb.png,a dog,synthetic,veo-3,Base,2025-05\n"
    )
    found = told(make_layout("openfake-csv", {"split": "test"}), tmp_path / "test.csv")
    # The number of a row of version 1 falls among those that the rule takes for pexels.
    assert fields(found, "generator") == {
        "001999999.jpg": ("real",),
        "pexels-7.jpg": ("real:pexels",),
        "b.png": ("veo-3",),
    }
    assert {subset for _, subset in found.values()} == {"test"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,typ\na.jpg,\n", "row 1: the column 'typ' is empty"),
        ("filename,kind\na.jpg,real\n", "neither a column 'typ' nor 'label'"),
        ("filename,typ\na.jpg\n", "Expected 2 columns, got 1"),
        ("file_name,label,model\na.jpg,fake,m\na.jpg,real,real\n", "is listed twice"),
        ("file_name,label,model\na.jpg,none,m\n", "'none' is not a label"),
    ],
)
def test_openfake_invalid_label_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_layout("openfake-csv", {"file": str(tmp_path / "x.csv")})


def test_openfake_out_of_distribution(tmp_path):
    layout = make_layout("openfake-ood", {"generator": "imagen-3"})
    archive = write_zip(tmp_path / "imagen3.zip", "imagen3/1.png", "imagen3/2.png")
    write_files(tmp_path / "sd21", "fake/1.png", "captions.txt", "real/2.png")
    assert {one.generator for one, _ in told(layout, archive).values()} == {"imagen-3"}
    with pytest.raises(ConfigError, match="this set has only fakes"):
        told(layout, tmp_path / "sd21")
    assert list(told(layout, tmp_path / "sd21", exclude=["real/**"])) == ["1.png"]
