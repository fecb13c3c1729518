"""Archives of real files through a real detector: shifted in quality, size or content they are noticed; the same kind is not.

A card's guarantee in `score` itself: an unlike archive abstains, settings follow the card, waiving is said.
"""

import json

import numpy as np
import pytest
import yaml

from ray_app.cli.main import main
from ray_app.ensembles import PopulationTally
from ray_app.inference.ensemble import Ensemble
from ray_app.reports import plan_lines
from ray_app.runs.schema import UNLIKE
from ray_app.scoring import ScoreConfig
from ray_app.scoring.forecast.forecast import forecast
from ray_app.scoring.guarantee import shifts_of
from tests.scoring.conftest import score_here
from tests.scoring.shifted import OTHER, calibrated_card, encoded, pictures, properties_in

CALIBRATED, IMAGES = 240, 64


@pytest.fixture(scope="module")
def tiny():
    return Ensemble("tiny", precision="fp32")


@pytest.fixture(scope="module")
def card(tiny):
    drawn = list(pictures(1, CALIBRATED))
    files = [encoded(pixels, number) for number, (pixels, _) in enumerate(drawn)]
    return calibrated_card(properties_in(tiny, files), np.array([fake for _, fake in drawn]))


def noticed(tiny, card, *, scenes=None, **changes):
    drawn = pictures(2, IMAGES, fakes=0.1, **({"scenes": scenes} if scenes else {}))
    files = [encoded(pixels, 5_000 + number, **changes) for number, (pixels, _) in enumerate(drawn)]
    tally = PopulationTally(card.population.features)
    tally.add(properties_in(tiny, files))
    shifts = shifts_of(card, tally)
    assert [row.feature for row in shifts] == [feature.name for feature in card.population.features]
    return {row.feature for row in shifts if row.noticed}


def test_the_same_kind_of_pictures_is_not_noticed_though_few_are_fake(tiny, card):
    assert noticed(tiny, card) == set()


def test_what_differs_is_noticed_by_name(tiny, card):
    assert "jpeg_quality" in noticed(tiny, card, qualities=(50, 60))
    assert {"megapixels", "short_side_px"} <= noticed(tiny, card, scale=0.75)
    assert {"score", "score:touchstone-tiny"} <= noticed(tiny, card, scenes=OTHER)  # other content: by what the detector says of it


def test_an_unlike_archive_abstains_says_so_and_stays_what_it_is(card, tmp_path, capsys):
    path, archive = tmp_path / "calibrated.yaml", tmp_path / "photos"
    path.write_text(yaml.safe_dump(json.loads(card.model_dump_json(exclude_none=True))))
    archive.mkdir()
    for number, (pixels, _) in enumerate(pictures(2, 40)):
        (archive / f"{number:03}.jpg").write_bytes(encoded(pixels, number, qualities=(30, 40)))
    finished, rows = score_here(tmp_path / "run", archive, ensemble=str(path))
    guarantee = finished.summary["guarantee"]
    assert (guarantee["holds"], guarantee["images"]) == (False, 40)
    assert finished.summary["verdicts"] == {"real": 0, "fake": 0, "abstain": 40}
    assert {row["verdict_reason"] for row in rows.values()} == {"unlike_archive"}
    assert {f"{UNLIKE}: {row['verdict_detail']}" for row in rows.values()} == {guarantee["unlike"]}
    assert "The guarantee does not hold." in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main(["results", str(tmp_path / "run"), "--limit", "3"]) == 0
    assert "guarantee: does not hold for this archive" in capsys.readouterr().err

    waived, verdicts = score_here(tmp_path / "waived", archive, ensemble=str(path), waive_guarantee=True, resize="fast")
    assert {row["verdict"] for row in verdicts.values()} <= {"real", "fake"}
    assert waived.summary["guarantee"]["settings"] == ["resize fast (calibrated with exact)"]
    assert (waived.summary["guarantee"]["holds"], waived.summary["identity"]["waive_guarantee"]) == (False, True)

    config = ScoreConfig(source=(str(archive),), ensemble=str(path))
    lines = "\n".join(plan_lines(forecast(config, probe=0)))
    assert "guarantee   of real images like those of “simulated photographs” at most 5 % are called fake (with 95 % confidence)" in lines
    loose = config.model_copy(update={"resize": "fast", "waive_guarantee": True})
    assert "does not hold: scored otherwise, resize fast" in "\n".join(plan_lines(forecast(loose, probe=0)))
