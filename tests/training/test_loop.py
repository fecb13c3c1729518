"""Trainings in this process: whole ones, and steps that are interrupted."""

import threading
from itertools import count

import pytest

from ray_app.errors import StorageError
from ray_app.storage import Store
from ray_app.training import checkpoints, loop
from ray_app.training.run import train
from ray_app.training.worker import Worker
from tests.make.servers.faulty import error_body
from tests.make.servers.faulty_proxy import FaultyProxy, Handler
from tests.training.small_recipes import batch
from tests.training.trainings import committed, config, job_here

HELD_S = 0.5


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


class HoldingProxy(FaultyProxy):
    """Before a real S3 server: the weights of a checkpoint wait for `released`, or for half a
    second, and are then refused if `refuses` is set.
    """

    def __init__(self, upstream, *, refuses):
        self.released, self.refuses = threading.Event(), refuses
        super().__init__(upstream, share=0.0, handler=_Holding)


class _Holding(Handler):
    def _asked(self, body):
        owner = self.server.owner
        if self.command == "PUT" and self.path.endswith("/model.safetensors"):
            owner.released.wait(HELD_S)
            if owner.refuses:
                return 403, error_body("AccessDenied", "of the test"), {}
        return super()._asked(body)


class AskedWorker(Worker):
    """During its first step, it is asked to stop, or told that its machine will be taken away.

    In the second case it is asked to stop after it has saved, and `saved` is the step in storage.
    """

    def __init__(self, out, *, has_notice):
        super().__init__()
        self._out, self._has_notice = out, has_notice
        self._is_asked = self._was_told = False
        self.saved = None

    def batches(self, job, first):
        return (batch(step, side=64) for step in count(first))

    def show(self, line):
        self._is_asked = True

    def is_notice_due(self):
        return self._has_notice and self._is_asked

    def has_notice(self):
        self._was_told = True
        return True

    def is_stopping(self):
        if self._was_told:
            self.saved = committed(self._out)
        return self._was_told if self._has_notice else self._is_asked


@pytest.fixture
def interrupted(labelled, s3, monkeypatch):
    """Train on a bucket until the worker is asked to stop, during an upload of its first step;
    return the step that is in storage, and the one that was there after a notice.
    """

    def interrupted(name, *, has_notice=False, refuses=False):
        out = f"{s3.bucket(name)}/out"
        with HoldingProxy(s3.url, refuses=refuses) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            given = config(labelled, out=out, faults={"checkpoint_every": 1})
            worker = AskedWorker(out, has_notice=has_notice)
            try:
                assert not loop.train(job_here(given)[0], worker)
                return committed(out), worker.saved
            finally:
                proxy.released.set()

    return interrupted


def test_stop_waits_for_the_upload_of_its_step(interrupted):
    assert interrupted("stopped") == (1, None)


def test_notice_waits_for_the_upload_of_its_step(interrupted):
    assert interrupted("noticed", has_notice=True) == (1, 1)


def test_stop_raises_the_error_of_a_failed_upload(interrupted):
    with pytest.raises(StorageError, match="cannot write"):
        interrupted("refused", refuses=True)
