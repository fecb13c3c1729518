"""Embeddings beside outputs: of the clean pass, of what has pixels, whatever it was batched with and however blocks are cut."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ray_app.ensembles import ensemble_of
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, DetectorOutputs, StageClock, make_spec
from ray_app.inference.scorer import EnsembleScorer
from ray_app.scoring.identity import kept_embeddings_of
from ray_app.transforms.perturbations import load_perturbations

SPEC = make_spec(ensemble_of(["touchstone-tiny"]), limits=ImageLimits(), precision="fp32")


@pytest.fixture(scope="module")
def keeping():
    return replace(SPEC, features=kept_embeddings_of(SPEC, ["touchstone-tiny"]))


def files(count):
    """Encoded noise, every third of it no image."""
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (300, 300, 3), np.uint8)).save(buffer, "PNG")
        yield b"no image" if number % 3 == 2 else buffer.getvalue()


def read(spec, given):
    decoder = BatchDecoder(spec, StageClock())
    batches = [decoder.decode(list(enumerate(given[start : start + spec.slots]))) for start in range(0, len(given), spec.slots)]
    return EnsembleScorer(spec, StageClock()).score(batches)


def test_members_with_pixels_have_an_embedding_and_scores_stay_what_they_were(keeping):
    given = list(files(7))
    outputs, plain = read(keeping, given), read(SPEC, given)
    vectors = outputs.of("embeddings")["touchstone-tiny"]
    assert vectors.shape == (7, 128)
    usable = np.arange(7) % 3 != 2
    assert np.isfinite(vectors).all(axis=1).tolist() == usable.tolist()
    assert len(np.unique(vectors[usable], axis=0)) == usable.sum()
    np.testing.assert_array_equal(outputs.scores["touchstone-tiny"], plain.scores["touchstone-tiny"])
    assert not plain.of("embeddings")


def test_neither_neighbours_nor_views_change_an_embedding(keeping):
    given = list(files(4))
    together = read(keeping, given).of("embeddings")["touchstone-tiny"]
    alone = np.concatenate([read(keeping, [data]).of("embeddings")["touchstone-tiny"] for data in given])
    np.testing.assert_array_equal(together, alone)  # the one without pixels has a row of nothing by itself, too
    seen = read(replace(keeping, views=load_perturbations(["jpeg:50"])), given)
    assert seen.by_view("scores").keys() == {"jpeg:50"}
    np.testing.assert_array_equal(seen.of("embeddings")["touchstone-tiny"], together)


def test_readings_keep_their_embeddings_when_they_are_put_together(keeping):
    given = list(files(6))
    whole = read(keeping, given)
    parts = [read(keeping, given[:4]), read(keeping, given[4:])]
    joined = DetectorOutputs.chained(parts).joined(DetectorOutputs.clean(scores={"other": np.zeros(6, np.float32)}))
    np.testing.assert_array_equal(joined.of("embeddings")["touchstone-tiny"], whole.of("embeddings")["touchstone-tiny"])
    assert not joined.among(["other"]).of("embeddings")
    assert joined.among(["touchstone-tiny"]).of("embeddings").keys() == {"touchstone-tiny"}
