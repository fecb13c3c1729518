import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ray_app.child_process import is_running, own_process, start_of
from ray_app.errors import IdentityError
from ray_app.storage import Lease, Store
from ray_app.storage.lease import Holder

HOLD = """
import sys
from ray_app.storage import Lease, Store
with Lease(Store.open(sys.argv[1]), beat_s=0.05):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(request, tmp_path):
    if getattr(request, "param", "local") == "local":
        return Store.open(str(tmp_path / "run"))
    return Store.open(f"{request.getfixturevalue('s3').bucket('leases')}/{request.node.name}")


EITHER_STORE = pytest.mark.parametrize("store", ["local", "s3"], indirect=True)


class Watched:
    """A clock that moves by waiting only; `during` runs at each wait."""

    def __init__(self, during=lambda: None) -> None:
        self.now = 0.0
        self.during = during

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()


def elsewhere(**changes) -> Holder:
    return replace(
        Holder.this_process(), host="far-away", machine="far-away boot pid", pid=4242, **changes
    )


def written(store) -> dict:
    return json.loads(store.read("lease.json"))


@EITHER_STORE
def test_one_at_a_time_and_free_afterwards(store):
    with Lease(store) as lease:
        assert written(store)["token"] == lease.holder.token
        with pytest.raises(IdentityError, match=f"process {os.getpid()}") as caught:
            Lease(store).acquire()
        assert caught.value.exit_code == 2
    assert not store.exists("lease.json")
    with Lease(store):
        pass
    assert store.names("") == []


def test_a_process_of_this_machine_keeps_it_while_it_lives_and_is_replaced_at_once(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        first = written(store)["beat"]
        wait_until(lambda: written(store)["beat"] > first + 1)
        with pytest.raises(IdentityError, match=f"process {holder.pid}"):
            Lease(store, sleep=pytest.fail).acquire()
        started = start_of(holder.pid)
        assert is_running(holder.pid, started)
        holder.kill()
        # a zombie, which nobody has waited for, does not run
        wait_until(lambda: not is_running(holder.pid, started))
        with Lease(store, sleep=pytest.fail) as lease:
            assert written(store)["token"] == lease.holder.token
    assert store.names("") == []
    assert is_running(*own_process())


@pytest.mark.parametrize("claim_left", [False, True])
def test_a_silent_holder_elsewhere_is_replaced_after_its_time(claim_left, store):
    """As is a claim that somebody made who died with the lease."""
    store.write("lease.json", elsewhere().encode())
    if claim_left:
        dead = replace(Holder.this_process(), started="long ago")
        store.write("lease.json", dead.encode())
        store.write(f"lease.{dead.token}.json", elsewhere().encode())
    time = Watched()
    with Lease(store, clock=time.clock, sleep=time.sleep, poll_s=3.0) as lease:
        assert time.now == 30.0
        assert written(store)["token"] == lease.holder.token
    assert store.names("") == []


def test_a_holder_elsewhere_that_beats_keeps_it(store):
    other = elsewhere()
    store.write("lease.json", other.encode())
    time = Watched(
        during=lambda: time.now < 9 or store.write("lease.json", replace(other, beat=1).encode())
    )
    with pytest.raises(IdentityError, match="host far-away, process 4242"):
        Lease(store, clock=time.clock, sleep=time.sleep, poll_s=3.0).acquire()
    assert time.now == 9.0


@EITHER_STORE
def test_of_many_that_find_a_dead_holder_one_gets_its_place(store):
    store.write("lease.json", replace(Holder.this_process(), started="long ago").encode())
    of_six_that_acquire_one_does(store)


def of_six_that_acquire_one_does(store):
    leases = [Lease(store, beat_s=0.05, poll_s=0.01) for _ in range(6)]
    start = threading.Barrier(len(leases))

    def acquire(lease):
        start.wait()
        with contextlib.suppress(IdentityError):
            lease.acquire()
            return True
        return False

    with ThreadPoolExecutor(len(leases)) as pool:
        won = list(pool.map(acquire, leases))
    assert won.count(True) == 1
    winner = leases[won.index(True)]
    assert written(store)["token"] == winner.holder.token
    winner.release()
    assert store.names("") == []


def test_a_lost_lease_says_so_and_is_not_released(store):
    with Lease(store, beat_s=0.02) as lease:
        lease.check()
        thief = elsewhere()
        store.write("lease.json", thief.encode())
        # A heartbeat already past its check may write once more; the thief's own beat would find
        # that, here we insist.
        wait_until(lambda: lease.lost.is_set() or store.write("lease.json", thief.encode()))
        with pytest.raises(IdentityError, match="taken this directory over"):
            lease.check()
    assert written(store)["token"] == thief.token


def wait_until(condition) -> None:
    tick = threading.Event()
    for _ in range(1000):
        if condition():
            return
        tick.wait(0.02)
    pytest.fail("it did not happen within 20 s")
