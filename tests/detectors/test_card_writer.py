"""How a card is written to a file."""

import yaml

from ray_app.detectors import load_card
from ray_app.detectors.card_writer import describe_backbone, write_card


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
