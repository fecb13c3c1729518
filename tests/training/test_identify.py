"""A recipe of method identify, from images to an identifier in files, without Ray."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_app.detectors import load_detector
from ray_app.detectors.linear_head import embedding_facts
from ray_app.errors import ConfigError
from ray_app.identification.cards import load_identifier
from ray_app.identification.identifier import Identifier
from ray_app.reports.identification import identifier_lines, identifier_plan_lines
from ray_app.training.run import train
from ray_app.training.run_directory import extract_recipe
from tests.simulation.makers import MAKERS, build_made_set
from tests.training.makers import HELD_OUT, KNOWN, config, trained_here
from tests.training.trainings import config as detector_config

FIT = {"c": 100.0, "abstains": 0.2, "fewest": 5}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return build_made_set(tmp_path_factory.mktemp("makers") / "set", prompts=20, side=64)


@pytest.fixture(scope="module")
def trained(labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, trained_here(config(labels, out, identify=FIT))


def test_identifier_names_images_as_the_training_did(labels, trained):
    """The images are decoded, prepared, and embedded again."""
    out, _ = trained
    card = load_identifier(out / "identifier.yaml")
    assert card.classes == KNOWN
    detector = load_detector(card.detector)
    facts = embedding_facts(detector.card, precision=detector.precision, resize="exact")
    assert card.embedding == json.loads(json.dumps(facts))
    detector.keep_embeddings()
    rows = pq.read_table(out / "scores/test.parquet").slice(0, 8).to_pylist()
    images = [Image.open(row["uri"].removeprefix("file://")).convert("RGB") for row in rows]
    pixels = torch.from_numpy(np.stack([detector.prepare(image) for image in images]))
    parts = [detector.read(detector.normalise(part)) for part in pixels.split(4)]
    said = Identifier(card).identify(np.concatenate([part.embeddings.numpy() for part in parts]))
    names = [card.classes[code] if code >= 0 else None for code in said.codes]
    assert names == [row["predicted_generator"] for row in rows]
    expected = [row["generator_probability"] for row in rows]
    np.testing.assert_allclose(said.probability, expected, atol=1e-4)


def test_nothing_is_fitted_on_held_out_generators(trained):
    out, facts = trained
    assert set(facts["classes"]) == set(KNOWN)
    assert {row["name"] for row in facts["test"]["unknown"]} == set(HELD_OUT)
    assert facts["validation"]["n_unknown"] == 0 == facts["validation"]["n_real"]
    assert facts["test"]["n_real"] > 0
    for split in ("validation", "test"):
        counted = sum(facts[split][f"n_{kind}"] for kind in ("known", "unknown", "real"))
        assert pq.read_metadata(out / f"scores/{split}.parquet").num_rows == counted
    accuracy = facts["test"]["figures"]["accuracy"]
    assert accuracy["value"] > 2 / len(KNOWN)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert facts["open_set"]["n"] == facts["validation"]["n_known"]
    assert facts["unreadable"] == 0
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert all(word in page for word in (*KNOWN, *HELD_OUT, "macro F1"))
    assert f"profile: {{identifier: {out}/identifier.yaml}}" in identifier_lines(facts)[-1]


def test_dry_run_names_classes_and_held_out(labels):
    facts = train(config(labels, identify=FIT), dry_run=True).facts
    first, *lines = identifier_plan_lines(facts)
    assert "a linear head over 6 classes (generator), on embeddings of touchstone-tiny" in first
    assert "held out    shuffle/a, bicubic/a" in lines


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"fewest": 500}, r"too few training images of bilinear/a \(.*each class needs 500"),
        ({"fewest": 500, "rare": "leave-out"}, "two or more classes"),
        ({"held_out": [*HELD_OUT, "shufle/a"]}, "no training image is of shufle/a"),
    ],
)
def test_identify_rejects_too_few_images_or_generators(labels, section, said):
    with pytest.raises(ConfigError, match=said):
        train(config(labels, identify=FIT | section), dry_run=True)


def test_identify_by_family_can_draw_and_name_reals(labels):
    families = {name: name.partition("/")[0] for name in MAKERS}
    section = {"level": "family", "families": families, "reals": True, "most": 6, "fewest": 5}
    facts = train(config(labels, identify=section), dry_run=True).facts
    assert facts["classes"] == ["bilinear", "nearest", "real", "sinc", "transposed"]
    assert facts["splits"]["train"]["known"] == dict.fromkeys(facts["classes"], 6)


def test_recipe_keeps_its_identity_without_the_section(labels):
    assert "identify" not in extract_recipe(detector_config(labels))
    assert extract_recipe(config(labels))["identify"]["held_out"] == list(HELD_OUT)
