"""Embeddings beside outputs: of the clean pass, of what has pixels, whatever it was batched with and however blocks are cut."""

from dataclasses import replace

import numpy as np
import pytest

from ray_app.ensembles import ensemble_of
from ray_app.images import ImageLimits
from ray_app.inference import DetectorOutputs, StageClock, make_spec
from ray_app.inference.scorer import EnsembleScorer
from ray_app.scoring.identity import kept_embeddings_of
from ray_app.transforms.perturbations import load_perturbations
from tests.inference.batches import batches, noise

SPEC = make_spec(ensemble_of(["touchstone-tiny"]), limits=ImageLimits(), precision="fp32")
FILES = [b"no image" if number % 3 == 2 else file for number, file in enumerate(noise(*[(300, 300)] * 7))]


@pytest.fixture(scope="module")
def keeping():
    return replace(SPEC, features=kept_embeddings_of(SPEC, ["touchstone-tiny"]))


def read(spec, given):
    return EnsembleScorer(spec, StageClock()).score(batches(spec, given))


def test_members_with_pixels_have_an_embedding_and_scores_stay_what_they_were(keeping):
    given = FILES
    outputs, plain = read(keeping, given), read(SPEC, given)
    vectors = outputs.of("embeddings")["touchstone-tiny"]
    assert vectors.shape == (7, 128)
    usable = np.arange(7) % 3 != 2
    assert np.isfinite(vectors).all(axis=1).tolist() == usable.tolist()
    assert len(np.unique(vectors[usable], axis=0)) == usable.sum()
    np.testing.assert_array_equal(outputs.scores["touchstone-tiny"], plain.scores["touchstone-tiny"])
    assert not plain.of("embeddings")


def test_neither_neighbours_nor_views_change_an_embedding(keeping):
    given = FILES[:4]
    together = read(keeping, given).of("embeddings")["touchstone-tiny"]
    alone = np.concatenate([read(keeping, [data]).of("embeddings")["touchstone-tiny"] for data in given])
    np.testing.assert_array_equal(together, alone)  # the one without pixels has a row of nothing by itself, too
    seen = read(replace(keeping, views=load_perturbations(["jpeg:50"])), given)
    assert seen.by_view("scores").keys() == {"jpeg:50"}
    np.testing.assert_array_equal(seen.of("embeddings")["touchstone-tiny"], together)


def test_readings_keep_their_embeddings_when_they_are_put_together(keeping):
    given = FILES[:6]
    whole = read(keeping, given)
    parts = [read(keeping, given[:4]), read(keeping, given[4:])]
    joined = DetectorOutputs.chained(parts).joined(DetectorOutputs.clean(scores={"other": np.zeros(6, np.float32)}))
    np.testing.assert_array_equal(joined.of("embeddings")["touchstone-tiny"], whole.of("embeddings")["touchstone-tiny"])
    assert not joined.among(["other"]).of("embeddings")
    assert joined.among(["touchstone-tiny"]).of("embeddings").keys() == {"touchstone-tiny"}
