"""Precision and resize mode follow the card; others need a waived guarantee."""

import pickle
from dataclasses import replace

import pytest

from ray_app.ensembles import (
    CalibrationSettings,
    EnsembleCard,
    EnsembleMember,
    build_ensemble,
    load_ensemble_card,
)
from ray_app.ensembles.card import Cascade
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.inference.ensemble import Ensemble
from ray_app.inference.spec import departures
from tests.make.cards import write_two

TINY = "touchstone-tiny"
FAST = CalibrationSettings(precision={TINY: "bf16"}, resize="fast")


def spec(settings, **asked):
    return make_spec(
        load_ensemble_card("tiny").model_copy(update={"settings": settings}),
        limits=ImageLimits(),
        **asked,
    )


def test_auto_is_the_setting_of_the_calibration():
    assert (spec(FAST).precision[TINY], spec(FAST).resize) == ("bf16", "fast")
    assert spec(None, precision="fp32").resize == "exact"
    assert spec(None, precision="bf16").resize == "fast"
    asked = spec(None, resize="fast", precision="fp32")
    assert (asked.resize, asked.precision[TINY]) == ("fast", "fp32")
    assert (
        departures(None, {TINY: "bf16"}, "fast")
        == departures(CalibrationSettings(precision={}), {TINY: "bf16"}, "exact")
        == []
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"precision": "fp32"}, "touchstone-tiny in fp32 (calibrated in bf16)"),
        ({"resize": "exact"}, "resize exact (calibrated with fast)"),
        ({"precision": "fp32", "resize": "exact"}, "calibrated in bf16) and resize exact"),
    ],
)
def test_other_setting_needs_a_waived_guarantee(asked, said):
    with pytest.raises(ConfigError, match="the calibration does not hold with") as refused:
        spec(FAST, **asked)
    assert said in str(refused.value)
    assert "waive_guarantee" in refused.value.hint
    waived = spec(FAST, **asked, waive_guarantee=True)
    assert departures(FAST, waived.precision, waived.resize)


def test_auto_resize_follows_the_precision_of_each_detector():
    names = ["community-forensics-vits384", "clip-cues"]  # The card of the second sets fp32.
    mixed = make_spec(build_ensemble(names), limits=ImageLimits(), device="cuda")
    assert mixed.resize == "auto"
    assert [mixed.choose_resize(name) for name in names] == ["fast", "exact"]
    first, second = (mixed.inputs[name] for name in names)
    assert (first.resampler, second) == ("torch", mixed.cards["clip-cues"].preprocessing)
    assert mixed.preprocessings == (first, second)
    assert (
        departures(
            CalibrationSettings(precision=mixed.precision, resize="auto"), mixed.precision, "auto"
        )
        == []
    )
    assert departures(CalibrationSettings(precision=mixed.precision), mixed.precision, "auto") == [
        "resize auto (calibrated with exact)"
    ]


def test_library_follows_the_card():
    card = load_ensemble_card("tiny").model_copy(
        update={"settings": CalibrationSettings(precision={TINY: "fp32"}, resize="fast")}
    )
    loaded = Ensemble(card)
    assert (loaded.spec.precision[TINY], loaded.spec.resize) == ("fp32", "fast")
    with pytest.raises(ConfigError):
        Ensemble(card, resize="exact")
    assert Ensemble(card, resize="exact", waive_guarantee=True).spec.resize == "exact"


@pytest.mark.parametrize("own_pool", [False, True])
def test_spec_of_cascade_has_two_stages_and_limited_spec_one(tmp_path, own_pool):
    members = tuple(
        EnsembleMember(detector=path) for path in write_two(tmp_path, own_pool=own_pool)
    )
    cascade = Cascade(first=1, band=(-1, 1))
    card = EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade=cascade)
    whole = make_spec(card, limits=ImageLimits())
    cheap, slow = (item.preprocessing for item in whole.cards.values())
    assert [stage.detectors for stage in whole.stages] == [("cheap",), ("slow",)]
    assert [stage.preprocessings for stage in whole.stages] == [(cheap,), (slow,)]
    assert (whole.first, whole.late, whole.preprocessings) == (("cheap",), ("slow",), (cheap, slow))
    assert whole.pools == ((("cheap",), ("slow",)) if own_pool else (("cheap", "slow"),))
    for spec, names in [
        (whole.for_stage(whole.stages[1]), ("slow",)),
        (whole.select_detectors(["cheap"]), ("cheap",)),
    ]:
        assert not spec.is_cascade
        assert (spec.first, spec.late) == (names, ())
        assert spec.for_stage(spec.stages[0]) is spec
    assert replace(whole, slots=1).stages == whole.stages
    assert pickle.loads(pickle.dumps(whole)) == whole
