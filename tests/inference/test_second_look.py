"""A cascade in one process and in pools: which detector sees which image."""

import pickle

import numpy as np
import pytest
from PIL import Image

from ray_app.ensembles import EnsembleCard, EnsembleMember
from ray_app.ensembles.card import Cascade
from ray_app.errors import Status
from ray_app.images import ImageLimits
from ray_app.inference import StageClock, judge, make_spec
from ray_app.inference.batch import RESCORED, RESCORED_MS
from ray_app.inference.decision import second_stage_rows
from ray_app.inference.ensemble import Ensemble
from ray_app.inference.scorer import EnsembleScorer
from ray_app.inference.worker import open_decoder, open_scorer
from tests.inference.batches import batches, read
from tests.make.cards import write_two
from tests.make.images import encoded, photo


def softened(number):
    """Return an image that was enlarged; the scores of the detector run from -14 to 4."""
    image, factor = photo(150, 140, seed=number), (1, 1.5, 2, 3, 4, 6)[number]
    small = image.resize((int(150 / factor), int(140 / factor)), Image.Resampling.BILINEAR)
    return encoded(small.resize((150 + 10 * number, 140), Image.Resampling.BICUBIC), "PNG")


FILES = [(number, softened(number)) for number in range(6)]
MEMBERS = [*FILES[:3], (9, b"no image"), *FILES[3:]]
DATA = [data for _, data in MEMBERS]


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return write_two(tmp_path_factory.mktemp("cards"))


def spec_of(cards, band, audit=0.0, **options):
    cascade = Cascade(first=1, band=band, audit_share=audit)
    members = tuple(EnsembleMember(detector=path) for path in cards)
    card = EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade=cascade)
    return make_spec(card, limits=ImageLimits(), precision="fp32", **options)


def on_all(spec):
    """Return the scores of every detector on every image."""
    return EnsembleScorer(spec, StageClock()).score(batches(spec, DATA))


@pytest.fixture(scope="module")
def spec(cards):
    """Some scores are in its band, and some are not."""
    early = on_all(spec_of(cards, (0, 0))).scores["cheap"]
    return spec_of(cards, tuple(np.nanquantile(early, [0.3, 0.8]).tolist()))


def test_second_detector_sees_images_in_the_band_alone(spec):
    outcomes, outputs, counts = read(spec, MEMBERS)
    whole = on_all(spec)
    np.testing.assert_array_equal(outputs.scores["cheap"], whole.scores["cheap"])
    low, high = spec.ensemble.cascade.band
    inside = (whole.scores["cheap"] >= low) & (whole.scores["cheap"] <= high)
    assert 0 < inside.sum() < len(FILES)
    np.testing.assert_array_equal(np.isfinite(outputs.scores["slow"]), inside)
    np.testing.assert_allclose(
        outputs.scores["slow"][inside], whole.scores["slow"][inside], atol=1e-6
    )
    assert counts[RESCORED] == counts["decoded"] == inside.sum()
    assert counts[RESCORED_MS] > 0
    _, held_for_a_while_only, _ = read(spec, MEMBERS, kept_bytes=1)
    for name in spec.cards:
        np.testing.assert_allclose(
            held_for_a_while_only.scores[name], outputs.scores[name], atol=1e-6
        )
    results = list(Ensemble(spec).score(DATA))
    for name, column in outputs.scores.items():
        scores = [np.nan if one.scores[name] is None else one.scores[name] for one in results]
        np.testing.assert_array_equal(column, np.array(scores, np.float32))
    scored = judge(spec, outcomes, outputs)
    assert [why == "band" for why in scored.decisions.second_look] == inside.tolist()
    assert outcomes[3].status is Status.UNSUPPORTED_FORMAT
    assert all(
        verdict != "abstain" for row, verdict in enumerate(scored.decisions.verdict) if row != 3
    )


def test_audit_draws_by_content_outside_the_band(cards):
    nobody, everybody = spec_of(cards, (99, 99), audit=0.0), spec_of(cards, (99, 99), audit=1.0)
    assert not np.isfinite(read(nobody, MEMBERS)[1].scores["slow"]).any()
    outcomes, outputs, _ = read(everybody, MEMBERS)
    np.testing.assert_allclose(outputs.scores["slow"], on_all(everybody).scores["slow"], atol=1e-6)
    assert set(judge(everybody, outcomes, outputs).decisions.second_look) == {"audit", None}
    some = spec_of(cards, (99, 99), audit=0.5)
    drawn = np.isfinite(read(some, MEMBERS)[1].scores["slow"])
    again = np.isfinite(read(some, MEMBERS[::-1])[1].scores["slow"])
    assert 0 < drawn.sum() < len(FILES)
    assert drawn.tolist() == again[::-1].tolist()


def test_two_pools_give_the_scores_of_one_process(spec):
    """The second pool gets nothing but the files of what goes on."""
    outcomes, whole, _ = read(spec, MEMBERS)
    reading = open_decoder(spec, StageClock(), hand_over=True)
    handed = pickle.loads(pickle.dumps(list(batches(spec, DATA, reading))))
    (decoder, cheap), (_, slow) = (
        open_scorer(spec, "cpu", StageClock(), pool=(name,), kept_bytes=1e9)
        for name in ("cheap", "slow")
    )
    first = cheap.score(decoder.complete(batch) for batch in handed)
    assert list(first.scores) == ["cheap"]
    going = second_stage_rows(spec, outcomes, first)
    outputs = slow.rescore(
        outcomes, [(0, file) if row in going else None for row, file in enumerate(DATA)], first
    )
    for name in spec.cards:
        np.testing.assert_allclose(outputs.scores[name], whole.scores[name], atol=1e-6)
    assert slow.counts["decoded"] == len(going)
