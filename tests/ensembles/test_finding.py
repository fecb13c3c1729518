"""Which ground makes the finding, and what is said of the others: every ground, and every
contradiction.
"""

import pytest

from ray_app.ensembles import (
    Guarantee,
    Thresholds,
    build_ensemble,
    describe_error_rates,
    find_origin,
    format_error_rates,
)
from ray_app.ensembles.finding import UNSIGNED, describe_rates
from ray_app.images.provenance import (
    AigcLabel,
    Camera,
    ContentCredentials,
    Generator,
    Provenance,
    Watermark,
)

AI, CAPTURED = "trainedAlgorithmicMedia", "digitalCapture"
PART = "compositeWithTrainedAlgorithmicMedia"
MEASURED = Thresholds(false_positive_rate=0.02, true_positive_rate=0.218, n_real=1175, n_fake=792)
FLAGGED = "2 % of 1,175 real images and 21.8 % of 792"
GENERATED = {"generator": Generator(tool="ComfyUI", models=("sd_xl.safetensors",))}
DECLARED = {"digital_source_type": (AI,)}
SDXL = "Stable Diffusion XL reference code"
MARKED = {"watermark": Watermark(of=SDXL, bits=48, length=48, chance=3.6e-15)}
CAMERA = {"camera": Camera(make="Nikon", model="Z 6")}
LABELLED = {"aigc_label": AigcLabel(level="generated", producer="00119111")}
SUSPECTED = {"aigc_label": AigcLabel(level="suspected", producer="00119111")}


def c2pa(state, *codes):
    said = {"ai_generated": AI in codes, "source_types": codes}
    credentials = {"state": state, "signer": "Leica", "claim_generator": "Cam 1"}
    return {"c2pa": ContentCredentials(**credentials, **said)}


def found(verdict=None, thresholds=MEASURED, **said):
    return find_origin(
        Provenance.from_statements(**said).row() if said else None, verdict, thresholds
    )


@pytest.mark.parametrize(
    ("said", "verdict", "finding"),
    [
        ({}, "fake", "flagged by detectors"),
        ({}, "abstain", "left open"),
        ({}, "real", "no evidence found"),
        ({}, None, None),
        (c2pa("trusted", AI), "real", "made by AI, signed by Leica"),
        (c2pa("trusted", PART), "real", "made by AI in part, signed by Leica"),
        (c2pa("trusted", CAPTURED, AI), "real", "made by AI, signed by Leica"),
        (c2pa("intact", AI), "real", "made by AI, signed by Leica (valid, signer unknown)"),
        (c2pa("trusted", CAPTURED), "real", "camera, signed by Leica"),
        (c2pa("intact", CAPTURED), "abstain", "camera, signed by Leica (valid, signer unknown)"),
        (c2pa("trusted"), "abstain", "left open"),
        (c2pa("invalid", AI), "abstain", "says that Cam 1 made it"),
        (c2pa("invalid", CAPTURED), "abstain", "left open"),
        (c2pa("unreadable"), "real", "no evidence found"),
        (MARKED, "real", "carries the watermark of Stable Diffusion XL reference code"),
        (GENERATED, "abstain", "says that ComfyUI made it"),
        (DECLARED, None, "says that a model made it"),
        ({"digital_source_type": (PART,)}, None, "says that a model made part of it"),
        ({"digital_source_type": (CAPTURED,)}, "real", "no evidence found"),
        (CAMERA, "real", "no evidence found"),
        (CAMERA, None, None),
        (LABELLED, "real", "says that the service 00119111 made it"),
        ({"aigc_label": AigcLabel(level="generated")}, None, "says that a model made it"),
        (SUSPECTED, "real", "no evidence found"),
        (SUSPECTED, None, None),
    ],
)  # fmt: skip
def test_the_finding_of_each_ground(said, verdict, finding):
    assert found(verdict, **said).finding == finding


# The strongest first. Of those after it each alone loses against it, in either order of what is
# read.
ORDER = [
    (c2pa("trusted", AI), "made by AI, signed by Leica"),
    (MARKED, "carries the watermark of"),
    (c2pa("intact", AI), "made by AI, signed by Leica (valid"),
    (GENERATED, "says that ComfyUI"),
    ({"verdict": "fake"}, "flagged by detectors"),
    (c2pa("intact", CAPTURED), "camera, signed by Leica (valid"),
    ({"verdict": "real"}, "no evidence found"),
]


@pytest.mark.parametrize("place", range(len(ORDER)))
def test_a_stronger_ground_leads(place):
    said, words = ORDER[place]
    for weaker, _ in ORDER[place + 1 :]:
        if weaker.keys() != said.keys():
            assert found(**weaker, **said).finding.startswith(words)
    broken = found("fake", **c2pa("invalid", AI))
    # what was changed after it was signed is never stronger than what is sound
    assert broken.finding == "flagged by detectors"
    assert broken.grounds[1].says.startswith("it was signed by Leica, then changed; ")
    assert broken.grounds[1].error == UNSIGNED


@pytest.mark.parametrize(
    ("said", "verdict", "finding", "against"),
    [
        (c2pa("trusted", CAPTURED), "fake", "camera, signed by Leica", "against this, detectors see the traces of a model"),
        (c2pa("intact", CAPTURED), "fake", "flagged by detectors",
         "against this, its Content Credentials, signed by Leica (valid, signer unknown), say that a camera took it"),
        (c2pa("trusted", CAPTURED) | GENERATED, "real", "camera, signed by Leica",
         "against this, its metadata says that ComfyUI made it, with sd_xl.safetensors"),
        (GENERATED, "real", "says that ComfyUI made it", "against this, detectors found no evidence of a model"),
        (MARKED, "real", "carries the watermark of Stable Diffusion XL reference code",
         "against this, detectors found no evidence of a model"),
        (c2pa("trusted", AI), "real", "made by AI, signed by Leica", "against this, detectors found no evidence of a model"),
        (CAMERA, "fake", "flagged by detectors", "against this, its EXIF names a camera, Nikon Z 6"),
        (SUSPECTED, "real", "no evidence found",
         "against this, its metadata says that a model may have made it (GB 45438-2025: suspected)"),
        (c2pa("invalid", AI), "real", "says that Cam 1 made it", "against this, detectors found no evidence of a model"),
    ],
)  # fmt: skip
def test_a_contradiction_is_a_ground_and_says_so(said, verdict, finding, against):
    told = found(verdict, **said)
    assert told.finding == finding
    assert against in [ground.says for ground in told.grounds[1:]]
    assert not told.grounds[0].says.startswith("against")


@pytest.mark.parametrize(
    ("make", "model", "name"),
    [
        ("Canon", "Canon EOS 7D", "Canon EOS 7D"),
        ("NIKON CORPORATION", "NIKON D5000", "NIKON D5000"),
        ("Panasonic", "DMC-LC40", "Panasonic DMC-LC40"),
        ("Canon", None, "Canon"),
        (None, "Z 6", "Z 6"),
        ("Pentax", "Pentax", "Pentax"),
    ],
)
def test_camera_is_named_with_its_make_once(make, model, name):
    told = found("real", camera=Camera(make=make, model=model))
    assert told.grounds[1].says == f"its EXIF names a camera, {name}"


def test_what_does_not_contradict_does_not_say_so():
    captured = c2pa("trusted", CAPTURED)
    cases = [("abstain", GENERATED), ("real", CAMERA), ("fake", GENERATED), ("real", captured)]
    for verdict, said in cases:
        told = found(verdict, **said)
        assert not any("against" in ground.says for ground in told.grounds)


def test_each_ground_has_its_error_rate_and_a_claim_has_none():
    told = found("fake", **c2pa("trusted", AI), **MARKED, **GENERATED, **DECLARED, **CAMERA)
    assert [(ground.source, ground.error) for ground in told.grounds] == [
        ("credentials", "signature sound, signer on the trust list"),
        ("watermark", "by chance in 4e-15 of unmarked images"),
        ("declaration", UNSIGNED),
        ("declaration", UNSIGNED),
        ("detectors", f"flagged {FLAGGED} generated images when measured"),
        ("camera", UNSIGNED),
    ]
    assert describe_rates(Thresholds()) == "not measured"
    of_reals = describe_rates(Thresholds(false_positive_rate=0.0011))
    assert of_reals == "flagged 0.11 % of real images when measured"


def test_error_rates_say_how_often_an_ensemble_errs():
    rates = {"false_positive_rate": 0.0098, "true_positive_rate": 0.404}
    measured = Thresholds(**rates, n_real=3671, n_fake=3004, measured_on="unseen photographs")
    assert format_error_rates("mine", measured) == (
        "The ensemble mine flags about 1 % of real images and finds about 40 % of generated ones,"
        " so “no evidence found” does not mean that an image is real"
        " (measured on 3,671 real and 3,004 generated ones, unseen photographs)."
    )
    unmeasured = format_error_rates("own", Thresholds())
    assert unmeasured.startswith("The ensemble own has no measured error rates")
    assert "touchstone detectors calibrate" in unmeasured
    assert format_error_rates("", None) == unmeasured.replace("The ensemble own", "This ensemble")
    partly = format_error_rates("own", Thresholds(false_positive_rate=0.01))
    assert "finds an unmeasured share of generated ones" in partly
    long = Thresholds(false_positive_rate=0.01, measured_on="x" * 9999)
    assert len(format_error_rates("own" * 999, long)) < 500


def test_error_rates_name_the_operating_point_and_its_bound():
    point = {"target_fpr": 0.05, "false_positive_rate": 0.048, "true_positive_rate": 0.69}
    said = format_error_rates("own", Thresholds(**point, upper_bound=0.0553))
    assert said.startswith(
        "With thresholds chosen for 5 % false positives, the ensemble own flags about 4.8 % of real"
    )
    assert "(at most 5.53 %, with 95 % confidence)" in said
    abstains = {"abstain_real": 0.16, "abstain_fake": 0.21, "measured_on": "prints"}
    said = format_error_rates("", Thresholds(**point, **abstains))
    assert "With thresholds chosen for 5 % false positives, this ensemble flags" in said
    assert "finds about 69 % of generated ones (measured on prints)" in said
    assert "leaves 16 % of real images and 21 % of generated ones open" in said
    bound = {"n_real": 9, "false_positives": 0, "upper_bound": 0.05}
    guarantee = Guarantee(target_fpr=0.05, confidence=0.9, **bound)
    thresholds = Thresholds(**point, upper_bound=0.05)
    changes = {"thresholds": thresholds, "guarantee": guarantee}
    card = build_ensemble(["own"]).model_copy(update=changes)
    assert "(at most 5 %, with 90 % confidence)" in describe_error_rates(card)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.0, "0 %"),
        (0.00042, "about 0.04 %"),
        (0.025, "about 2.5 %"),
        (0.8375, "about 84 %"),
        (0.997, "about 99.7 %"),
        (1.0, "100 %"),
    ],
)
def test_rates_are_no_finer_than_they_are_known(rate, words):
    said = format_error_rates("own", Thresholds(false_positive_rate=rate))
    assert f"flags {words} of real images" in said


def test_long_name_is_cut_and_missing_name_is_said():
    told = found("real", generator=Generator(tool="x" * 300))
    assert len(told.finding) < 110
    unnamed = ContentCredentials(state="trusted", ai_generated=True, source_types=(AI,))
    assert found("real", c2pa=unnamed).finding == "made by AI, signed by an unnamed party"
