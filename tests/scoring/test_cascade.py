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
from tests.scoring.conftest import rows_of, score_here, score_into, write_ensemble
from tests.scoring.stages import plan_here


def write_cards(folder, cheap_px, slow_px, **changes):
    """The small detector with a look at little of an image, and with one at more of it."""
    paths = []
    for name, side in (("cheap", cheap_px), ("slow", slow_px)):
        card = load_card(
            "touchstone-tiny",
            {
                "name": name,
                "preprocessing": {"center_crop": side},
                **(changes if name == "slow" else {}),
            },
        )
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    return paths


SAID = (
    "status",
    "sha256",
    "width",
    "verdict",
    "verdict_reason",
    "verdict_detail",
    "second_look",
    "calibrated",
)


def numbers_of(row):
    return {**(row["scores"] or {}), "score": row["score"], "probability": row["probability"]}


def cascade(band, audit=0.1):
    return {"rule": "cascade", "cascade": {"first": 1, "band": list(band), "audit_share": audit}}


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return write_cards(tmp_path_factory.mktemp("cards"), 64, 192)


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


def test_the_second_detector_looks_at_the_band_and_the_audit_alone(
    fused, both_on_all, band, ensemble
):
    out, finished, rows = fused
    card, whole = load_ensemble_card(ensemble), both_on_all[1]
    assert rows.keys() == whole.keys()
    for uri, row in rows.items():
        if row["status"] != "ok":
            assert row["second_look"] is None
            continue
        early = row["scores"]["cheap"]
        assert early == whole[uri]["scores"]["cheap"]
        why = (
            "band"
            if band[0] <= early <= band[1]
            else "audit"
            if is_audited(card, row["sha256"])
            else None
        )
        assert row["second_look"] == why
        assert row["verdict"] in ("real", "fake")
        if why is None:
            assert row["scores"]["slow"] is None
            assert row["score"] == pytest.approx(early)
        else:
            assert row["scores"]["slow"] == pytest.approx(whole[uri]["scores"]["slow"], abs=1e-5)
            assert row["score"] == pytest.approx((early + row["scores"]["slow"]) / 2)
    counted = [row["second_look"] for row in rows.values()]
    found = finished.summary["second_look"]
    assert (found["band"], found["audit"]) == (counted.count("band"), counted.count("audit"))
    assert 0 < found["band"] < len(rows) / 2
    assert found["share"] == (found["band"] + found["audit"]) / finished.summary["statuses"]["ok"]
    looks = finished.summary["session"]["looks"]
    assert (looks["first"]["images"], looks["second"]["images"]) == (
        len(rows),
        found["band"] + found["audit"],
    )
    assert all(look["seconds"] > 0 and look["hours_per_million"] > 0 for look in looks.values())
    assert any(
        line.startswith("second look: all detectors looked at")
        for line in summary_lines(finished.summary)
    )
    assert "Second look: all detectors looked at" in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pools_of_their_own_on_ray_find_the_same(
    ray_cluster, fused, sample_archive, band, tmp_path
):
    """In the split layout the second pool gets files of what goes on, and nothing else."""
    ensemble = write_ensemble(
        tmp_path / "two.yaml", write_cards(tmp_path, 64, 192, own_pool=True), **cascade(band)
    )
    finished, rows = score_into(tmp_path / "run", sample_archive, ensemble=str(ensemble))
    assert finished.summary["session"]["layout"] == "split"
    _, before, expected = fused
    for uri, row in rows.items():
        other = expected[uri]
        assert {name: row[name] for name in SAID} == {name: other[name] for name in SAID}
        assert numbers_of(row) == pytest.approx(numbers_of(other), abs=1e-5)
    assert (
        finished.summary["session"]["looks"]["second"]["images"]
        == before.summary["session"]["looks"]["second"]["images"]
    )


def test_other_rules_on_stored_scores_bring_the_column_and_take_it(
    both_on_all, fused, ensemble, cards, sample_archive, tmp_path
):
    out, before = both_on_all
    summary = decide_run(str(out), str(ensemble), str(tmp_path / "decided"))
    again, _, expected = rows_of(tmp_path / "decided"), *fused[1:]
    for uri, row in again.items():
        assert (row["second_look"], row["verdict"]) == (
            expected[uri]["second_look"],
            expected[uri]["verdict"],
        )
        assert row["score"] is None or row["score"] == pytest.approx(
            expected[uri]["score"], abs=1e-5
        )
    assert summary["second_look"] == fused[1].summary["second_look"]
    plain = write_ensemble(tmp_path / "plain.yaml", cards)
    summary = decide_run(str(tmp_path / "decided"), str(plain), str(tmp_path / "plain"))
    assert "second_look" not in summary
    assert all(
        "second_look" not in row and row["score"] == before[uri]["score"]
        for uri, row in rows_of(tmp_path / "plain").items()
    )


def test_views_and_a_cascade_do_not_go_together(ensemble):
    with pytest.raises(ConfigError, match="is a cascade"):
        resolve(ScoreConfig(ensemble=str(ensemble), perturb=("jpeg:75",))).spec(gpus=0)


def test_the_plan_counts_the_second_look_for_its_share(
    sample_archive, ensemble, cards, band, tmp_path
):
    plan = plan_here(
        ScoreConfig(source=(str(sample_archive),), ensemble=str(ensemble)),
        probe=16,
    )
    cascade = plan.cascade
    assert (cascade.first, cascade.second) == (["cheap"], ["slow"])
    assert 0 < cascade.share < 1
    assert all(seconds > 0 for seconds in cascade.seconds_per_image.values())
    assert any("cheap on all, slow on about" in line for line in plan_lines(plan))
    known = yaml.safe_load(ensemble.read_text())
    known["cascade"]["expected_share"] = 0.5
    half = write_ensemble(
        tmp_path / "half.yaml", cards, **{key: known[key] for key in ("rule", "cascade")}
    )
    stated = plan_here(
        ScoreConfig(source=(str(sample_archive),), ensemble=str(half)), probe=0
    ).to_dict()
    sizes = {
        name: load_card(card).size.gmac for name, card in zip(("cheap", "slow"), cards, strict=True)
    }
    assert stated["gmac_per_image"] == pytest.approx(sizes["cheap"] + 0.5 * sizes["slow"], abs=1e-3)
