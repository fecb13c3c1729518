"""What an endpoint serves, as one value."""

import pickle

import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.runs import fingerprint
from ray_app.scoring.identity import scoring_facts
from ray_app.serving import ServeConfig
from ray_app.serving.http.responses import ensemble_infos
from ray_app.serving.release import groups_of, load_release, plan_release


def stricter(folder, name="stricter", **changes):
    """The ensemble `tiny` with another threshold, as a card in a file."""
    lines = [
        f"name: {name}",
        "title: Stricter",
        "members: [{detector: touchstone-tiny}]",
        "thresholds: {real_below: 0, fake_above: 3.0}",
    ]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items())]))
    return str(path)


def test_the_fingerprint_is_that_of_a_batch_run():
    generation = load_release(ServeConfig(ensembles=("tiny",)))
    spec = make_spec(load_ensemble_card("tiny"), limits=ImageLimits())
    assert generation.fingerprints == {"tiny": fingerprint(scoring_facts(spec))}


def test_a_generation_changes_with_a_threshold_and_comes_back(tmp_path):
    before = load_release(ServeConfig(ensembles=("tiny",)))
    other = load_release(ServeConfig(ensembles=(stricter(tmp_path),)))
    assert other.id != before.id
    assert load_release(ServeConfig(ensembles=("tiny",))).id == before.id
    assert pickle.loads(pickle.dumps(other)).id == other.id


def test_several_ensembles_share_their_detectors(tmp_path):
    generation = load_release(ServeConfig(ensembles=("tiny", stricter(tmp_path))))
    assert generation.default == "tiny"
    assert list(generation.ensembles) == ["tiny", "stricter"]
    assert list(generation.spec.cards) == ["touchstone-tiny"]
    assert len(set(generation.fingerprints.values())) == 2


def test_optional_detectors_are_beside_the_ensembles(several):
    card, names = several
    config = ServeConfig(
        ensembles=("tiny",),
        optional_detectors=(str(card.with_name("unifd.yaml")),),
        accept_licences=names,
    )
    spec, ensembles, optional = plan_release(config)
    assert list(ensembles["tiny"].cards) == ["touchstone-tiny"]
    assert (list(spec.cards), tuple(optional)) == (["touchstone-tiny", "unifd"], ("unifd",))


def test_a_detector_too_large_to_share_has_a_group_of_its_own():
    large = ServeConfig(
        ensembles=("tiny",),
        optional_detectors=("internvl-prompt",),
        accept_licences=("internvl-prompt",),
    )
    assert groups_of(plan_release(large)[0]) == {
        "detectors": ("touchstone-tiny",),
        "internvl-prompt": ("internvl-prompt",),
    }


def test_two_ensembles_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="same name"):
        plan_release(ServeConfig(ensembles=(stricter(tmp_path), stricter(tmp_path / "other"))))


SETTINGS = "{precision: {touchstone-tiny: fp32}, resize: fast}"


def test_other_ensembles_give_way_to_the_settings_of_a_calibrated_one(tmp_path):
    calibrated = stricter(tmp_path, "calibrated", settings=SETTINGS)
    spec, ensembles, _ = plan_release(ServeConfig(ensembles=("tiny", calibrated)))
    assert (spec.resize, spec.precision["touchstone-tiny"]) == ("fast", "fp32")
    assert {(one.resize, one.precision["touchstone-tiny"]) for one in ensembles.values()} == {
        ("fast", "fp32")
    }
    assert plan_release(ServeConfig(ensembles=("tiny",)))[0].resize == "exact"


def test_ensembles_calibrated_otherwise_are_not_served_together(tmp_path):
    one = stricter(tmp_path, "one", settings=SETTINGS)
    exact = stricter(tmp_path, "exact", settings="{precision: {touchstone-tiny: fp32}}")
    half = stricter(tmp_path, "half", settings="{precision: {touchstone-tiny: bf16}, resize: fast}")
    with pytest.raises(
        ConfigError, match="one and exact were calibrated under different resize modes"
    ):
        plan_release(ServeConfig(ensembles=(one, exact)))
    with pytest.raises(ConfigError, match="touchstone-tiny in bf16 and in fp32"):
        plan_release(ServeConfig(ensembles=(one, half)))


def test_what_an_endpoint_says_of_a_guarantee(tmp_path):
    promise = "{target_fpr: 0.01, n_real: 299, false_positives: 0, upper_bound: 0.00997}"
    card = stricter(tmp_path, "calibrated", settings=SETTINGS, guarantee=promise)
    [info] = ensemble_infos(load_release(ServeConfig(ensembles=(card,))))
    assert (
        info.guarantee.target_fpr,
        info.guarantee.n_real,
        info.guarantee.holds,
        info.guarantee.why,
    ) == (0.01, 299, True, None)
    with pytest.raises(ConfigError, match="its calibration does not hold with resize exact"):
        load_release(ServeConfig(ensembles=(card,), resize="exact"))
    [waived] = ensemble_infos(
        load_release(ServeConfig(ensembles=(card,), resize="exact", waive_guarantee=True))
    )
    assert (waived.guarantee.holds, waived.guarantee.why) == (
        False,
        "scored otherwise: resize exact (calibrated with fast)",
    )
