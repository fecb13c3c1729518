"""Verdicts near a threshold are asked again; which views there are, which rows they concern, and what their answers make of a verdict."""

import numpy as np
import pytest
from PIL import Image

from ray_app.ensembles import EnsembleCard, EnsembleMember, Thresholds, decide
from ray_app.ensembles.card import Cascade
from ray_app.errors import Reason
from ray_app.inference.stability import Stability, settled, uncertain
from ray_app.transforms.perturbations import seed_of
from tests.images.factory import photo

NAN = np.nan
CARD = EnsembleCard(name="one", title="One", members=(EnsembleMember(detector="a"),), thresholds=Thresholds(real_below=-1, fake_above=2))
NO_CALIBRATION = {"a": None, "b": None}


def column(*scores):
    return {"a": np.array(scores, np.float32)}


def decided(scores, card=CARD, **options):
    return decide(card, scores, calibrations=NO_CALIBRATION, **options)


def test_uncertain_are_verdicts_that_a_change_of_the_margin_would_take():
    decisions = decided(column(2, 3.5, 3.6, 1.9, -1, -2.5, -2.6, NAN))
    assert uncertain(decisions.score, decisions.verdict, CARD.thresholds, 1.5).tolist() == [0, 1, 4, 5]


def test_a_verdict_that_all_views_share_stays_and_any_other_becomes_abstain():
    scores = column(2.5, 2.5, 2.5, -1.5, 9.0, 1.0, 2.5, 2.5)
    views = [column(3, -2, 1, -1, -9, -9, NAN, NAN), column(2, -3, 2, 3, -9, -9, NAN, -4), column(9, 1, 2, 2, -9, -9, NAN, NAN)]
    decisions = decided(scores)
    result = settled(CARD, decisions, views, calibrations=NO_CALIBRATION, margin=1.0)
    assert list(zip(result.verdict, result.reason, result.detail, strict=True)) == [
        ("fake", None, None),
        ("abstain", Reason.UNSTABLE, "2 of 3 recompressed views say real, 1 says abstain"),
        ("abstain", Reason.UNSTABLE, "1 of 3 recompressed views says abstain"),
        ("abstain", Reason.UNSTABLE, "2 of 3 recompressed views say fake"),
        ("fake", None, None),  # too far from its threshold to be asked
        ("abstain", Reason.INSIDE_BAND, None),
        ("fake", None, None),  # views without a score say nothing
        ("abstain", Reason.UNSTABLE, "1 of 1 recompressed views says real"),
    ]
    assert result.score is decisions.score
    assert decisions.verdict[1] == "fake", "the decisions that were handed in are left alone"


def test_a_view_of_a_cascade_is_asked_as_its_own_picture():
    """Outside of the band the first member speaks for the view; inside, or where the image was drawn for the audit, all do."""
    members = (EnsembleMember(detector="a"), EnsembleMember(detector="b"))
    card = EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade=Cascade(first=1, band=(-1, 1), audit_share=0.5))
    audited = [False, False, True]
    scores = {"a": np.array([0.5, 2, 2], np.float32), "b": np.array([0.5, NAN, 2], np.float32)}
    view = {"a": np.array([2, -0.5, 2], np.float32), "b": np.array([NAN, -4, -9], np.float32)}
    decisions = decided(scores, card, audited=audited)
    assert (decisions.verdict, decisions.second_look) == (["fake"] * 3, ["band", None, "audit"])
    result = settled(card, decisions, [view], calibrations=NO_CALIBRATION, margin=3.0, audited=audited)
    assert result.verdict == ["fake", "abstain", "abstain"]
    assert result.second_look == decisions.second_look


def test_views_shrink_and_recompress_by_the_file_and_by_nothing_else():
    image = photo(200, 120, seed=1)
    views = Stability(3, 1.0).views
    assert views[:2] == Stability(2, 1.0).views, "more views keep those that fewer have"
    seen = {}
    for digest in ("a" * 64, "b" * 64):
        for view in views:
            result = view.apply(image, seed_of(digest, view.name))
            assert 140 <= result.width <= 200
            assert result.height == pytest.approx(result.width * 0.6, abs=1)
            assert result.tobytes() == view.apply(image, seed_of(digest, view.name)).tobytes()
            seen[digest, view.name] = result.tobytes()
    assert len(set(seen.values())) == 6
    assert len({Image.Image.tobytes(view.apply(image, 7)) for view in views}) == 1, "a view differs by its seed alone"
