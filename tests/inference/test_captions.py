"""Words for what the ensemble calls fake, after it has spoken: from embeddings or pixels of the
same decode, in one process or several.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles import Thresholds, ensemble_of
from ray_app.ensembles.card import EnsembleProfile
from ray_app.errors import ConfigError, Status
from ray_app.identification.captioners import build_describer
from ray_app.identification.identifier import Identifier
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, ResourceEstimate, StageClock, judge, make_spec
from ray_app.inference.decision import DetectorOutputs, require_embeddings
from ray_app.inference.ensemble import load_ensemble
from ray_app.transforms.perturbations import load_perturbations
from tests.identification.made import make_identifier, make_retrieval
from tests.identification.tiny_speakers import card_of
from tests.images import factory
from tests.inference.batches import read, rows_of
from tests.inference.two_detectors import write_two

BAD = 5  # a member that is no image
CLASSES = ("sd-1.5", "sdxl", "midjourney-6")
PROMPTS = ("a red fox", "an old harbour at dawn", "a bowl of plums", "two chairs")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Cards of two detectors, an identifier and describers that read the first one's embeddings, or
    pixels of their own size.
    """
    folder = tmp_path_factory.mktemp("profile")
    cheap, slow = write_two(folder)
    facts = embedding_facts(load_card(cheap), precision="fp32", resize="exact")
    rng, width = np.random.default_rng(0), facts["width"]
    captioner = folder / "captioner"
    captioner.mkdir()
    card_of(captioner, "git", beams=1)
    return {
        "detectors": [cheap, slow],
        "identifier": str(
            make_identifier(
                folder / "identifier",
                CLASSES,
                rng.normal(size=(len(CLASSES), width)),
                "cheap",
                facts,
            )
        ),
        "retrieval": str(
            make_retrieval(
                folder / "retrieval",
                rng.normal(size=(len(PROMPTS), width)),
                PROMPTS,
                "cheap",
                facts,
            )
        ),
        "captioner": str(captioner / "describer.yaml"),
    }


def spec_of(
    written,
    describer="retrieval",
    *,
    fake_above=0.0,
    describe="flagged",
    views=(),
    detectors=2,
    **changes,
):
    """The spec of an ensemble with such a profile; verdicts are fake above a score."""
    profile = EnsembleProfile(
        identifier=written["identifier"],
        describer=describer and written[describer],
        describe=describe,
    )
    thresholds = Thresholds(real_below=fake_above, fake_above=fake_above)
    ensemble = ensemble_of(written["detectors"][:detectors]).model_copy(
        update={"profile": profile, "thresholds": thresholds} | changes
    )
    return make_spec(ensemble, limits=ImageLimits(), precision="fp32", slots=4, views=views)


@pytest.fixture(scope="module")
def files():
    good = [
        factory.encoded(factory.photo(side, side, seed=side), "PNG")
        for side in (300, 320, 360, 380, 280, 420, 450, 310)
    ]
    return [*good[:BAD], b"no image", *good[BAD:]]


@pytest.fixture(scope="module")
def middle(written, files):
    """A threshold that splits the images, and their scores."""
    scores = judged(spec_of(written, None), files).decisions.score
    return float(np.nanmedian(scores)), scores


def judged(spec, files, **options):
    outcomes, outputs, judged.counts = read(spec, list(enumerate(files)), **options)
    return judge(spec, outcomes, outputs)


def texts(scored):
    return [None if one is None else one.text for one in scored.outputs.captions]


@pytest.mark.parametrize("describer", ["retrieval", "captioner"])
def test_words_are_for_what_is_called_fake_alone_and_every_image_is_decoded_once(
    written, files, middle, describer
):
    threshold, scores = middle
    spec = spec_of(written, describer, fake_above=threshold)
    scored = judged(spec, files)
    assert judged.counts["read"] == len(files)
    np.testing.assert_array_equal(scored.decisions.score, scores)
    flagged = [verdict == "fake" for verdict in scored.decisions.verdict]
    assert 0 < sum(flagged) < len(files) - 1
    assert [text is not None for text in texts(scored)] == flagged
    assert judged.counts["described"] == sum(flagged)
    assert judged.counts["seconds"]["describe"] > 0


@pytest.mark.parametrize("describer", ["retrieval", "captioner"])
def test_asked_for_all_everything_with_pixels_has_the_words_it_has_by_itself(
    written, files, describer
):
    spec = spec_of(written, describer, describe="all")
    scored = judged(spec, files)
    alone = build_describer(spec.describer)
    for row, file in enumerate(files):
        if row == BAD:
            assert scored.outputs.captions[row] is None
            continue
        sees = spec.describer.preprocessing
        vector = scored.outputs.of("embeddings")["cheap"][row]
        given = (
            vector
            if sees is None
            else sees.prepare(decode_image(file, spec.limits).pixels, "exact")
        )
        (wanted,) = alone.describe(given[None])
        assert scored.outputs.captions[row].text == wanted.text
        assert scored.outputs.captions[row].likelihood == pytest.approx(wanted.likelihood, abs=1e-4)


def test_perturbed_views_have_no_words_and_cost_the_describer_no_tensor(written, files, middle):
    views = load_perturbations(["jpeg:50"])
    spec, plain = (
        spec_of(written, "captioner", fake_above=middle[0], views=some) for some in (views, ())
    )
    scored = judged(spec, files)
    assert scored.outputs.by_view("scores")["jpeg:50"].keys() == {"cheap", "slow"}
    assert texts(scored) == texts(judged(plain, files))
    batch = BatchDecoder(spec, StageClock()).decode([(0, files[0])])
    assert [len(batch.pixels), *(len(view.pixels) for view in batch.views)] == [3, 2]
    more = ResourceEstimate.of(spec).tensor_bytes - ResourceEstimate.of(plain).tensor_bytes
    assert more == sum(3 * math.prod(one.shape) for one in spec.scored_preprocessings)


def test_rows_name_a_generator_and_words_and_change_no_score(written, files, middle):
    threshold, scores = middle
    spec = spec_of(written, fake_above=threshold)
    scored = judged(spec, files)
    rows = rows_of(scored)
    wanted = Identifier(spec.identifier).identify(scored.outputs.of("embeddings")["cheap"])
    for row, code, confidence in zip(rows, wanted.codes, wanted.confidence, strict=True):
        assert (row["predicted_prompt"] in PROMPTS) == (row["verdict"] == "fake")
        assert (row["prompt_likelihood"] is not None) == (row["verdict"] == "fake")
        if row["status"] == "ok":
            assert row["predicted_generator"] == CLASSES[code] == row["generator_ranking"][0]
            assert row["generator_family"] == ("sd_1.5", "sdxl_1.0", "midjourney")[code]
            assert row["generator_confidence"] == pytest.approx(confidence)
            assert 1 / len(CLASSES) < row["generator_probability"] <= 1
    assert rows[BAD]["status"] == Status.UNSUPPORTED_FORMAT
    names = (
        "predicted_generator",
        "generator_family",
        "generator_confidence",
        "generator_probability",
        "generator_ranking",
    )
    assert [rows[BAD][name] for name in (*names, "predicted_prompt")] == [None] * 6
    np.testing.assert_array_equal(scored.decisions.score, scores)
    other = DetectorOutputs.clean(scores={"other": np.zeros(len(files), np.float32)})
    said = scored.outputs.captions
    assert scored.outputs.joined(other).captions == said == other.joined(scored.outputs).captions
    assert DetectorOutputs.chained([scored.outputs] * 2).captions == [*said, *said]


def test_the_library_tells_names_and_words(written, files, middle, tmp_path):
    spec = spec_of(written, fake_above=middle[0])
    ensemble = load_ensemble(spec.ensemble, precision="fp32")
    results = list(ensemble.score([*files, Image.new("RGB", (320, 320))]))
    wanted = judged(spec, files)
    assert [result.predicted_prompt for result in results[:-1]] == texts(wanted)
    good = [result for result in results if result.status is Status.OK]
    assert all(
        result.generator_ranking[0] == result.predicted_generator and result.generator_family
        for result in good
    )
    assert all(result.prompt_likelihood <= 1 for result in good if result.verdict == "fake")
    bad = results[BAD]
    assert (
        bad.predicted_generator,
        bad.generator_ranking,
        bad.predicted_prompt,
        bad.prompt_likelihood,
    ) == (None,) * 4
    columns = ensemble({"bytes": np.array(files, object)})
    assert columns["predicted_prompt"].tolist() == texts(wanted)
    assert columns["predicted_generator"].tolist() == [
        result.predicted_generator for result in results[:-1]
    ]
    assert np.isnan(columns["generator_probability"]).tolist() == [
        row == BAD for row in range(len(files))
    ]
    assert np.isnan(columns["prompt_likelihood"]).tolist() == [
        text is None for text in texts(wanted)
    ]


def test_what_was_fitted_on_other_embeddings_or_on_those_of_a_detector_that_is_not_asked_is_refused(
    written,
):
    spec = spec_of(written)
    require_embeddings(spec)
    require_embeddings(replace(spec, precision=dict.fromkeys(spec.cards, "bf16")))
    with pytest.raises(
        ConfigError,
        match=r"named was fitted on other embeddings of cheap: resize: fitted on exact, here fast",
    ):
        require_embeddings(replace(spec, resize="fast"))
    with pytest.raises(
        ConfigError,
        match="named reads embeddings of cheap, which does not look at every image here",
    ):
        spec_of(written | {"detectors": written["detectors"][1:]}, None)
