"""Runs of a cascade: who looks at what in both layouts, what a row and a summary say, and what it
saves.
"""

import numpy as np
import pytest
import yaml

from ray_app.detectors import load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.ensembles.decision import is_audited
from ray_app.errors import ConfigError
from ray_app.reports import plan_lines, summary_lines
from ray_app.scoring import ScoreConfig
from ray_app.scoring.decide import decide_run
from ray_app.scoring.identity import resolve
from tests.make.cards import write_ensemble
from tests.make.runs import rows_of, score_here, score_into
from tests.make.stages import plan_here


def write_cards(folder, **changes):
    """The small detector with a look at little of an image, and with one at more of it, whose card
    has these changes.
    """
    paths = []
    for name, side, more in (("cheap", 64, {}), ("slow", 192, changes)):
        told = {"name": name, "preprocessing": {"center_crop": side}} | more
        card = load_card("touchstone-tiny", told).model_dump(mode="json", exclude_none=True)
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(card))
    return paths


def cascade(band, **facts):
    facts = {"first": 1, "band": list(band), "audit_share": 0.1} | facts
    return {"rule": "cascade", "cascade": facts}


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return write_cards(tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="module")
def both_on_all(sample_archive, cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, score_here(out, sample_archive, detectors=tuple(map(str, cards)))[1]


@pytest.fixture(scope="module")
def band(both_on_all):
    """Four tenths of the images, from the middle of what the cheap detector says."""
    early = [row["scores"]["cheap"] for row in both_on_all[1].values() if row["status"] == "ok"]
    return tuple(float(edge) for edge in np.quantile(early, [0.3, 0.7]))


@pytest.fixture(scope="module")
def ensemble(cards, band):
    return write_ensemble(cards[0].parent / "two.yaml", cards, **cascade(band))


@pytest.fixture(scope="module")
def fused(sample_archive, ensemble, tmp_path_factory):
    out = tmp_path_factory.mktemp("fused") / "run"
    return out, *score_here(out, sample_archive, ensemble=str(ensemble))


def test_second_detector_looks_at_band_and_audit_alone(fused, both_on_all, band, ensemble):
    out, finished, rows = fused
    card, whole = load_ensemble_card(ensemble), both_on_all[1]
    assert rows.keys() == whole.keys()
    for uri, row in rows.items():
        if row["status"] != "ok":
            assert row["second_look"] is None
            continue
        early = row["scores"]["cheap"]
        assert early == whole[uri]["scores"]["cheap"]
        in_band, in_audit = band[0] <= early <= band[1], is_audited(card, row["sha256"])
        why = "band" if in_band else "audit" if in_audit else None
        assert row["second_look"] == why
        assert row["verdict"] in ("real", "fake")
        if why is None:
            assert row["scores"]["slow"] is None
            assert row["score"] == pytest.approx(early)
        else:
            assert row["scores"]["slow"] == pytest.approx(whole[uri]["scores"]["slow"], abs=1e-5)
            assert row["score"] == pytest.approx((early + row["scores"]["slow"]) / 2)
    summary, counted = finished.summary, [row["second_look"] for row in rows.values()]
    found = summary["second_look"]
    assert (found["band"], found["audit"]) == (counted.count("band"), counted.count("audit"))
    assert 0 < found["band"] < len(rows) / 2
    late = found["band"] + found["audit"]
    assert found["share"] == late / summary["statuses"]["ok"]
    looks = summary["session"]["looks"]
    assert (looks["first"]["images"], looks["second"]["images"]) == (len(rows), late)
    assert all(look["seconds"] > 0 and look["hours_per_million"] > 0 for look in looks.values())
    assert any(line.startswith("second stage: ") for line in summary_lines(summary))
    assert "Second stage: " in (out / "report.html").read_text()


SAME = ("status", "sha256", "width", "verdict", "verdict_reason", "verdict_detail", "second_look", "calibrated")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cascade_in_pools_on_ray_gives_the_same_rows(
    ray_cluster, fused, sample_archive, band, tmp_path
):
    """In the split layout the second pool gets files of what goes on, and nothing else."""
    cards = write_cards(tmp_path, own_pool=True)
    ensemble = str(write_ensemble(tmp_path / "two.yaml", cards, **cascade(band)))
    finished, rows = score_into(tmp_path / "run", sample_archive, ensemble=ensemble)
    _, before, expected = fused
    for uri, row in rows.items():
        other = expected[uri]
        assert {name: row[name] for name in SAME} == {name: other[name] for name in SAME}
        for name in ("scores", "score", "probability"):
            assert row[name] is other[name] is None or row[name] == pytest.approx(
                other[name], abs=1e-5
            )
    session, fused_session = finished.summary["session"], before.summary["session"]
    assert session["layout"] == "split"
    assert session["looks"]["second"]["images"] == fused_session["looks"]["second"]["images"]


def test_decide_adds_and_removes_the_second_look(both_on_all, fused, ensemble, cards, tmp_path):
    out, before = both_on_all
    _, finished, expected = fused
    summary = decide_run(str(out), str(ensemble), str(tmp_path / "decided"))
    for uri, row in rows_of(tmp_path / "decided").items():
        for name in ("second_look", "verdict"):
            assert row[name] == expected[uri][name]
        assert row["score"] is None or row["score"] == pytest.approx(
            expected[uri]["score"], abs=1e-5
        )
    assert summary["second_look"] == finished.summary["second_look"]
    plain = write_ensemble(tmp_path / "plain.yaml", cards)
    summary = decide_run(str(tmp_path / "decided"), str(plain), str(tmp_path / "plain"))
    assert "second_look" not in summary
    for uri, row in rows_of(tmp_path / "plain").items():
        assert "second_look" not in row
        assert row["score"] == before[uri]["score"]


def test_cascade_with_perturbations_is_refused(ensemble):
    with pytest.raises(ConfigError, match="is a cascade"):
        resolve(ScoreConfig(ensemble=str(ensemble), perturb=("jpeg:75",))).spec(gpus=0)


def test_plan_counts_the_second_look_for_its_share(sample_archive, ensemble, cards, band, tmp_path):
    config = ScoreConfig(source=(str(sample_archive),), ensemble=str(ensemble))
    plan = plan_here(config, probe=16)
    assert (plan.cascade.first, plan.cascade.second) == (["cheap"], ["slow"])
    assert 0 < plan.cascade.share < 1
    assert all(seconds > 0 for seconds in plan.cascade.seconds_per_image.values())
    assert any("cheap on all, slow on about" in line for line in plan_lines(plan))
    half = write_ensemble(tmp_path / "half.yaml", cards, **cascade(band, expected_share=0.5))
    stated = plan_here(config.model_copy(update={"ensemble": str(half)}), probe=0)
    cheap, slow = (load_card(card).size.gmac for card in cards)
    assert stated.gmac_per_image == pytest.approx(cheap + 0.5 * slow, abs=1e-3)
