"""The whole command on runs of drawn images: what it writes, prints, and rejects."""

import csv
import json
import shlex

import numpy as np
import pytest
import yaml

from benchmarks.seeded import write_card
from ray_app.cli.main import main
from ray_app.detectors import load_card
from ray_app.ensembles import decide, load_ensemble_card
from ray_app.evaluation.assemble import read_result
from ray_app.runs import RunDirectory
from tests.evaluation.calibrate.drawn import drawn
from tests.evaluation.calibrate.runs import labels_of, run_of
from tests.evaluation.compare.compared import RUN_SETTINGS, TINY, log_odds, make_run, names_of


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
    files = [str(place / "run"), "--labels", str(place / "labels.csv"), "--out", str(out)]
    return main(["detectors", "calibrate", *files, *options])


@pytest.fixture(scope="module")
def card(place):
    assert calibrate(place, place / "mine.yaml") == 0
    return load_ensemble_card(place / "mine.yaml")


def test_the_card_decides_as_its_guarantee_says(images, place, card):
    own = (member.calibration for member in card.members)
    calibrations = dict(zip(images.detectors, own, strict=True))
    decided = decide(card, images.scores, calibrations=calibrations)
    assert decided.calibrated
    promise = card.guarantee
    assert promise.target_fpr == 0.01
    assert promise.upper_bound <= 0.01
    scores = decided.score[~images.fake]
    assert promise.n_real == card.thresholds.n_real == 800
    assert (len(scores), promise.groups, promise.effective) == (1_600, 1_600, 1_600)
    flagged = int((scores >= card.thresholds.fake_above).sum())
    assert promise.false_positives <= flagged <= 0.01 * 1_600


def test_card_describes_its_population_and_settings(images, card):
    population = card.population
    assert [part.name for part in population.parts] == ["fit", "calibrate", "choose"]
    assert sum(part.n_real for part in population.parts) == 1_600
    assert sum(part.n_fake for part in population.parts) == 800
    assert population.prevalence == 800 / 2_400
    assert population.generators == tuple(f"generator {number}" for number in range(6))
    score, *others = population.features
    assert [score.name, *(one.name for one in others[:2])] == [
        "score",
        "score:coarse",
        "score:fine",
    ]
    # All parts count, since one part has only some of the generators.
    assert (sum(score.real), sum(score.fake)) == (1_600, 800)
    assert population.seen.formats == ("JPEG",)
    assert dict(card.settings.precision) == {"coarse": "fp32", "fine": "bf16"}
    assert (card.settings.resize, card.settings.decoders) == ("fast", ("a decoder",))
    assert "held-out part of 1,600 real and 800 fake" in card.thresholds.measured_on
    assert "Near-duplicates are not known" in card.notes


def test_same_command_writes_the_same_files(place, card, capsys):
    assert calibrate(place, place / "again" / "mine.yaml", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    for name in ("mine.yaml", "mine.held-out.csv"):
        assert (place / "again" / name).read_bytes() == (place / name).read_bytes()
    assert calibrate(place, place / "other" / "mine.yaml", "--seed", "1") == 0
    other = load_ensemble_card(place / "other" / "mine.yaml")
    assert other.population.parts != card.population.parts
    assert printed["images"] == {"used": 2_400, "labelled": 2_400, "left_out": {}}
    points = [point.model_dump() for point in card.operating_points]
    assert printed["operating_points"] == points
    assert printed["guarantee"] == card.guarantee.model_dump()


def test_printed_commands_evaluate_the_held_out_part(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    is_fake = np.arange(1_500) % 3 == 0
    labels = [
        ("fake", f"maker-{place % 7}") if fake else ("real", "camera")
        for place, fake in enumerate(is_fake)
    ]
    names, scores = names_of(len(is_fake)), {TINY: log_odds(0, len(is_fake), is_fake)}
    run = make_run(tmp_path / "photos", names, scores, labels=labels, settings=RUN_SETTINGS)
    assert main(["detectors", "calibrate", run, "--out", "mine.yaml", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    card = load_ensemble_card("mine.yaml")
    with open(printed["held_out"], newline="") as file:
        classes = [row["label"] for row in csv.DictReader(file)]
    [part] = [part for part in card.population.parts if part.name == "choose"]
    assert (classes.count("real"), classes.count("fake")) == (part.n_real, part.n_fake)
    for command in printed["commands"]:
        assert main(shlex.split(command)[1:]) == 0
    [system] = read_result(str(tmp_path / "mine-figures")).systems
    assert system.flagged.value == pytest.approx(card.thresholds.false_positive_rate)
    assert system.figure("tpr").value == pytest.approx(card.thresholds.true_positive_rate)


def test_terminal_shows_parts_points_and_commands(place, capsys):
    options = ["--rule", "cascade", "--share", "0.4", "--fpr", "0.02", "--prevalence", "0.01"]
    detectors = ["--detector", "coarse", "--detector", "fine"]
    assert calibrate(place, place / "said.yaml", *options, *detectors) == 0
    output = capsys.readouterr().out
    for words in (
        "images: 2,400 of 2,400 labelled",
        "at most 2 % of reals, guaranteed with 95 % confidence",
        "right if 1 % of the images are fake",
        "cascade: 1 detector on every image",
        "touchstone runs decide",
        "touchstone evaluate",
    ):
        assert words in output
    rows = {line.split()[0]: line.split()[-1] for line in output.splitlines() if " % " in line}
    assert (rows["0.1"], rows["2"]) == ("measured", "guaranteed")
    written = yaml.safe_load((place / "said.yaml").read_text())
    assert written["rule"] == "cascade"
    assert written["cascade"]["early"]["rule"] == "stacked"
    features = load_ensemble_card(place / "said.yaml").population.features
    scores = [feature for feature in features if feature.name.startswith("score:")]
    # The second detector has scores only of what it looks at.
    assert sum(scores[0].real) > sum(scores[1].real) > 0


def test_card_names_detectors_relative_to_its_folder(images, tmp_path):
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
        (
            ["--fpr", "0.001"],
            "1,600 images labelled real; an FPR of 0.1 % at 95 % confidence needs 2,995",
        ),
        (["--share", "0.1"], "--share requires --rule cascade"),
        (["--out", "s3://bucket/card.yaml"], "must be a local YAML file"),
    ],
)
def test_impossible_settings_are_refused_and_write_nothing(place, options, words, capsys):
    assert calibrate(place, place / "refused.yaml", *options) == 2
    assert words in capsys.readouterr().err
    assert not (place / "refused.yaml").exists()
