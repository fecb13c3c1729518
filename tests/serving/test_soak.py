"""`touchstone serve` under minutes of hostile traffic: everybody else is answered, its memory
stays, and nothing is left over.
"""

import os
import random
import signal
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest

from ray_app.serving.engine import golden_image
from tests.make.images import bomb_png
from tests.serving.hostile_requests import HOSTILE, SCORE
from tests.serving.http.live import ask, connected, request, wait_for
from tests.serving.served import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("TOUCHSTONE_SOAK_S", "210"))
SETTLING_S = 90  # in which memory settles; what follows is compared by halves
MB = 2**20


class Hostility:
    """What one attacker does, again and again, until it is told to stop. `attacks` counts."""

    def __init__(self, endpoint, seed):
        self.endpoint, self.random, self.attacks = endpoint, random.Random(seed), 0
        self.images = [
            golden_image()[:5000],
            bomb_png(30_000),
            b"\xff\xd8\xff\xe0" + bytes(20_000),
            b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(500),
        ]

    def run(self, stopped):
        while not stopped.is_set():
            attack = self.random.choice(
                [self.malformed, self.image, self.leaves, self.half_open, self.large, self.kills]
            )
            with suppress(OSError, ValueError, IndexError):  # it is closed on us: that is right
                attack()
            self.attacks += 1

    def malformed(self):
        data, _ = self.random.choice(list(HOSTILE.values()))
        ask(self.endpoint.port, data)

    def image(self):
        self.endpoint.score(self.random.choice(self.images))

    def leaves(self):
        whole = request(
            "POST", SCORE, f"Content-Length: {len(golden_image())}", body=golden_image()
        )
        with connected(self.endpoint.port) as connection:
            connection.sendall(whole[: self.random.randrange(len(whole))])
            if self.random.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def half_open(self):
        held = [
            socket.create_connection(("127.0.0.1", self.endpoint.port), timeout=5)
            for _ in range(20)
        ]
        for connection in held:
            connection.sendall(request("GET", "/healthz", "X: ")[:-4])
        held[0].recv(1000)  # until it is told 408, or closed
        for connection in held:
            connection.close()

    def large(self):
        with connected(self.endpoint.port) as connection:
            connection.sendall(request("POST", SCORE, "Transfer-Encoding: chunked"))
            for _ in range(40):
                connection.sendall(b"100000\r\n" + bytes(MB) + b"\r\n")
            connection.recv(1000)

    def kills(self):
        """Now and then, as if an image did."""
        chance = self.random.random()
        if chance < 0.05:
            for decoder in self.endpoint.decoders():
                with suppress(psutil.NoSuchProcess):
                    decoder.send_signal(self.random.choice([signal.SIGKILL, signal.SIGSTOP]))
        elif chance < 0.06:
            for worker in self.endpoint.workers()[:1]:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()


def worker_bytes(endpoint):
    """Memory of the largest worker; 0 while none runs."""
    sizes = [0]
    for worker in endpoint.workers():
        with suppress(psutil.NoSuchProcess):
            sizes.append(worker.memory_info().rss)
    return max(sizes)


def test_minutes_of_hostility():
    options = ("limits.decode_limit_s=2", "limits.max_body_bytes=33554432")
    with served(
        "--workers", "2", *(word for option in options for word in ("--set", option))
    ) as endpoint:
        server, stopped = endpoint.workers()[0].parent(), threading.Event()
        attackers = [Hostility(endpoint, seed) for seed in range(6)]
        threads = [threading.Thread(target=one.run, args=(stopped,)) for one in attackers]
        statuses, waits, memory = {}, [], []
        for thread in threads:
            thread.start()
        started = time.monotonic()
        while (began := time.monotonic()) < started + SECONDS:
            status = endpoint.score()
            waits.append(time.monotonic() - began)
            statuses[status] = statuses.get(status, 0) + 1
            memory.append((began - started, server.memory_info().rss, worker_bytes(endpoint)))
        stopped.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "an attacker still waits for an answer"
        # A decoder that was stopped costs one more image.
        wait_for(lambda: [endpoint.score() for _ in range(4)] == [200] * 4, 60)
        wait_for(
            lambda: (
                not [
                    one for one in server.net_connections() if one.status == psutil.CONN_ESTABLISHED
                ]
            ),
            120,
        )
        wait_for(lambda: len(endpoint.decoders()) == 2, 60)
        settled = np.array([sizes for second, *sizes in memory if second > SETTLING_S])
        early, late = (np.median(part, axis=0) / MB for part in np.array_split(settled, 2))
        attacks = sum(one.attacks for one in attackers)
        print(f"\n{attacks} attacks; others: {statuses}, at most {max(waits):.1f} s")
        print(f"RSS of the HTTP process and the largest worker: {early} → {late} MB")
        assert (late < 1.03 * early).all()
        assert set(statuses) <= {200, 422, 503}, (
            "422: its decoder was killed under it; 503: told to come back"
        )
        assert statuses[200] > 0.8 * sum(statuses.values())
        assert max(waits) < 30
        assert server.num_threads() < 40
        assert server.num_fds() < 60
        assert "Traceback" not in endpoint.logs()["stderr"]
