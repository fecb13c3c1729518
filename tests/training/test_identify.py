"""A recipe of method identify, from pictures to an identifier in files. No Ray:
tests/training/test_identifying_e2e.py has it.
"""

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
from ray_app.training.run_directory import recipe_of
from tests.simulation.makers import MAKERS, build_made_set
from tests.training.conftest import config as detector_config
from tests.training.makers import HELD_OUT, KNOWN, config, trained_here

FIT = {"c": 100.0, "abstains": 0.2, "fewest": 5}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return build_made_set(tmp_path_factory.mktemp("makers") / "set", prompts=20, side=64)


@pytest.fixture(scope="module")
def trained(labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, trained_here(config(labels, out, identify=FIT))


def test_the_files_name_images_as_scoring_would(labels, trained):
    """The card names an image of the test split, decoded, prepared and embedded anew, as the kept
    names say.
    """
    out, _ = trained
    card = load_identifier(out / "identifier.yaml")
    assert card.classes == KNOWN
    detector = load_detector(card.detector)
    assert card.embedding == json.loads(
        json.dumps(embedding_facts(detector.card, precision=detector.precision, resize="exact"))
    )
    detector.keep_embeddings()
    rows = pq.read_table(out / "scores/test.parquet").slice(0, 8).to_pylist()
    pixels = np.stack(
        [
            detector.prepare(Image.open(row["uri"].removeprefix("file://")).convert("RGB"))
            for row in rows
        ]
    )
    vectors = np.concatenate(
        [
            detector.read(detector.normalise(torch.from_numpy(part))).embeddings.numpy()
            for part in np.split(pixels, 2)
        ]
    )
    said = Identifier(card).identify(vectors)
    assert [card.classes[code] if code >= 0 else None for code in said.codes] == [
        row["predicted_generator"] for row in rows
    ]
    np.testing.assert_allclose(
        said.probability, [row["generator_probability"] for row in rows], atol=1e-4
    )


def test_nothing_is_fitted_on_what_is_held_out(trained):
    out, facts = trained
    assert set(facts["classes"]) == set(KNOWN)
    assert {row["name"] for row in facts["test"]["unknown"]} == set(HELD_OUT)
    assert facts["validation"]["n_unknown"] == 0 == facts["validation"]["n_real"]
    assert facts["test"]["n_real"] > 0
    rows = {
        split: sum(facts[split][f"n_{kind}"] for kind in ("known", "unknown", "real"))
        for split in ("validation", "test")
    }
    assert {
        split: pq.read_metadata(out / f"scores/{split}.parquet").num_rows for split in rows
    } == rows
    known = facts["test"]["figures"]["accuracy"]
    assert known["value"] > 2 / len(KNOWN)
    assert known["low"] < known["value"] < known["high"]
    assert facts["open_set"]["n"] == facts["validation"]["n_known"]
    assert facts["unreadable"] == 0
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert all(words in page for words in (*KNOWN, *HELD_OUT, "macro F1"))
    assert f"profile: {{identifier: {out}/identifier.yaml}}" in identifier_lines(facts)[-1]


def test_a_dry_run_says_what_it_would_do(labels):
    said = identifier_plan_lines(train(config(labels, identify=FIT), dry_run=True).facts)
    assert said[0].endswith(
        "a linear head over 6 classes (generator), on embeddings of touchstone-tiny"
    )
    assert "held out    shuffle/a, bicubic/a" in said


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"fewest": 500}, r"too few training images to tell bilinear/a \(.*500 are needed of each"),
        ({"fewest": 500, "rare": "leave-out"}, "two generators or more"),
        ({"held_out": [*HELD_OUT, "shufle/a"]}, "no training image is of shufle/a"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(labels, section, told):
    with pytest.raises(ConfigError, match=told):
        train(config(labels, identify=FIT | section), dry_run=True)


def test_families_reals_and_a_draw(labels):
    families = {name: name.partition("/")[0] for name in MAKERS}
    planned = train(
        config(
            labels,
            identify={
                "level": "family",
                "families": families,
                "reals": True,
                "most": 6,
                "fewest": 5,
            },
        ),
        dry_run=True,
    ).facts
    assert planned["classes"] == ["bilinear", "nearest", "real", "sinc", "transposed"]
    assert planned["splits"]["train"]["known"] == dict.fromkeys(planned["classes"], 6)


def test_recipes_without_the_section_are_who_they_were(labels):
    assert "identify" not in recipe_of(detector_config(labels))
    assert recipe_of(config(labels))["identify"]["held_out"] == list(HELD_OUT)
