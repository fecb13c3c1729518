import pytest

from ray_app.config import config_root, find_config, named_configs
from ray_app.detectors import load_card
from ray_app.detectors.card import Platt
from ray_app.ensembles import (
    Cascade,
    EnsembleCard,
    EnsembleMember,
    OutlierGate,
    Stacking,
    Thresholds,
    decision_facts,
    ensemble_of,
    load_ensemble_card,
)
from ray_app.errors import ConfigError

DETECTORS = {
    "community-forensics-vits384", "openfake-swinv2-small", "siglip2-open-deepfake", "clip-d-10k-plus", "corvi2023", "internvl-prompt",
    "maskclip", "unifd", "npr", "cnndetection", "ladeda9", "tiny-ladeda", "touchstone-tiny", "touchstone-photo", "touchstone-photo-detail",
    "touchstone-photo-permissive", "touchstone-crop-permissive",
    "vfm-pe-l14", "vfm-dinov3-l16", "vfm-dinov3-convnext", "vfm-metaclip2-h14", "vfm-siglip2-so400m",
}  # fmt: skip
"""Every detector that is to be shipped."""

FUSIONS = {
    "fusion-clip-corvi": "soft-or",
    "fusion-clip-corvi-mean-logit": "mean-logit",
    "fusion-clip-corvi-mean-probability": "mean-probability",
    "fusion-clip-corvi-max": "max",
    "fusion-clip-corvi-median": "median",
    "fusion-clip-corvi-log-sum-exp": "log-sum-exp",
    "fusion-clip-corvi-openfake-v1": "soft-or",
}
STACKING = Stacking(mean=(0.0, 1.0), scale=(1.0, 2.0), coefficients=(0.5, 0.25), intercept=-1.0)

shipped = pytest.mark.parametrize("name", named_configs("ensembles"))


def card(**keys):
    return EnsembleCard(**{"name": "e", "title": "e", "members": (EnsembleMember(detector="a"), EnsembleMember(detector="b"))} | keys)


def written(path, *detectors):
    members = ", ".join(f"{{detector: '{detector}'}}" for detector in detectors)
    path.write_text(f"name: mine\ntitle: mine\nmembers: [{members}]\n")
    return path


@shipped
def test_every_shipped_ensemble_has_a_title_notes_and_known_detectors(name):
    ensemble = load_ensemble_card(name)
    assert ensemble.name == name
    assert ensemble.title
    assert ensemble.notes
    for member in ensemble.members:
        base, _, variant = member.detector.partition(":")
        assert base in DETECTORS
        if base in named_configs("detectors"):
            assert load_card(member.detector).name == member.detector
            assert not variant or variant in load_card(base).variants


@shipped
def test_thresholds_come_with_their_rates_or_with_none(name):
    thresholds = load_ensemble_card(name).thresholds
    rates = [thresholds.false_positive_rate, thresholds.true_positive_rate, thresholds.n_real, thresholds.n_fake, thresholds.measured_on]
    assert None not in rates or rates == [None] * 5


@pytest.mark.parametrize(("name", "rule"), FUSIONS.items())
def test_each_published_fusion_has_its_card(name, rule):
    fusion = load_ensemble_card(name)
    variant = ":thumb1024" if name.endswith("openfake-v1") else ""
    assert [member.detector for member in fusion.members] == [f"clip-d-10k-plus{variant}", f"corvi2023{variant}"]
    assert (fusion.rule, fusion.thresholds, fusion.calibration) == (rule, Thresholds(real_below=0, fake_above=0), None)
    assert fusion.notes.startswith("Source:")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rule": "stacked"}, "`stacking` belongs to rule stacked, and that rule needs it"),
        ({"stacking": STACKING}, "`stacking` belongs to rule stacked, and that rule needs it .rule: mean-logit."),
        ({"rule": "stacked", "stacking": STACKING.model_copy(update={"scale": (1.0,)})}, "stacking.scale has 1 numbers for 2 members"),
        (
            {"rule": "soft-or", "members": (EnsembleMember(detector="a", weight=2.0),)},
            "weights other than 1 need rule weighted .rule: soft-or.",
        ),
        ({"rule": "cascade"}, "`cascade` belongs to rule cascade, and that rule needs it"),
        ({"rule": "cascade", "cascade": Cascade(first=2, band=(0, 1))}, "cascade.first is 2 of 2 detectors: none is left"),
        ({"rule": "first-past"}, "'mean-logit', 'mean-probability', 'soft-or'"),
        ({"members": (EnsembleMember(detector="a"), EnsembleMember(detector="a"))}, "a detector is named twice"),
        ({"calibration": {"slope": 0, "intercept": 0}}, "slope\n  Input should be greater than 0"),
    ],
)
def test_what_does_not_fit_together_is_said(keys, message):
    with pytest.raises(ValueError, match=message):
        card(**keys)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="scale"):
        Stacking(mean=(0.0,), scale=(0.0,), coefficients=(1.0,), intercept=0.0)


def test_errors_of_a_file_name_the_file(tmp_path):
    path = written(tmp_path / "mine.yaml", "a")
    path.write_text(path.read_text() + "rule: stacked\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*`stacking` belongs to rule stacked"):
        load_ensemble_card(path)


def test_two_variants_of_one_detector_are_two_members():
    assert len(card(members=(EnsembleMember(detector="corvi2023"), EnsembleMember(detector="corvi2023:thumb1024"))).members) == 2


def test_detector_paths_are_relative_to_the_card_and_keep_their_variant(tmp_path):
    (tmp_path / "own.yaml").write_text("")
    mine = written(tmp_path / "mine.yaml", "own.yaml", "own.yaml:small", "./own.yaml:large", "corvi2023", "corvi2023:thumb1024")
    assert [member.detector for member in load_ensemble_card(mine).members] == [
        f"{tmp_path}/own.yaml", f"{tmp_path}/own.yaml:small", f"{tmp_path}/own.yaml:large", "corvi2023", "corvi2023:thumb1024",
    ]  # fmt: skip


def test_what_an_ensemble_names_by_path_and_variant_is_what_loads(tmp_path):
    tiny = (config_root() / "detectors" / "touchstone-tiny.yaml").read_text()
    (tmp_path / "own.yaml").write_text(tiny + "variants: {wide: {title: wide}}\n")
    mine = load_ensemble_card(written(tmp_path / "mine.yaml", "own.yaml:wide"))
    assert load_card(mine.members[0].detector).title == "wide"


def test_a_shipped_ensemble_means_shipped_detectors():
    assert find_config("ensembles", "default").parent == config_root() / "ensembles"
    assert [member.detector for member in load_ensemble_card("tiny").members] == ["touchstone-tiny"]


def test_detectors_from_the_command_line_split_at_zero():
    ensemble = ensemble_of(["a", "/some/where/b.yaml"])
    assert (ensemble.name, ensemble.thresholds.real_below, ensemble.thresholds.fake_above) == ("a+b", 0.0, 0.0)


def test_an_ensemble_from_the_command_line_is_named_after_variants_too():
    named = ensemble_of(["corvi2023:thumb1024", "./b.yaml:small", "v1.5"])
    assert named.name == "corvi2023:thumb1024+b:small+v1.5"
    assert [member.detector for member in named.members] == ["corvi2023:thumb1024", "./b.yaml:small", "v1.5"]


def test_decision_facts_keep_their_old_form_where_nothing_new_is_set():
    facts = decision_facts(card(rule="weighted", members=(EnsembleMember(detector="a", weight=2), EnsembleMember(detector="b")), bias=0.5))
    assert facts == {
        "rule": "weighted", "bias": 0.5, "weights": [2.0, 1.0], "thresholds": {"real_below": 0.0, "fake_above": 0.0},
    }  # fmt: skip


def test_decision_facts_name_whatever_changes_a_decision():
    plain = card()
    changed = [
        card(rule="max"),
        card(bias=1.0),
        card(rule="stacked", stacking=STACKING),
        card(calibration=Platt(slope=1.0, intercept=0.5)),
        card(thresholds=Thresholds(fake_above=1.0)),
        card(rule="weighted", members=(EnsembleMember(detector="a", weight=2), EnsembleMember(detector="b"))),
    ]
    facts = [decision_facts(each) for each in (plain, *changed)]
    assert all(facts.count(each) == 1 for each in facts)
    assert facts[3]["stacking"] == {"mean": [0.0, 1.0], "scale": [1.0, 2.0], "coefficients": [0.5, 0.25], "intercept": -1.0}
    assert facts[4]["calibration"] == {"slope": 1.0, "intercept": 0.5}
    assert decision_facts(card(title="other", notes="other", thresholds=Thresholds(measured_on="other"))) == facts[0]


def three(**keys):
    return card(members=tuple(EnsembleMember(detector=name) for name in "abc"), **keys)


def test_a_gate_belongs_to_its_rule_and_decides():
    with pytest.raises(ValueError, match="`gate` belongs to rule gated-mean"):
        three(gate=OutlierGate())
    with pytest.raises(ValueError, match="gated-mean needs 3 detectors"):
        card(rule="gated-mean")
    facts = decision_facts(three(rule="gated-mean"))
    assert facts["gate"] == {"deviations": 3.5, "floor": 0.5}
    assert decision_facts(three(rule="gated-mean", gate=OutlierGate())) == facts
    assert decision_facts(three(rule="gated-mean", gate=OutlierGate(floor=1))) != facts
    assert "gate" not in decision_facts(three())


def test_wild_is_of_four_backbones_and_two_sizes():
    wild = load_ensemble_card("wild")
    assert wild.rule == "gated-mean"
    cards = [load_card(member.detector) for member in wild.members]
    assert all(one.weights.fitted and one.calibration is None for one in cards)
    assert len({one.backbone.name for one in cards}) == 4
    assert len({one.preprocessing.shape for one in cards if one.backbone.name == "perception-encoder-l14"}) == 2
    assert wild.thresholds.measured_on is None
