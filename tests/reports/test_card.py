import re

import pytest
import yaml

from ray_app.config import named_configs
from ray_app.detectors import DetectorCard, load_card
from ray_app.reports.card import Here, ZooEntry, card_page, input_words, speed_class, zoo_table

NAMES = list(named_configs("detectors"))
WIDE = 100_000


# A card in which every field is set, every text is its own, and every number is told from the others.
FULL = """
name: full
title: title-a
family: maskclip
architecture: {name: architecture-a, arguments: {argument-a: 9001, deep: {argument-b: [9002, true]}}}
weights: &weights
  uri: uri-a
  unverified: unverified-why
  format: torch
  beside: {beside-a: AAAA, beside-b: null}
  unwrap: [unwrap-a]
  select: select-a
  strip_prefixes: [strip-a]
  prefix: prefix-a
  config: config-a
  obtain: obtain-a
  fitted: true
backbone:
  name: backbone-a
  title: backbone-title
  architecture: {name: backbone-architecture, arguments: {argument-c: 9003}}
  weights: {<<: *weights, uri: backbone-uri, obtain: backbone-obtain}
  licence: backbone-licence
  licence_note: backbone-note
  source: backbone-source
preprocessing:
  resize: {mode: short_side, size: 9004, thumbnail_first: 9005}
  filter: bilinear
  resampler: opencv
  center_crop: 9006
  pad: mirror
  crop_rounding: down
  mean: [0.9007, 0.9008, 0.9009]
  std: [0.901, 0.9011, 0.9012]
output: {labels: [label-real, label-fake], fake_label: label-fake}
calibration: {slope: 1.9013, intercept: -0.9014}
masks: true
own_pool: true
process: {python: python-a, folder: folder-a, limit_s: 9061.5, start_limit_s: 9062.5, peak_bytes: 9063, seconds: 9.064}
replies: true
batch: 3
precision: fp32
precision_note: precision-note
size: {parameters: 9015, tensors: 9016, gmac: 9017}
valid_range: {min_side_px: 9018, max_side_px: 9019, max_megapixels: 90.2, note: range-note}
fragility:
  measured:
    - {perturbation: view-a, steps: steps-a, auc: 0.931, fpr: 0.032, tpr: 0.733, threshold: 9.034, n_real: 9035, n_fake: 9036,
       source: fragility-source, note: fragility-note}
  abstains: {jpeg_quality: {below: 37.5}, graphics: {above: 0.38, what: what-a}}
blind_to: [blind-a]
demonstration: true
licence: licence-a
terms: research-only
licence_note: licence-note
citation: citation-a
source: source-a
training_data:
  {name: data-a, images: data-images, licence: data-licence, source: data-source, generators: [generator-a*, generator-b],
   sources: [source-c], complete: true}
published:
  - {set: set-a, metric: metric-a, value: 0.9021, n: 9022, verified: true, source: figure-source, note: figure-note}
golden:
  - {name: golden-a, sha256: BBBB, probability: 0.9023, tolerance: 0.0024, source: golden-source}
  - {image: formula, width: 902, height: 903, logit: -0.904, tolerance: 0.0025, source: formula-source}
notes: [note-a, note-b]
variants: {variant-a: {preprocessing: {center_crop: 9025}}}
""".replace("AAAA", "a" * 64).replace("BBBB", "b" * 64)


def full_card():
    return DetectorCard.model_validate(yaml.safe_load(FULL))


def leaves(value):
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif value is not None and not isinstance(value, bool) and value != "":
        yield value


def page_of(card, width=WIDE):
    return card_page(card, Here(False, {}), width)


def without_what_is_not_used(card):
    """A filter says nothing where nothing is resized, a padding nothing where nothing is cropped."""
    data = card.model_dump(mode="json")
    preprocessing = data["preprocessing"]
    if preprocessing["resize"]["mode"] == "none":
        del preprocessing["resize"]["mode"], preprocessing["filter"], preprocessing["resampler"]
    if preprocessing["center_crop"] is None:
        del preprocessing["pad"]
    return data


def missing_from(page, card):
    said = " ".join(page.split()).casefold().replace("− ", "-")  # a formula's minus is the number's
    absent = []
    for leaf in leaves(without_what_is_not_used(card)):
        if isinstance(leaf, str):
            ways = [" ".join(leaf.split()), leaf.replace("_", " ")]
        else:
            ways = [str(leaf), f"{leaf:,}", f"{leaf:g}", yaml.safe_dump(leaf).split()[0]]
        if not any(way.casefold() in said for way in ways):
            absent.append(leaf)
    return absent


def unset(model):
    for name in type(model).model_fields:
        value = getattr(model, name)
        if name not in model.model_fields_set:
            yield f"{type(model).__name__}.{name}"
        for item in value if isinstance(value, tuple) else [value]:
            if hasattr(type(item), "model_fields"):
                yield from unset(item)


def test_the_full_card_is_full():
    """So that a field that is added to the card is added here; a card has one of sha256 and unverified, and one way to say fake."""
    assert set(unset(full_card())) == {"Weights.sha256", "Output.fake_index", "Output.sign"}


def test_nothing_of_a_full_card_is_left_out():
    page = page_of(full_card())
    assert missing_from(page, full_card()) == []
    for words in ("do not act on its verdicts", "says where", "too large to share", "full:variant-a", "beside-b, sha256 not known"):
        assert words in page


@pytest.mark.parametrize(("change", "said"), [({"sign": 1}, "(sign 1)"), ({"sign": -1}, "(sign -1)"), ({"fake_index": 0}, "index 0")])
def test_every_way_to_say_fake_is_told(change, said):
    card = full_card()
    assert said in page_of(card.model_copy(update={"output": type(card.output).model_validate(change)}))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_shipped_card_is_left_out_and_a_narrow_page_says_the_same(name):
    card = load_card(name)
    page, narrow = page_of(card), page_of(card, 80)
    assert missing_from(page, card) == []
    assert sorted(narrow.split()) == sorted(page.split())
    for line in narrow.splitlines():
        long_word = any(len(word) > 80 - 40 for word in line.split())
        assert len(line) <= 80 or long_word or re.match(r"  \S.*(yes|no) ", line), line


def test_acceptance_and_places_are_told(tmp_path):
    page = card_page(full_card(), Here(True, {"uri-a": tmp_path / "w.pth", "backbone-uri": None}), WIDE)
    assert re.search(r"accepted\s+yes", page)
    assert str(tmp_path / "w.pth") in page
    assert re.search(r"here\s+missing", page)
    assert "--accept-licence full" in page_of(full_card())


def test_the_table_has_every_detector_with_its_marks_and_variants_below():
    cards = [load_card(name) for name in NAMES]
    variant = ZooEntry(full_card().model_copy(update={"name": "full:variant-a"}), accepted=False, here=False)
    entries = [ZooEntry(card, accepted=False, here=False) for card in cards]
    lines = zoo_table([ZooEntry(full_card(), accepted=False, here=True, variants=(variant,)), *entries], 120).splitlines()
    assert all(len(line) <= 120 for line in lines)
    assert [line.split()[0] for line in lines[1:3]] == ["full", ":variant-a"]
    for card in cards:
        line = next(line for line in lines if line.startswith(f"{card.name} "))
        assert (" !" in line) == (card.terms != "permissive")
        assert line.endswith("missing")
    accepted = zoo_table([ZooEntry(card, accepted=True, here=True) for card in cards], 120)
    assert " ! " not in accepted.split("\n\n")[0]


@pytest.mark.parametrize(("gmac", "speed"), [(4.99, "fast"), (5, "medium"), (50, "slow"), (499, "slow"), (500, "very slow")])
def test_speed_classes(gmac, speed):
    card = full_card()
    assert speed_class(card.model_copy(update={"size": card.size.model_copy(update={"gmac": gmac})})) == speed
    assert speed_class(card.model_copy(update={"size": None})) is None


@pytest.mark.parametrize(
    ("preprocessing", "megapixels", "said"),
    [
        ({"resize": {"mode": "squash", "size": 256}, "center_crop": 224}, None, "224 × 224"),
        ({"resize": {"mode": "none"}}, 25, "native ≤ 25 MP"),
        ({"resize": {"mode": "thumbnail", "size": 1024}}, None, "sides ≤ 1024"),
    ],
)
def test_input_in_words(preprocessing, megapixels, said):
    card = full_card()
    allowed = card.valid_range.model_copy(update={"max_megapixels": megapixels})
    changed = {"preprocessing": type(card.preprocessing).model_validate(preprocessing), "valid_range": allowed}
    assert input_words(card.model_copy(update=changed)) == said
