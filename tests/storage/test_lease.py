import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from ray_app.child_process import identify_process, is_running, read_start_time
from ray_app.errors import IdentityError
from ray_app.storage import Lease, Store
from ray_app.storage.lease import Holder
from tests.make.leases import is_released, read_lease
from tests.storage.contention import check_one_of_six_acquires

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


def elsewhere() -> Holder:
    return replace(Holder.this_process(), host="far-away", machine="far-away boot pid", pid=4242)


@EITHER_STORE
def test_one_command_at_a_time_holds_a_directory(store):
    store.write("run.json", b"{}")
    for number in (1, 2):
        with Lease(store) as lease:
            assert lease.number == number
            assert read_lease(store)["token"] == lease.holder.token
            with pytest.raises(IdentityError, match=f"process {os.getpid()}") as caught:
                Lease(store).acquire()
            assert caught.value.exit_code == 2
        assert is_released(store)


@EITHER_STORE
def test_command_that_writes_nothing_leaves_no_file(store):
    for _ in range(2):
        with Lease(store) as lease:
            assert lease.number == 1
    assert store.names("lease") == store.folders("") == []


def test_directory_that_is_used_often_keeps_three_leases(store):
    store.write("run.json", b"{}")
    for number in range(1, 8):
        with Lease(store) as lease:
            assert lease.number == number
    assert store.names("lease") == ["00005.json", "00006.json", "00007.json"]


def test_process_of_this_machine_is_replaced_when_it_is_dead(store, caplog):
    store.write("run.json", b"{}")
    command, pipe = [sys.executable, "-c", HOLD, store.url], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        first = read_lease(store)["beat"]
        wait_until(lambda: read_lease(store)["beat"] > first + 1)
        with pytest.raises(IdentityError, match=f"process {holder.pid}"):
            Lease(store, sleep=pytest.fail).acquire()
        started = read_start_time(holder.pid)
        assert is_running(holder.pid, started)
        holder.kill()
        # a zombie, which nobody has waited for, does not run
        wait_until(lambda: not is_running(holder.pid, started))
        with Lease(store, sleep=pytest.fail) as lease:
            assert lease.number == 2
            assert read_lease(store)["token"] == lease.holder.token
    assert f"pid={holder.pid} reason='the last command there ended without" in caplog.text
    assert is_released(store)
    assert is_running(*identify_process())


# The second path is of Touchstone up to 0.24.
EITHER_PATH = pytest.mark.parametrize("path", ["lease/00041.json", "lease.json"])


@EITHER_PATH
def test_silent_holder_elsewhere_is_replaced_after_ttl(path, store):
    store.write(path, elsewhere().encode())
    time = Watched()
    with Lease(store, clock=time.clock, sleep=time.sleep, poll_s=3.0) as lease:
        assert time.now == 30.0
        assert lease.number == (42 if path == "lease/00041.json" else 1)
        assert read_lease(store)["token"] == lease.holder.token
    assert not store.exists("lease.json")


@EITHER_PATH
def test_holder_elsewhere_that_beats_keeps_a_directory(path, store):
    other = elsewhere()
    store.write(path, other.encode())

    def beat():
        if time.now >= 9:
            store.write(path, replace(other, beat=1).encode())

    time = Watched(during=beat)
    with pytest.raises(IdentityError, match="host far-away, process 4242"):
        Lease(store, clock=time.clock, sleep=time.sleep, poll_s=3.0).acquire()
    assert time.now == 9.0


@EITHER_PATH
def test_holder_elsewhere_that_gives_back_is_followed_at_once(path, store):
    other = elsewhere()
    store.write(path, other.encode())

    def give_back():
        if path == "lease.json":
            store.delete(path)
        else:
            store.write(path, replace(other, released=True).encode())

    time = Watched(during=give_back)
    with Lease(store, clock=time.clock, sleep=time.sleep, poll_s=3.0):
        assert time.now == 3.0


def test_lease_of_an_older_version_is_respected(store):
    """0.24 knows neither `released` nor the folder."""
    fields = json.loads(Holder.this_process().encode())
    del fields["released"]
    store.write("lease.json", json.dumps(fields).encode())
    with pytest.raises(IdentityError, match=f"in use by another run .* process {os.getpid()}"):
        Lease(store).acquire()
    assert (store.exists("lease.json"), store.folders("")) == (True, [])
    store.write("lease.json", json.dumps(fields | {"started": "long ago"}).encode())
    with Lease(store, sleep=pytest.fail):
        assert store.names("") == []


@pytest.mark.parametrize("path", ["lease/00002.json", "lease.json"])
def test_file_that_is_not_a_lease_is_named(path, store):
    store.write(path, b'{"made": "by a later version"}')
    with pytest.raises(IdentityError, match=f"{path} is not a lease of this version") as caught:
        Lease(store).acquire()
    assert caught.value.hint == "delete it if no run is using the directory"


@EITHER_STORE
def test_one_of_many_replaces_a_dead_holder(store):
    dead = replace(Holder.this_process(), started="long ago")
    store.write("lease/00007.json", dead.encode())
    check_one_of_six_acquires(store)


def test_holder_that_sees_a_higher_number_stops(store):
    with Lease(store, beat_s=0.02) as lease:
        lease.check()
        thief = elsewhere()
        store.write("lease/00002.json", thief.encode())
        wait_until(lease.lost.is_set)
        with pytest.raises(IdentityError, match="taken over this directory"):
            lease.check()
    assert read_lease(store)["token"] == thief.token
    assert not read_lease(store)["released"]


def wait_until(condition) -> None:
    tick = threading.Event()
    for _ in range(1000):
        if condition():
            return
        tick.wait(0.02)
    pytest.fail("it did not happen within 20 s")
