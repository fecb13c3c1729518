import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ray_app.training.trainer import SessionReport, TrainingSession, open_listener, open_store
from tests.make import stranger

TIMEOUT = timedelta(seconds=60)


@pytest.mark.timeout(180)
def test_store_listens_on_one_address_only(monkeypatch):
    """Each rank is a thread here, so that torch and Ray are imported once."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    before = stranger.listeners(os.getpid())
    listener = open_listener("127.0.0.1")
    host, port = listener.getsockname()

    def join(rank):
        store = open_store(host, port, 2, TIMEOUT, listener if rank == 0 else None)
        group = dist.ProcessGroupGloo(store, rank, 2, TIMEOUT)
        total = torch.tensor([rank + 1])
        group.allreduce([total]).wait()
        return int(total), store, group

    with ThreadPoolExecutor(2) as threads:
        joined = list(threads.map(join, (0, 1)))
    assert [total for total, *_ in joined] == [3, 3]
    listening = stranger.listeners(os.getpid()) - before
    assert port in {listener.port for listener in listening}
    assert {listener.address for listener in listening} == {"127.0.0.1"}


def test_session_keeps_the_first_failure_and_stops_workers():
    session = TrainingSession()
    session.report({"step": 1}, 1)
    session.fail(b"late", only_before_steps=True)
    session.say("a line")
    assert session.read() == SessionReport({"step": 1}, steps=1, said=("a line",))
    assert session.read().said == ()
    session.fail(b"first")
    session.fail(b"second")
    assert session.read().failure == b"first"
    assert not session.is_stopping()
    session.stop()
    assert session.is_stopping()
