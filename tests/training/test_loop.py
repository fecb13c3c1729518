"""A whole training in this process, from images to a card."""

from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.run import train
from tests.training.trainings import config


def test_training_stops_when_patience_is_exhausted(labelled, tmp_path):
    given = config(
        labelled,
        out=str(tmp_path),
        optimiser={"rate": 1e-12},
        validation={"every": 2, "patience": 1},
    )
    facts = train(given).facts
    assert facts["steps"] == 4
    assert [line["step"] for line in facts["validations"]] == [2, 4]
    latest = checkpoints.latest_checkpoint(Store.open(str(tmp_path)))
    assert (latest.step, latest.finished) == (4, True)
    assert train(given).was_complete
