"""Which ensembles an endpoint serves, and under which settings."""

import pytest

from ray_app.config import config_root
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.runs import fingerprint
from ray_app.scoring.identity import scoring_facts
from ray_app.serving import ServeConfig
from ray_app.serving.answers import list_ensemble_infos
from ray_app.serving.ensembles import fetch_weights, load_ensembles, plan_ensembles
from ray_app.serving.pool import Served, start_workers
from tests.make.cards import write_ensemble, write_points
from tests.serving.cards import write_stricter


def fingerprints_of(*ensembles):
    points = load_ensembles(ServeConfig(ensembles=ensembles)).points
    return {name: point.fingerprint for name, (point, *_) in points.items()}


def test_fingerprint_is_that_of_a_batch_run():
    spec = make_spec(load_ensemble_card("tiny"), limits=ImageLimits())
    assert fingerprints_of("tiny") == {"tiny": fingerprint(scoring_facts(spec))}


def test_ensembles_share_their_detectors(tmp_path):
    served = load_ensembles(ServeConfig(ensembles=("tiny", write_stricter(tmp_path))))
    assert served.find(None, None).name == "tiny"
    assert list(served.points) == ["tiny", "stricter"]
    assert list(served.plan.spec.cards) == ["touchstone-tiny"]
    assert len(set(fingerprints_of("tiny", write_stricter(tmp_path)).values())) == 2


def test_configured_point_is_the_default(tmp_path):
    card = str(write_points(tmp_path / "points.yaml"))
    usual, chosen = (load_ensembles(ServeConfig(ensembles=(card,), fpr=fpr)) for fpr in (None, 0.1))
    assert [served.find(None, None).fpr for served in (usual, chosen)] == [0.01, 0.1]
    for served in (usual, chosen):
        for fpr, cuts in ((0.01, (-1.43, 50.0)), (0.1, (-50.0, -50.0))):
            thresholds = served.find(None, fpr).spec.ensemble.thresholds
            assert (thresholds.real_below, thresholds.fake_above) == cuts
    [info] = list_ensemble_infos(chosen)
    assert (info.fpr, info.fake_above, info.upper_bound, info.recall) == (0.1, -50.0, 0.12, 0.9)
    assert [point.fpr for point in info.operating_points] == [0.01, 0.1]
    assert [name.fpr for name in Served(4, [info], (), ()).names] == [0.1]
    with pytest.raises(ConfigError, match="no operating point") as refused:
        plan_ensembles(ServeConfig(ensembles=(card, "tiny"), fpr=0.1))
    assert "touchstone detectors calibrate" in refused.value.hint


def test_optional_detectors_are_beside_the_ensembles(several):
    card, names = several
    config = ServeConfig(
        ensembles=("tiny",),
        optional_detectors=(str(card.with_name("unifd.yaml")),),
        accept_licences=names,
    )
    plan = plan_ensembles(config)
    assert list(plan.ensembles["tiny"].cards) == ["touchstone-tiny"]
    assert (list(plan.spec.cards), plan.optional) == (["touchstone-tiny", "unifd"], ("unifd",))


def test_two_ensembles_of_one_name_are_rejected(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="ensembles must have distinct names"):
        plan_ensembles(
            ServeConfig(ensembles=(write_stricter(tmp_path), write_stricter(tmp_path / "other")))
        )


SETTINGS = "{precision: {touchstone-tiny: fp32}, resize: fast}"


def test_settings_of_a_calibrated_ensemble_are_for_all(tmp_path):
    calibrated = write_stricter(tmp_path, "calibrated", settings=SETTINGS)
    plan = plan_ensembles(ServeConfig(ensembles=("tiny", calibrated)))
    assert (plan.spec.resize, plan.spec.precision["touchstone-tiny"]) == ("fast", "fp32")
    assert {(one.resize, one.precision["touchstone-tiny"]) for one in plan.ensembles.values()} == {
        ("fast", "fp32")
    }
    for precision, resize in (("fp32", "exact"), ("bf16", "fast")):
        config = ServeConfig(ensembles=("tiny",), precision=precision)
        assert plan_ensembles(config).spec.resize == resize


def test_ensembles_calibrated_otherwise_are_rejected(tmp_path):
    one = write_stricter(tmp_path, "one", settings=SETTINGS)
    exact = write_stricter(tmp_path, "exact", settings="{precision: {touchstone-tiny: fp32}}")
    half = write_stricter(
        tmp_path, "half", settings="{precision: {touchstone-tiny: bf16}, resize: fast}"
    )
    with pytest.raises(
        ConfigError, match="one and exact were calibrated under different resize modes"
    ):
        plan_ensembles(ServeConfig(ensembles=(one, exact)))
    with pytest.raises(ConfigError, match="touchstone-tiny in bf16 and in fp32"):
        plan_ensembles(ServeConfig(ensembles=(one, half)))


def test_guarantee_is_described_and_holds_or_is_waived(tmp_path):
    promise = "{target_fpr: 0.01, n_real: 299, false_positives: 0, upper_bound: 0.00997}"
    card = write_stricter(tmp_path, "calibrated", settings=SETTINGS, guarantee=promise)

    def guarantee(**config):
        [info] = list_ensemble_infos(load_ensembles(ServeConfig(ensembles=(card,), **config)))
        return info.guarantee

    described = guarantee()
    assert (described.target_fpr, described.n_real) == (0.01, 299)
    assert (described.holds, described.why) == (True, None)
    with pytest.raises(ConfigError, match="the calibration does not hold with resize exact"):
        guarantee(resize="exact")
    waived = guarantee(resize="exact", waive_guarantee=True)
    assert not waived.holds
    assert (
        waived.why
        == "scored otherwise than for the calibration: resize exact (calibrated with fast)"
    )


def test_worker_serves_a_card_of_a_bucket_without_credentials(s3, tmp_path):
    bucket = s3.bucket("served-cards")
    for name in ("touchstone-tiny.yaml", "touchstone-tiny.safetensors"):
        s3.client().upload_file(str(config_root() / "detectors" / name), "served-cards", name)
    card = write_ensemble(tmp_path / "mine.yaml", [f"{bucket}/touchstone-tiny.yaml"])
    config = ServeConfig(ensembles=(str(card),))
    fetch_weights(config)
    [worker], served = start_workers(config, 1)
    try:
        assert [info.name for info in served.names] == ["mine"]
    finally:
        worker.process.kill()
        worker.close()
