"""Several writers at once, of which a store must let in one."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

from ray_app.errors import IdentityError
from ray_app.storage import Lease, Store
from tests.make.leases import is_released, read_lease


def check_one_of_eight_creates(store):
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return Store.open(store.url).create("contested", b"writer %d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert store.read("contested") == b"writer %d" % won.index(True)


def check_one_of_six_acquires(store):
    number = int(store.names("lease")[-1].removesuffix(".json"))
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
    assert winner.number == number + 1
    assert read_lease(store)["token"] == winner.holder.token
    winner.release()
    assert is_released(store)
