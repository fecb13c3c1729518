"""Detector cards: shipped, wrong, in a bucket, and written to a file; the sources that they name."""

import csv
import pickle
import re
from pathlib import Path

import pytest
import yaml

from ray_app.config import config_root, named_configs
from ray_app.detectors import load_card
from ray_app.detectors.card import Output, ValidRange, Weights
from ray_app.detectors.card_writer import describe_backbone, write_card
from ray_app.errors import ConfigError


@pytest.mark.parametrize("name", named_configs("detectors"))
def test_shipped_card_is_complete(name):
    card = load_card(name)
    assert card.name == name
    required = (card.title, card.licence, card.citation, card.source, card.training_data.licence)
    assert all((*required, *(figure.source for figure in card.published)))
    assert hash(card.preprocessing) == hash(load_card(name).preprocessing)
    published = [one for one in card.golden if "JeongsooP/Community-Forensics" in one.source]
    assert all(golden.tolerance <= 0.001 for golden in published)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": {"uri": "hf://a/b@main/w.safetensors", "sha256": "0" * 64}}, "tags can move"),
        ({"weights": {"uri": "a.safetensors"}}, "unverified"),
        ({"weights": {"uri": "a", "sha256": "0" * 64, "unwrapp": []}}, "did you mean 'unwrap'"),
        ({"output": {"sign": 1, "fake_index": 0}}, "exactly one"),
        ({"licence": None}, "licence"),
    ],
)
def test_wrong_card_is_refused_with_file_and_key(tmp_path, change, said):
    data = shipped("detectors", "community-forensics-vits384")
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({**data, **change}))
    with pytest.raises(ConfigError, match=said) as caught:
        load_card(path)
    assert str(path) in caught.value.message
    assert next(iter(change)) in caught.value.message


def test_unknown_name_suggests_a_shipped_one():
    with pytest.raises(ConfigError, match="did you mean 'siglip2-open-deepfake'"):
        load_card("siglip-open-deepfake")


def test_fake_is_found_by_name_among_labels():
    output = Output(fake_label="fake")
    assert output.index_among(("Fake", "Real")) == 0
    assert output.index_among(("real", "FAKE")) == 1
    for labels in ((), ("LABEL_0", "LABEL_1"), ("fake", "Fake")):
        with pytest.raises(ValueError, match="not one of the labels"):
            output.index_among(labels)


def test_valid_range_returns_a_reason():
    allowed = ValidRange(min_side_px=64, max_side_px=1000)
    assert allowed.describe_mismatch(64, 1000) is None
    assert allowed.describe_mismatch(63, 500) == "63 × 500, below the valid range (64 px)"
    assert "above" in allowed.describe_mismatch(64, 1001)


def test_a_card_travels_to_another_process():
    card = load_card("openfake-swinv2-small")
    copy = pickle.loads(pickle.dumps(card))
    assert copy == card
    assert copy.folder == card.folder
    assert isinstance(copy.weights, Weights)


def shipped(kind, name):
    return yaml.safe_load(named_configs(kind)[name].read_text())


@pytest.mark.parametrize("place", ["beside", "config", "backbone"])
def test_card_names_no_file_outside_its_folder(tmp_path, place):
    path = tmp_path / "card.yaml"
    for name in ("../../evil.txt", "/etc/passwd", "..", ".hidden", ""):
        data = shipped("detectors", "unifd")
        if place == "backbone":
            data["backbone"] = shipped("backbones", "openai-clip-vit-l14") | {"name": name}
        else:
            data["weights"][place] = {name: None} if place == "beside" else name
        path.write_text(yaml.safe_dump(data))
        with pytest.raises(ConfigError, match=place):
            load_card(path)


def test_card_in_a_bucket_names_its_files_there(s3):
    data = shipped("detectors", "unifd")
    data["backbone"] = shipped("backbones", "openai-clip-vit-l14")
    data["backbone"]["weights"]["uri"] = "clip.safetensors"
    data["variants"] = {"wide": {"preprocessing": {"center_crop": 448}}}
    place = s3.bucket("cards") + "/made"
    files = {"card.yaml": yaml.safe_dump(data), "list.yaml": "- 1", "empty.yaml": "name: x"}
    for name, content in files.items():
        s3.client().put_object(Bucket="cards", Key=f"made/{name}", Body=content.encode())

    card = pickle.loads(pickle.dumps(load_card(f"{place}/card.yaml:wide")))

    assert (card.name, card.preprocessing.center_crop) == ("unifd:wide", 448)
    assert card.weights.uri == load_card("unifd").weights.uri  # a URL of its own stays
    assert card.backbone.weights.uri == f"{place}/clip.safetensors"
    for name, told in [
        ("none.yaml", "card not found"),
        ("list.yaml", "expected keys and values"),
        ("empty.yaml", "missing"),
    ]:
        with pytest.raises(ConfigError, match=f"^{place}/{name}: .*{told}"):
            load_card(f"{place}/{name}")


def test_card_file_keeps_order_and_text_and_omits_defaults(tmp_path):
    card = load_card("unifd")
    title = "Ü" + " words" * 20
    changed = card.model_copy(update={"name": "mine", "title": title})
    path = tmp_path / "new" / "card.yaml"
    write_card(path, changed, comment="# First.\n")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# First.\nname: mine\ntitle: Ü words")
    assert title in text, "no line is broken before 140 columns"
    assert "calibration" not in text
    assert load_card(path).model_dump() == changed.model_dump()


def test_card_file_can_have_short_lists_in_one_row(tmp_path):
    write_card(str(tmp_path / "card.yaml"), {"b": [1, 2], "a": {"x": [3]}}, is_compact=True)
    assert (tmp_path / "card.yaml").read_text() == "b: [1, 2]\na:\n  x: [3]\n"


def test_backbone_is_a_name_only_if_it_is_the_shipped_one():
    backbone = load_card("unifd").backbone
    assert describe_backbone(backbone) == backbone.name
    other = backbone.model_copy(update={"title": "another"})
    assert describe_backbone(other)["title"] == "another"
    assert yaml.safe_dump(describe_backbone(other))


@pytest.mark.parametrize("card", ["touchstone-photo", "touchstone-photo-detail"])
def test_card_names_every_source_of_training_and_validation(card):
    wanted = sources("sources", "train") | sources("sources", "validation")
    assert set(load_card(card).training_data.sources) == wanted
    assert len(wanted) == 620


@pytest.mark.parametrize("card", ["touchstone-photo-permissive", "touchstone-crop-permissive"])
def test_permissive_card_names_its_sources(card):
    # The list ended there then.
    wanted = sources("sources-permissive", "train") | sources(
        "sources", "validation", last="xzxy_gpt2"
    )
    assert set(load_card(card).training_data.sources) == wanted
    assert len(wanted) == 28


def sources(name, split, last=None):
    with (config_root() / "photos" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    end = len(rows) if last is None else 1 + [row["source"] for row in rows].index(last)
    return {row["source"] for row in rows[:end] if row["split"] == split}


def test_detectors_page_confirms_only_stated_hashes():
    page = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text()
    rows = re.findall(r"^\| (?:bytes|pointer|third party) \| (.+) \|$", page, re.MULTILINE)
    names = re.findall(r"`([^`]+)`", " ".join(rows))
    assert len(rows) == 3
    assert len(set(names)) == len(names) > 15
    assert [name for name in names if not load_card(name).weights.sha256] == []
