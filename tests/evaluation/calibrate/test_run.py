"""The whole command on runs of drawn images: what it writes, says and refuses."""

import json

import jsonschema
import numpy as np
import pytest
import yaml

from benchmarks.seeded import write_card
from docs_site import schemas
from ray_app.cli.main import main
from ray_app.detectors import load_card
from ray_app.ensembles import decide, load_ensemble_card
from ray_app.runs import RunDirectory
from tests.evaluation.calibrate.drawn import drawn
from tests.evaluation.calibrate.runs import labels_of, run_of


@pytest.fixture(scope="module")
def images():
    return drawn(1_600, 800)


@pytest.fixture(scope="module")
def place(images, tmp_path_factory):
    """A folder with a run and its labels."""
    folder = tmp_path_factory.mktemp("calibrate")
    url = run_of(folder / "run", images)
    labels_of(folder / "labels.csv", images)
    run = RunDirectory.open(url)
    told = run.describe()
    told["identity"] |= {"precision": {"coarse": "fp32", "fine": "bf16"}, "resize": "fast"}
    run.write_json("run.json", told)
    return folder


def calibrate(place, out, *options):
    return main(
        [
            "detectors",
            "calibrate",
            str(place / "run"),
            "--labels",
            str(place / "labels.csv"),
            "--out",
            str(out),
            *options,
        ]
    )


@pytest.fixture(scope="module")
def card(place):
    assert calibrate(place, place / "mine.yaml") == 0
    return load_ensemble_card(place / "mine.yaml")


def test_the_card_decides_as_its_guarantee_says(images, place, card):
    calibrations = dict(
        zip(images.detectors, (member.calibration for member in card.members), strict=True)
    )
    decided = decide(card, images.scores, calibrations=calibrations)
    assert decided.calibrated
    promise = card.guarantee
    assert promise.target_fpr == 0.01
    assert promise.upper_bound <= 0.01
    scores = decided.score[~images.fake]
    assert promise.n_real == card.thresholds.n_real == 800
    assert (len(scores), promise.groups, promise.effective) == (1_600, 1_600, 1_600)
    assert (
        promise.false_positives <= int((scores >= card.thresholds.fake_above).sum()) <= 0.01 * 1_600
    )


def test_the_card_says_of_what_it_speaks(images, card):
    population = card.population
    assert [part.name for part in population.parts] == ["fit", "calibrate", "choose"]
    assert sum(part.n_real for part in population.parts) == 1_600
    assert sum(part.n_fake for part in population.parts) == 800
    assert population.prevalence == 800 / 2_400
    assert population.generators == tuple(f"generator {number}" for number in range(6))
    assert [feature.name for feature in population.features][:3] == [
        "score",
        "score:coarse",
        "score:fine",
    ]
    [score] = [feature for feature in population.features if feature.name == "score"]
    assert (sum(score.real), sum(score.fake)) == (1_600, 800), (
        "a part has but some of the generators"
    )
    assert population.seen.formats == ("JPEG",)
    assert dict(card.settings.precision) == {"coarse": "fp32", "fine": "bf16"}
    assert (card.settings.resize, card.settings.decoders) == ("fast", ("a decoder",))
    assert "1,600 real and 800 fake images" in card.thresholds.measured_on
    assert "Near-duplicates are not known" in card.notes


def test_the_same_command_writes_the_same_files_and_its_report_is_what_json_prints(
    place, card, capsys
):
    assert calibrate(place, place / "again" / "mine.yaml", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (place / "again" / "mine.yaml").read_bytes() == (place / "mine.yaml").read_bytes()
    assert calibrate(place, place / "other" / "mine.yaml", "--seed", "1") == 0
    assert (
        load_ensemble_card(place / "other" / "mine.yaml").population.parts != card.population.parts
    )
    kept = json.loads((place / "again" / "mine.report.json").read_text())
    assert printed == kept | {"report": str(place / "again" / "mine.report.json")}
    jsonschema.validate(kept, json.loads(schemas.files()["schemas/calibration.json"]))
    assert kept["images"] == {"used": 2_400, "labelled": 2_400, "left_out": {}}
    assert (
        kept["systems"][0]["after"]["ece"]["value"] < kept["systems"][0]["before"]["ece"]["value"]
    )
    assert len(kept["generators_left_out"]) == 6


def test_what_is_said_on_the_terminal(place, capsys):
    options = [
        "--rule",
        "cascade",
        "--share",
        "0.4",
        "--fpr",
        "0.02",
        "--prevalence",
        "0.01",
        "--detector",
        "coarse",
        "--detector",
        "fine",
    ]
    assert calibrate(place, place / "said.yaml", *options) == 0
    said = capsys.readouterr()
    for words in ("images: 2,400 of 2,400 labelled", "under 2 % of reals, at 95 % confidence", "chances where 1 % of the images are fake",
                  "cascade: 1 detector on every image", "allowed: 40 %", "generator, left out", "JPEG quality"):  # fmt: skip
        assert words in said.out
    assert all(len(line) <= 140 for line in said.out.splitlines())
    written = yaml.safe_load((place / "said.yaml").read_text())
    assert written["rule"] == "cascade"
    assert written["cascade"]["early"]["rule"] == "stacked"
    scores = [
        feature
        for feature in load_ensemble_card(place / "said.yaml").population.features
        if feature.name.startswith("score:")
    ]
    assert sum(scores[0].real) > sum(scores[1].real) > 0, (
        "later detectors are known only of what they look at"
    )


def test_a_detectors_own_card_is_named_from_the_new_cards_place(images, tmp_path):
    (tmp_path / "cards").mkdir()
    detector = write_card(load_card("tiny-ladeda"), tmp_path / "cards" / "tiny-ladeda.yaml")
    images = type(images)(**{**vars(images), "scores": {"tiny-ladeda": images.scores["fine"]}})
    ensemble = {"name": "one", "title": "one", "members": [{"detector": str(detector)}]}
    run_of(tmp_path / "run", images, ensemble)
    labels_of(tmp_path / "labels.csv", images)
    for out, named in (
        (tmp_path / "mine.yaml", "cards/tiny-ladeda.yaml"),
        (tmp_path / "below" / "mine.yaml", str(detector)),
    ):
        assert calibrate(tmp_path, out) == 0
        assert yaml.safe_load(out.read_text())["members"][0]["detector"] == named
        assert load_ensemble_card(out).members[0].detector == str(detector)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fpr", "0.001"], "1,600 labelled reals; a 0.1 % target at 95 % needs 2,995"),
        (["--rule", "cascade", "--first", "2"], "the run has 2 detectors"),
        (["--share", "0.1"], "--share belongs to --rule cascade"),
        (["--out", "s3://bucket/card.yaml"], "not a YAML file of this machine"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(place, options, words, capsys):
    assert calibrate(place, place / "refused.yaml", *options) == 2
    assert words in capsys.readouterr().err
    assert not (place / "refused.yaml").exists()


def test_a_near_duplicate_on_both_sides_is_refused_or_regrouped(images, tmp_path, capsys):
    parts = (
        np.random.default_rng(0)
        .choice(["fit", "calibrate", "choose"], len(images), p=[0.3, 0.2, 0.5])
        .tolist()
    )
    phash = [
        f"{number:016x}"
        for number in np.random.default_rng(0).integers(0, 2**63, len(images)).tolist()
    ]
    first, second = parts.index("fit"), parts.index("choose")
    phash[second] = f"{int(phash[first], 16) ^ 0b101:016x}"
    run_of(tmp_path / "run", images)
    labels_of(tmp_path / "labels.csv", images, part=parts, phash=phash)
    assert calibrate(tmp_path, tmp_path / "card.yaml", "--share-generators") == 2
    said = capsys.readouterr().err
    assert "--regroup" in said
    assert calibrate(tmp_path, tmp_path / "card.yaml", "--share-generators", "--regroup") == 0
    assert "were there: 1 image." in load_ensemble_card(tmp_path / "card.yaml").notes
