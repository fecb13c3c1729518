"""A card's guarantee in `score` itself: an unlike archive abstains, settings follow the card, waiving is said."""

import json

import pytest
import yaml

from ray_app.cli.main import main
from ray_app.inference.ensemble import Ensemble
from ray_app.reports import plan_lines
from ray_app.runs.schema import UNLIKE
from ray_app.scoring import ScoreConfig
from ray_app.scoring.forecast.forecast import forecast
from tests.scoring.conftest import score_here
from tests.scoring.shifted import calibrated_card, encoded, pictures, properties_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """The path of a card that was calibrated on weakly compressed pictures."""
    drawn = list(pictures(1, 160))
    files = [encoded(pixels, number) for number, (pixels, _) in enumerate(drawn)]
    found = calibrated_card(properties_in(Ensemble("tiny", precision="fp32"), files), [fake for _, fake in drawn])
    path = tmp_path_factory.mktemp("card") / "calibrated.yaml"
    path.write_text(yaml.safe_dump(json.loads(found.model_dump_json(exclude_none=True))))
    return str(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Strongly compressed pictures."""
    folder = tmp_path_factory.mktemp("archive") / "photos"
    folder.mkdir()
    for number, (pixels, _) in enumerate(pictures(2, 48)):
        (folder / f"{number:03}.jpg").write_bytes(encoded(pixels, number, qualities=(30, 40)))
    return folder


def test_an_unlike_archive_abstains_says_so_and_stays_what_it_is(archive, card, tmp_path, capsys):
    finished, rows = score_here(tmp_path / "run", archive, ensemble=card)
    guarantee = finished.summary["guarantee"]
    assert (guarantee["holds"], guarantee["images"]) == (False, 48)
    assert finished.summary["verdicts"] == {"real": 0, "fake": 0, "abstain": 48}
    assert {row["verdict_reason"] for row in rows.values()} == {"unlike_archive"}
    assert {f"{UNLIKE}: {row['verdict_detail']}" for row in rows.values()} == {guarantee["unlike"]}
    assert "The guarantee does not hold." in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main(["results", str(tmp_path / "run"), "--limit", "3"]) == 0
    assert "guarantee: does not hold for this archive" in capsys.readouterr().err
    again, same = score_here(tmp_path / "run", archive, ensemble=card)
    assert same == rows
    assert again.summary["guarantee"] == guarantee

    waived, verdicts = score_here(tmp_path / "waived", archive, ensemble=card, waive_guarantee=True, resize="fast")
    assert {row["verdict"] for row in verdicts.values()} <= {"real", "fake"}
    assert waived.summary["guarantee"]["settings"] == ["resize fast (calibrated with exact)"]
    assert (waived.summary["guarantee"]["holds"], waived.summary["identity"]["waive_guarantee"]) == (False, True)


def test_a_plan_says_what_is_promised(archive, card):
    config = ScoreConfig(source=(str(archive),), ensemble=card)
    lines = "\n".join(plan_lines(forecast(config, probe=0)))
    assert "guarantee   of real images like those of “simulated photographs” at most 5 % are called fake (with 95 % confidence)" in lines
    assert "compares the archive with those images" in lines
    loose = config.model_copy(update={"resize": "fast", "waive_guarantee": True})
    assert "does not hold: scored otherwise, resize fast" in "\n".join(plan_lines(forecast(loose, probe=0)))
