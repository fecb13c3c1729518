"""Generators and prompts for what the ensemble calls fake, from embeddings or pixels."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ray_app.detectors import Preprocessing, load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles import Thresholds, build_ensemble
from ray_app.ensembles.card import EnsembleProfile
from ray_app.errors import ConfigError, Status
from ray_app.identification.captioners import build_describer
from ray_app.identification.identifier import Identifier
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, ResourceEstimate, StageClock, judge, make_spec
from ray_app.inference.decision import DetectorOutputs, require_embeddings
from ray_app.inference.ensemble import load_ensemble
from ray_app.transforms.perturbations import load_perturbations
from tests.inference.batches import read, rows_of
from tests.make import images
from tests.make.cards import write_two
from tests.make.networks.tiny_speakers import card_of
from tests.make.profiles import make_identifier, make_retrieval

BAD = 5  # The member that is not an image.
CLASSES = ("sd-1.5", "sdxl", "midjourney-6")
PROMPTS = ("a red fox", "an old harbour at dawn", "a bowl of plums", "two chairs")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Cards of two detectors, and of an identifier and describers on the first or on pixels."""
    folder = tmp_path_factory.mktemp("profile")
    cheap, slow = write_two(folder)
    facts = embedding_facts(load_card(cheap), precision="fp32", resize="exact")
    rng, width = np.random.default_rng(0), facts["width"]
    (folder / "captioner").mkdir()
    card_of(folder / "captioner", "git", beams=1)
    weights, vectors = (rng.normal(size=(len(one), width)) for one in (CLASSES, PROMPTS))
    identifier = make_identifier(folder / "identifier", CLASSES, weights, "cheap", facts)
    retrieval = make_retrieval(folder / "retrieval", vectors, PROMPTS, "cheap", facts)
    return {
        "detectors": [cheap, slow],
        "identifier": str(identifier),
        "retrieval": str(retrieval),
        "captioner": str(folder / "captioner" / "describer.yaml"),
    }


def spec_of(written, describer="retrieval", *, fake_above=0.0, describe="flagged", views=()):
    """Return the spec of an ensemble with this profile, which calls scores above a limit fake."""
    profile = EnsembleProfile(
        identifier=written["identifier"],
        describer=describer and written[describer],
        describe=describe,
    )
    thresholds = Thresholds(real_below=fake_above, fake_above=fake_above)
    update = {"profile": profile, "thresholds": thresholds}
    ensemble = build_ensemble(written["detectors"]).model_copy(update=update)
    return make_spec(ensemble, limits=ImageLimits(), precision="fp32", slots=4, views=views)


@pytest.fixture(scope="module")
def files():
    good = [
        images.encoded(images.photo(side, side, seed=side), "PNG")
        for side in (300, 320, 360, 380, 280, 420, 450, 310)
    ]
    return [*good[:BAD], b"no image", *good[BAD:]]


@pytest.fixture(scope="module")
def middle(written, files):
    """A threshold that splits the images, and their scores."""
    scores = judged(spec_of(written, None), files).decisions.score
    return float(np.nanmedian(scores)), scores


def judged(spec, files):
    outcomes, outputs, judged.counts = read(spec, list(enumerate(files)))
    return judge(spec, outcomes, outputs)


def prompts(scored):
    return [None if one is None else one.text for one in scored.outputs.captions]


@pytest.mark.parametrize("describer", ["retrieval", "captioner"])
def test_only_fakes_are_described_and_decoded_once(written, files, middle, describer):
    threshold, scores = middle
    scored = judged(spec_of(written, describer, fake_above=threshold), files)
    assert judged.counts["read"] == len(files)
    np.testing.assert_array_equal(scored.decisions.score, scores)
    flagged = [verdict == "fake" for verdict in scored.decisions.verdict]
    assert 0 < sum(flagged) < len(files) - 1
    assert [text is not None for text in prompts(scored)] == flagged
    assert judged.counts["described"] == sum(flagged)
    assert judged.counts["seconds"]["describe"] > 0


@pytest.mark.parametrize("describer", ["retrieval", "captioner"])
def test_prompts_of_all_images_are_those_of_the_describer(written, files, describer):
    spec = spec_of(written, describer, describe="all")
    scored = judged(spec, files)
    alone, sees = build_describer(spec.describer), spec.describer.preprocessing
    vectors = scored.outputs.get("embeddings")["cheap"]
    assert scored.outputs.captions[BAD] is None
    for row in set(range(len(files))) - {BAD}:
        given = vectors[row]
        if sees is not None:
            given = sees.prepare(decode_image(files[row], spec.limits).pixels)
        (expected,) = alone.describe(given[None])
        found = scored.outputs.captions[row]
        assert found.text == expected.text
        assert found.likelihood == pytest.approx(expected.likelihood, abs=1e-4)


def test_perturbed_views_are_not_described(written, files, middle):
    views = load_perturbations(["jpeg:50"])
    spec, plain = (
        spec_of(written, "captioner", fake_above=middle[0], views=some) for some in (views, ())
    )
    scored = judged(spec, files)
    assert scored.outputs.by_view("scores")["jpeg:50"].keys() == {"cheap", "slow"}
    assert prompts(scored) == prompts(judged(plain, files))
    batch = BatchDecoder(spec, StageClock()).decode([(0, files[0])])
    assert [len(batch.pixels), *(len(view.pixels) for view in batch.views)] == [3, 2]
    more = (
        ResourceEstimate.from_spec(spec).tensor_bytes
        - ResourceEstimate.from_spec(plain).tensor_bytes
    )
    assert more == sum(3 * math.prod(one.shape) for one in spec.scored_preprocessings)


def test_rows_name_generator_and_prompt(written, files, middle):
    threshold, scores = middle
    spec = spec_of(written, fake_above=threshold)
    scored = judged(spec, files)
    rows = rows_of(scored)
    expected = Identifier(spec.identifier).identify(scored.outputs.get("embeddings")["cheap"])
    for row, code, confidence in zip(rows, expected.codes, expected.confidence, strict=True):
        assert (row["predicted_prompt"] in PROMPTS) == (row["verdict"] == "fake")
        assert (row["prompt_likelihood"] is not None) == (row["verdict"] == "fake")
        if row["status"] == "ok":
            assert row["predicted_generator"] == CLASSES[code] == row["generator_ranking"][0]
            assert row["generator_family"] == ("sd_1.5", "sdxl_1.0", "midjourney")[code]
            assert row["generator_confidence"] == pytest.approx(confidence)
            assert 1 / len(CLASSES) < row["generator_probability"] <= 1
    assert rows[BAD]["status"] == Status.UNSUPPORTED_FORMAT
    told = {
        name: value for name, value in rows[BAD].items() if "generator" in name or "prompt" in name
    }
    assert set(told.values()) == {None}
    np.testing.assert_array_equal(scored.decisions.score, scores)


def test_captions_survive_joining_and_chaining(written, files, middle):
    outputs = judged(spec_of(written, fake_above=middle[0]), files).outputs
    other = DetectorOutputs.clean(scores={"other": np.zeros(len(files), np.float32)})
    captions = outputs.captions
    assert outputs.merge(other).captions == captions == other.merge(outputs).captions
    assert DetectorOutputs.concatenate([outputs] * 2).captions == [*captions, *captions]


def test_library_names_generator_and_prompt(written, files, middle):
    spec = spec_of(written, fake_above=middle[0])
    ensemble = load_ensemble(spec.ensemble, precision="fp32")
    *results, image = ensemble.score([*files, Image.new("RGB", (320, 320))])
    assert image.predicted_generator in CLASSES
    expected = prompts(judged(spec, files))
    assert [result.predicted_prompt for result in results] == expected
    for result in results:
        if result.status is Status.OK:
            assert result.generator_ranking[0] == result.predicted_generator
            assert result.generator_family
            assert result.verdict != "fake" or result.prompt_likelihood <= 1
    for name in (
        "predicted_generator",
        "generator_ranking",
        "predicted_prompt",
        "prompt_likelihood",
    ):
        assert getattr(results[BAD], name) is None
    columns = ensemble({"bytes": np.array(files, object)})
    assert columns["predicted_prompt"].tolist() == expected
    generators = [result.predicted_generator for result in results]
    assert columns["predicted_generator"].tolist() == generators
    missing = [row == BAD for row in range(len(files))]
    assert np.isnan(columns["generator_probability"]).tolist() == missing
    without = [text is None for text in expected]
    assert np.isnan(columns["prompt_likelihood"]).tolist() == without


def test_identifier_of_other_embeddings_is_rejected(written):
    spec = spec_of(written)
    require_embeddings(spec)
    require_embeddings(replace(spec, precision=dict.fromkeys(spec.cards, "bf16"), resize="fast"))
    other_size = spec.cards["cheap"].model_copy(update={"preprocessing": Preprocessing()})
    with pytest.raises(ConfigError, match="preprocessing: fitted on"):
        require_embeddings(replace(spec, cards={**spec.cards, "cheap": other_size}))
    with pytest.raises(ConfigError, match="cheap, which does not score every image"):
        spec_of(written | {"detectors": written["detectors"][1:]}, None)
