"""Cards that know what breaks their detector: verdicts abstain there, the same in a run, in
`decide`, in Python and over HTTP.
"""

from contextlib import closing

import pytest

import ray_app
from ray_app.cli.main import main
from ray_app.errors import IdentityError, Reason
from ray_app.reports import render_run_report, summary_lines
from ray_app.runs import RunDirectory
from ray_app.scoring.decide import decide_run
from ray_app.serving import ServeConfig
from ray_app.serving.engine import Engine
from tests.make.cards import write_ensemble, write_tiny
from tests.make.images import chart, encoded, photo
from tests.make.runs import rows_of, score_here
from tests.serving.in_process import answers_of

BOUNDS = {
    "jpeg_quality": {"below": 60},
    "graphics": {"above": 0.55, "what": "a drawing or a screenshot"},
}
BLIND = "It judges whole pictures; edits of a part may pass."
DOUBTS = {
    "good.jpg": None,
    "good.png": None,
    "poor.jpg": "JPEG quality 30, below the valid range (60)",
    "chart.png": "above the valid range (0.55): a drawing or a screenshot",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos, and cards whose detector knows bounds (`fragile`) or none (`plain`);
    they decide on every score.
    """
    folder = tmp_path_factory.mktemp("fragile")
    (folder / "photos").mkdir()
    for name, data in {
        "good.jpg": encoded(photo(300, 240), "JPEG", quality=90),
        "good.png": encoded(photo(300, 240, 1), "PNG"),
        "poor.jpg": encoded(photo(300, 240, 2), "JPEG", quality=30),
        "chart.png": encoded(chart(), "PNG"),
    }.items():
        (folder / "photos" / name).write_bytes(data)
    fragile = {"fragility": {"abstains": BOUNDS}, "blind_to": [BLIND]}
    for name, cut, facts in (
        ("plain", 0.0, {}),
        ("fragile", 0.0, fragile),
        ("fragile-high", 50.0, fragile),
    ):
        card = write_tiny(folder / f"{name}.yaml", **facts)
        thresholds = {"real_below": cut, "fake_above": cut}
        write_ensemble(folder / f"ensemble-{name}.yaml", [card.name], thresholds=thresholds)
    return folder


def scored(place, name):
    ensemble = str(place / f"ensemble-{name}.yaml")
    return score_here(place / name, place / "photos", ensemble=ensemble)


@pytest.fixture(scope="module")
def fragile(place):
    return scored(place, "fragile")


@pytest.fixture(scope="module")
def plain(place):
    return scored(place, "plain")


def named(rows):
    return {uri.rpartition("/")[2]: row for uri, row in rows.items()}


def check(name, verdict, reason, detail):
    doubt = DOUBTS[name]
    if doubt is None:
        assert verdict in ("real", "fake"), name
        assert reason is None
    else:
        assert (verdict, reason) == ("abstain", Reason.OUT_OF_RANGE), name
        assert detail.startswith("touchstone-tiny: ")
        assert detail.endswith(doubt)


def test_verdicts_abstain_out_of_bounds_and_scores_stay(place, fragile, plain):
    rows, usual = named(fragile[1]), named(plain[1])
    for name, row in rows.items():
        check(name, row["verdict"], row["verdict_reason"], row["verdict_detail"])
        assert row["score"] == usual[name]["score"]
        assert usual[name]["verdict"] in ("real", "fake")
    assert rows["chart.png"]["graphics"] > 0.55 > rows["good.png"]["graphics"]
    assert "texture" not in rows["chart.png"], "what no card bounds is not measured"
    assert "graphics" not in usual["chart.png"]
    noted, without = (
        RunDirectory.open(str(place / name)).describe()["identity"] for name in ("fragile", "plain")
    )
    bounds = {"jpeg_quality": {"below": 60.0}, "graphics": {"above": 0.55}}
    assert noted["detectors"]["touchstone-tiny"].pop("abstains") == bounds
    assert noted["detectors"] == without["detectors"]
    with pytest.raises(IdentityError, match=r"abstains\.jpeg_quality"):
        score_here(place / "plain", place / "photos", ensemble=str(place / "ensemble-fragile.yaml"))


def test_decide_applies_the_bounds(place, fragile, tmp_path):
    high, again = str(tmp_path / "high"), str(tmp_path / "again")
    decide_run(str(place / "fragile"), str(place / "ensemble-fragile-high.yaml"), high)
    for name, row in named(rows_of(high)).items():
        check(name, row["verdict"], row["verdict_reason"], row["verdict_detail"])
        assert row["verdict"] in ("real", "abstain")
    decide_run(high, str(place / "ensemble-fragile.yaml"), again)
    assert rows_of(again) == fragile[1]


def test_python_and_the_endpoint_apply_the_bounds(place):
    files = {path.name: path.read_bytes() for path in sorted((place / "photos").iterdir())}
    card = str(place / "ensemble-fragile.yaml")
    in_python = ray_app.load_ensemble(card).score(list(files.values()))
    with closing(Engine(ServeConfig(ensembles=(card,)))) as engine:
        answers = answers_of(engine, files.values())
    for name, result, answer in zip(files, in_python, answers, strict=True):
        for one in (result, answer):
            check(name, one.verdict, one.verdict_reason, one.verdict_detail)
        assert (answer.detectors["touchstone-tiny"].abstained or "").endswith(DOUBTS[name] or "")


def test_blind_spots_are_stated_with_every_verdict(place, fragile, plain, capsys):
    summary = fragile[0].summary
    assert summary["ensemble"]["blind_to"] == [BLIND]
    assert f"limits: {BLIND}" in summary_lines(summary)
    assert BLIND in render_run_report(summary)
    assert "blind_to" not in plain[0].summary["ensemble"]
    assert main(["detectors", "show", str(place / "fragile.yaml")]) == 0
    assert BLIND in " ".join(capsys.readouterr().out.split())
