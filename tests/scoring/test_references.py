"""The references of a card travel with its runs: through `score` and `decide`."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.decide import decide_run
from ray_app.scoring.guarantee import references_of
from ray_app.scoring.run import score_archive
from tests.evaluation.compare.compared import TINY, log_odds, make_run, names_of
from tests.scoring.conftest import write_ensemble


def write_card(folder, scores, threshold=1.0):
    folder.mkdir()
    path = folder / "card.reals.parquet"
    pq.write_table(pa.table({"score": pa.array(np.sort(scores), pa.float64())}), path)
    guarantee = {"target_fpr": 0.01, "n_real": len(scores), "false_positives": 0, "upper_bound": 0.009, "references": path.name,
                 "references_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}  # fmt: skip
    return str(
        write_ensemble(
            folder / "card.yaml",
            guarantee=guarantee,
            thresholds={"real_below": 0.0, "fake_above": threshold},
        )
    )


@pytest.fixture
def decidable(tmp_path):
    """A finished run that no Ray has made."""
    settings = {
        "limits": ImageLimits().model_dump(mode="json"),
        "precision": {TINY: "fp32"},
        "resize": "exact",
    }
    url = make_run(tmp_path / "made", names_of(40), {TINY: log_odds(0, 40)}, settings=settings)
    return RunDirectory.open(url)


def test_deciding_brings_the_references_of_the_new_card(decidable, tmp_path):
    first, second = (
        write_card(tmp_path / "first", np.arange(400.0)),
        write_card(tmp_path / "second", np.arange(500.0), threshold=2.0),
    )
    url, outs = decidable.store.url, [str(tmp_path / f"decided-{number}") for number in range(4)]
    decide_run(url, first, outs[0])
    assert references_of(RunDirectory.open(outs[0])).tolist() == np.arange(400.0).tolist()
    decide_run(outs[0], second, outs[1])
    assert len(references_of(RunDirectory.open(outs[1]))) == 500
    (tmp_path / "first" / "card.reals.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="not the references that the card was written with"):
        decide_run(url, first, outs[2])
    assert not RunDirectory.open(outs[2]).exists()
    decide_run(outs[1], "tiny", outs[3])
    with pytest.raises(ConfigError, match="no scores of known reals to compare with"):
        references_of(RunDirectory.open(outs[3]))


def test_a_run_keeps_the_references_of_its_card(score, archive, tmp_path):
    card = write_card(tmp_path / "card", np.arange(400.0))
    score(archive, ensemble=card)
    run = RunDirectory.open(str(tmp_path / "run"))
    assert references_of(run).tolist() == np.arange(400.0).tolist()
    score(archive, ensemble=card)
    assert len(references_of(run)) == 400


def test_a_card_without_its_references_is_refused_before_anything_is_scored(tmp_path):
    card = write_card(tmp_path / "card", np.arange(400.0))
    (tmp_path / "card" / "card.reals.parquet").unlink()
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match="the references of its guarantee"):
        score_archive(
            ScoreConfig(
                source=(str(tmp_path / "photos"),), out=str(tmp_path / "out"), ensemble=card
            )
        )
    assert not (tmp_path / "out" / "run.json").exists()
