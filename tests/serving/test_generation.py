"""What an endpoint serves, as one value."""

import pickle

import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError, DetectorError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.runs import fingerprint
from ray_app.scoring.preparing import scoring_identity
from ray_app.serving import ServeConfig
from ray_app.serving.generation import groups_of, load_generation, plan_generation


def stricter(folder, name="stricter", **changes):
    """The default ensemble with another threshold, as a card in a file."""
    lines = [f"name: {name}", "title: Stricter", "members: [{detector: touchstone-tiny}]", "thresholds: {real_below: 0, fake_above: 3.0}"]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items())]))
    return str(path)


def test_the_fingerprint_is_that_of_a_batch_run():
    generation = load_generation(ServeConfig())
    spec = make_spec(load_ensemble_card("default"), limits=ImageLimits())
    assert generation.fingerprints == {"default": fingerprint(scoring_identity(spec))}


def test_a_generation_changes_with_a_threshold_and_comes_back(tmp_path):
    before = load_generation(ServeConfig())
    other = load_generation(ServeConfig(ensembles=(stricter(tmp_path),)))
    assert other.id != before.id
    assert load_generation(ServeConfig()).id == before.id
    assert pickle.loads(pickle.dumps(other)).id == other.id


def test_several_ensembles_share_their_detectors(tmp_path):
    generation = load_generation(ServeConfig(ensembles=("default", stricter(tmp_path))))
    assert generation.default == "default"
    assert list(generation.ensembles) == ["default", "stricter"]
    assert list(generation.spec.cards) == ["touchstone-tiny"]
    assert len(set(generation.fingerprints.values())) == 2


def test_optional_detectors_are_beside_the_ensembles(eight):
    members = load_ensemble_card(eight).members
    config = ServeConfig(optional_detectors=(members[0].detector,), accept_licences=tuple(load_licences(members)))
    spec, ensembles, optional = plan_generation(config)
    assert list(ensembles["default"].cards) == ["touchstone-tiny"]
    assert list(spec.cards) == ["touchstone-tiny", *optional]
    assert len(optional) == 1


def test_a_detector_too_large_to_share_has_a_group_of_its_own():
    spec, _, _ = plan_generation(ServeConfig(optional_detectors=("internvl-prompt",), accept_licences=("internvl-prompt",)))
    assert groups_of(spec) == {"detectors": ("touchstone-tiny",), "internvl-prompt": ("internvl-prompt",)}


def test_two_ensembles_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="same name"):
        plan_generation(ServeConfig(ensembles=(stricter(tmp_path), stricter(tmp_path / "other"))))


def test_a_licence_has_to_be_accepted():
    with pytest.raises(DetectorError, match="licence is not accepted"):
        plan_generation(ServeConfig(optional_detectors=("openfake-swinv2-small",)))


def load_licences(members):
    from ray_app.detectors import load_card

    return [load_card(member.detector).name for member in members]
