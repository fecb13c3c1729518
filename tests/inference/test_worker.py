"""One factory opens the decoder and the scorer of every caller."""

import numpy as np
import pytest

from ray_app.ensembles import EnsembleCard, EnsembleMember
from ray_app.ensembles.card import Cascade
from ray_app.images import ImageLimits
from ray_app.inference import DetectorOutputs, StageClock, make_spec
from ray_app.inference.ensemble import Ensemble
from ray_app.inference.worker import open_decoder, open_scorer
from tests.inference.batches import noise
from tests.inference.two_detectors import write_two

FILES = [*noise((150, 140), (120, 200)), b"no image", *noise((97, 130))]


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A cascade whose audit draws every image."""
    members = tuple(
        EnsembleMember(detector=path) for path in write_two(tmp_path_factory.mktemp("cards"))
    )
    cascade = Cascade(first=1, band=(99, 99), audit_share=1.0)
    card = EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade=cascade)
    return make_spec(card, limits=ImageLimits(), precision="fp32", slots=4)


def score(spec, **options):
    clock = StageClock()
    decoder, scorer = open_scorer(spec, "cpu", clock, **options)
    return scorer.score([decoder.decode(list(enumerate(FILES)))]).scores, clock.seconds


def test_open_scorer_scores_as_python_call(spec):
    scores, seconds = score(spec)
    results = list(Ensemble(spec).score(FILES))
    for name, column in scores.items():
        expected = [result.scores[name] for result in results]
        assert [None if np.isnan(item) else item for item in column.tolist()] == expected
        assert np.isfinite(column).tolist() == [True, True, False, True]
    assert min(seconds[stage] for stage in ("decode", "prepare", "score")) > 0


def test_open_scorer_of_pool_holds_detectors_of_pool(spec):
    first, _ = score(spec, pool=("cheap",))
    assert list(first) == ["cheap"]
    decoder, scorer = open_scorer(spec, "cpu", StageClock(), pool=("slow",))
    batch = decoder.decode(list(enumerate(FILES)))
    outputs = scorer.rescore(batch.outcomes, batch.files, DetectorOutputs.clean(scores=first))
    for name, column in score(spec)[0].items():
        np.testing.assert_array_equal(outputs.scores[name], column)


def test_open_decoder_prepares_first_stage_and_keeps_files(spec):
    batch = open_decoder(spec, StageClock()).decode(list(enumerate(FILES)))
    assert len(batch.pixels) == 1
    assert [file is not None for file in batch.encoded] == [True, True, False, True]
