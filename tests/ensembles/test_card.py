import pytest
import yaml

from ray_app.config import config_root, named_configs
from ray_app.detectors import load_card
from ray_app.detectors.card import Platt
from ray_app.ensembles import (
    EnsembleCard,
    EnsembleMember,
    Guarantee,
    Thresholds,
    build_ensemble,
    choose_operating_point,
    get_decision_settings,
    list_rates,
    load_ensemble_card,
)
from ray_app.ensembles.card import Cascade, OperatingPoint, OutlierGate, Stacking
from ray_app.errors import ConfigError

STACKING = Stacking(mean=(0.0, 1.0), scale=(1.0, 2.0), coefficients=(0.5, 0.25), intercept=-1.0)


A, B = EnsembleMember(detector="a"), EnsembleMember(detector="b")
WEIGHTED = {"rule": "weighted", "members": (EnsembleMember(detector="a", weight=2), B)}


def card(**keys):
    return EnsembleCard(**{"name": "e", "title": "e", "members": (A, B)} | keys)


def written(path, *detectors):
    members = ", ".join(f"{{detector: '{detector}'}}" for detector in detectors)
    path.write_text(f"name: mine\ntitle: mine\nmembers: [{members}]\n")
    return path


@pytest.mark.parametrize("name", named_configs("ensembles"))
def test_shipped_ensemble_is_complete(name):
    """It has notes, shipped detectors, and either all rates or none."""
    ensemble = load_ensemble_card(name)
    assert ensemble.name == name
    assert ensemble.title
    assert ensemble.notes
    for member in ensemble.members:
        assert load_card(member.detector).name == member.detector
    rates = ("false_positive_rate", "true_positive_rate", "n_real", "n_fake", "measured_on")
    stated = [getattr(ensemble.thresholds, rate) is not None for rate in rates]
    assert all(stated) or not any(stated)


FUSIONS = {"": "soft-or", "-openfake-v1": "soft-or"}
FUSIONS |= {f"-{rule}": rule for rule in ("mean-logit", "mean-probability", "max", "median")}
FUSIONS["-log-sum-exp"] = "log-sum-exp"


@pytest.mark.parametrize("name", FUSIONS)
def test_each_published_fusion_has_its_card(name):
    fusion = load_ensemble_card(f"fusion-clip-corvi{name}")
    variant = ":thumb1024" if name == "-openfake-v1" else ""
    detectors = [member.detector for member in fusion.members]
    assert detectors == [f"clip-d-10k-plus{variant}", f"corvi2023{variant}"]
    assert (fusion.rule, fusion.calibration) == (FUSIONS[name], None)
    assert fusion.thresholds == Thresholds(real_below=0, fake_above=0)
    assert fusion.notes.startswith("Source:")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stacking": STACKING}, "`stacking` is set, which only rule stacked uses"),
        (
            {"rule": "stacked", "stacking": STACKING.model_dump() | {"scale": (0.0, 1.0)}},
            "scale.0\n  Input should be greater than 0",
        ),
        (
            {"rule": "stacked", "stacking": STACKING.model_copy(update={"scale": (1.0,)})},
            r"stacking.scale must have one number per member \(2\), got 1",
        ),
        (WEIGHTED | {"rule": "soft-or"}, "weights other than 1 require rule weighted"),
        ({"gate": OutlierGate()}, "`gate` requires rule gated-mean"),
        ({"rule": "gated-mean"}, "gated-mean requires at least 3 detectors"),
        ({"rule": "cascade"}, "rule cascade requires `cascade`"),
        (
            {"rule": "cascade", "cascade": Cascade(first=2, band=(0, 1))},
            r"cascade.first must be less than the number of detectors \(2\), got 2",
        ),
        ({"rule": "first-past"}, "'mean-logit', 'mean-probability', 'soft-or'"),
        ({"members": (A, A)}, "detectors must be distinct"),
        ({"calibration": {"slope": 0, "intercept": 0}}, "slope\n  Input should be greater than 0"),
    ],
)
def test_card_that_contradicts_itself_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        card(**keys)


def test_detector_paths_are_relative_and_keep_their_variant(tmp_path):
    tiny = (config_root() / "detectors" / "touchstone-tiny.yaml").read_text()
    (tmp_path / "own.yaml").write_text(tiny + "variants: {wide: {title: wide}}\n")
    shipped = ["corvi2023", "corvi2023:thumb1024"]
    mine = written(tmp_path / "mine.yaml", "own.yaml", "./own.yaml:wide", *shipped)
    detectors = [member.detector for member in load_ensemble_card(mine).members]
    assert detectors == [f"{tmp_path}/own.yaml", f"{tmp_path}/own.yaml:wide", *shipped]
    assert load_card(detectors[1]).title == "wide"


def test_card_with_references_of_older_versions_loads(tmp_path):
    path = written(tmp_path / "mine.yaml", "corvi2023")
    guarantee = {"target_fpr": 0.01, "n_real": 400, "false_positives": 0, "upper_bound": 0.009}
    keys = {"references": "mine.reals.parquet", "references_sha256": "0" * 64}
    with open(path, "a") as file:
        file.write(yaml.safe_dump({"guarantee": guarantee | keys}))
    found = load_ensemble_card(path).guarantee
    assert found.model_dump(exclude_unset=True) == guarantee


def test_ensemble_of_the_command_line_is_named_after_detectors():
    detectors = ["corvi2023:thumb1024", "./b.yaml:small", "v1.5"]
    named = build_ensemble(detectors)
    assert named.name == "corvi2023:thumb1024+b:small+v1.5"
    assert [member.detector for member in named.members] == detectors
    assert (named.thresholds.real_below, named.thresholds.fake_above) == (0.0, 0.0)


def test_decision_facts_keep_their_old_form():
    facts = {"rule": "weighted", "bias": 0.5, "weights": [2.0, 1.0]}
    facts["thresholds"] = {"real_below": 0.0, "fake_above": 0.0}
    assert get_decision_settings(card(**WEIGHTED, bias=0.5)) == facts


def test_decision_facts_name_whatever_changes_a_decision():
    changed = [
        card(rule="max"),
        card(bias=1.0),
        card(rule="stacked", stacking=STACKING),
        card(calibration=Platt(slope=1.0, intercept=0.5)),
        card(thresholds=Thresholds(fake_above=1.0)),
        card(**WEIGHTED),
    ]
    plain, *facts = (get_decision_settings(each) for each in (card(), *changed))
    assert all([plain, *facts].count(each) == 1 for each in facts)
    assert facts[2]["stacking"] == STACKING.model_dump(mode="json")
    assert facts[3]["calibration"] == {"slope": 1.0, "intercept": 0.5}
    other = card(title="other", notes="other", thresholds=Thresholds(measured_on="other"))
    assert get_decision_settings(other) == plain


def test_decision_facts_have_the_numbers_of_a_gate():
    def three(**keys):
        return card(members=tuple(EnsembleMember(detector=name) for name in "abc"), **keys)

    facts = get_decision_settings(three(rule="gated-mean"))
    assert facts["gate"] == {"deviations": 3.5, "floor": 0.5}
    assert get_decision_settings(three(rule="gated-mean", gate=OutlierGate())) == facts
    assert get_decision_settings(three(rule="gated-mean", gate=OutlierGate(floor=1))) != facts
    assert "gate" not in get_decision_settings(three())


def test_wild_is_of_four_backbones_and_two_sizes():
    wild = load_ensemble_card("wild")
    assert wild.rule == "gated-mean"
    cards = [load_card(member.detector) for member in wild.members]
    assert all(one.weights.fitted and one.calibration is None for one in cards)
    assert len({one.backbone.name for one in cards}) == 4
    twice = [one for one in cards if one.backbone.name == "perception-encoder-l14"]
    assert len({one.preprocessing.shape for one in twice}) == 2
    assert wild.thresholds.measured_on is None


def test_operating_points_are_optional_and_do_not_decide():
    card = build_ensemble(["touchstone-tiny"])
    assert "operating_points" not in card.model_dump()
    point = OperatingPoint(rate=0.01, threshold=2.0, false_positive_rate=0.004, upper_bound=0.0099)
    assert point.is_guaranteed
    assert not point.model_copy(update={"upper_bound": 0.011}).is_guaranteed
    more = card.model_copy(update={"operating_points": (point,)})
    assert EnsembleCard.model_validate(more.model_dump(mode="json")) == more
    assert get_decision_settings(more) == get_decision_settings(card)


POINT = {
    "false_positive_rate": 0.02,
    "upper_bound": 0.035,
    "abstain_real": 0.3,
    "abstain_fake": 0.1,
}


@pytest.fixture
def with_points():
    """A card whose thresholds keep 1 %, with a guaranteed and a measured operating point."""
    measured = {"false_positive_rate": 0.09, "upper_bound": 0.13, "recall": 0.9}
    return card(
        thresholds=Thresholds(real_below=-1.0, fake_above=2.0, n_real=500, n_fake=100),
        guarantee=Guarantee(target_fpr=0.01, n_real=500, false_positives=1, upper_bound=0.0095),
        operating_points=(
            OperatingPoint(rate=0.05, threshold=0.5, recall=0.8, **POINT),
            OperatingPoint(rate=0.1, threshold=-2.0, **measured),
        ),
    )


def test_operating_point_replaces_threshold_and_guarantee(with_points):
    chosen = choose_operating_point(with_points, 0.05)
    measured = {"target_fpr": 0.05, "true_positive_rate": 0.8, "n_real": 500, "n_fake": 100}
    assert chosen.thresholds == Thresholds(real_below=-1.0, fake_above=0.5, **measured, **POINT)
    bound = {"n_real": 500, "false_positives": 10, "upper_bound": 0.035}
    assert chosen.guarantee == Guarantee(target_fpr=0.05, **bound)
    assert EnsembleCard.model_validate(chosen.model_dump(mode="json")) == chosen


def test_thresholds_that_state_the_rate_are_its_point(with_points):
    chosen = choose_operating_point(with_points, 0.05)
    assert choose_operating_point(chosen, 0.05) is chosen
    assert (list_rates(with_points), list_rates(chosen)) == ([0.05, 0.1], [0.05, 0.1])
    stated = with_points.model_copy(
        update={"thresholds": with_points.thresholds.model_copy(update={"target_fpr": 0.01})}
    )
    assert list_rates(stated) == [0.01, 0.05, 0.1]


def test_only_a_stated_rate_is_a_fact_of_the_decision(with_points):
    assert "fpr" not in get_decision_settings(with_points)
    assert get_decision_settings(choose_operating_point(with_points, 0.05))["fpr"] == 0.05


def test_percentage_as_rate_is_rejected_with_the_fraction(with_points):
    for rate, fraction in ((5, "0.05 for 5 %"), (0, "0.05 for 5 %"), (0.5, None)):
        with pytest.raises(ConfigError) as refused:
            choose_operating_point(with_points, rate)
        assert (refused.value.hint == f"write {fraction}") == (fraction is not None)


def test_measured_operating_point_keeps_thresholds_ordered(with_points):
    chosen = choose_operating_point(with_points, 0.1)
    assert (chosen.thresholds.real_below, chosen.thresholds.fake_above) == (-2.0, -2.0)
    assert chosen.guarantee.upper_bound > chosen.guarantee.target_fpr


def test_operating_point_of_unknown_rate_is_rejected(with_points):
    with pytest.raises(ConfigError, match=r"rate of 0\.03") as refused:
        choose_operating_point(with_points, 0.03)
    assert refused.value.hint == "choose one of 0.05, 0.1"
    with pytest.raises(ConfigError, match="no operating point") as refused:
        choose_operating_point(card(), 0.05)
    assert "touchstone detectors calibrate" in refused.value.hint


def test_operating_point_of_cascade_is_rejected(with_points):
    stages = {"rule": "cascade", "cascade": Cascade(first=1, band=(-1, 2), audit_share=0.0)}
    cascade = with_points.model_copy(update=stages)
    with pytest.raises(ConfigError, match="cascade"):
        choose_operating_point(cascade, 0.05)
