"""One decoder process: the answers of the process itself, and a status for whatever becomes of it; nothing that it says is believed."""

import dataclasses
import fcntl
import json
import os
import signal
import struct
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ray_app.errors import InputError, Status, TouchstoneError
from ray_app.images import ImageLimits, ImageRefused, decode_image, inspect_bytes
from ray_app.inference.decoder_pool import DecoderProcess
from tests.images import factory

LIMITS = ImageLimits()


@pytest.fixture(scope="module")
def decoder():
    """One child for all tests; it starts anew where a test has killed it."""
    with DecoderProcess(LIMITS, wall_limit_s=20.0) as decoder:
        yield decoder


class Scripted(DecoderProcess):
    """A child that behaves as a script says once a request has come."""

    script = ""

    def _command(self) -> list[str]:
        known = "import os, signal, struct, sys, ctypes; READY, REQUEST, ANSWER = b'+', struct.Struct('<Q'), struct.Struct('<QQ')"
        start = f"{known}; os.write(1, READY); sys.stdin.buffer.read(REQUEST.size)\n"
        return [sys.executable, "-ISc", start + self.script]


def refusal(decoder: DecoderProcess, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        decoder.decode(data)
    return caught.value


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def bytes_waiting(pipe: int) -> int:
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def wait_until(condition, limit_s: float = 20.0) -> None:
    deadline, tick = time.monotonic() + limit_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.005)


def test_the_child_decodes_as_the_process_itself_does(decoder):
    for _, make in [*factory.SOUND.values(), *factory.ODD.values()]:
        data = make()
        ours, theirs = decode_image(data, LIMITS), decoder.decode(data)
        assert theirs.facts == ours.facts
        np.testing.assert_array_equal(np.asarray(theirs.pixels), np.asarray(ours.pixels))


def test_the_child_refuses_as_the_process_itself_does(decoder):
    for name, (status, make) in factory.REFUSED.items():
        data = make()
        error = refusal(decoder, data)
        assert error.status == status, name
        with pytest.raises(ImageRefused) as caught:
            decode_image(data, LIMITS)
        ours = caught.value
        assert (error.detail, error.facts, error.limit, error.observed) == (ours.detail, ours.facts, ours.limit, ours.observed)


def test_one_child_serves_many_and_brings_neither_torch_nor_ray(decoder):
    decoder.decode(factory.jpeg())
    pid = decoder.pid
    assert pid is not None
    decoder.decode(factory.png())
    assert decoder.pid == pid
    loaded = Path(f"/proc/{pid}/maps").read_text()
    assert "_imaging" in loaded
    assert "torch" not in loaded
    assert "_raylet" not in loaded
    assert "pyarrow" not in loaded


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGBUS)", "SIGBUS"),
        ("os._exit(3)", "exit code 3"),
        ("os.write(1, ANSWER.pack(10, 10) + b'half'); os._exit(0)", "exit code 0"),
    ],
)
def test_a_crash_is_a_status_that_names_the_signal(script, words):
    class Crashing(Scripted):
        pass

    Crashing.script = script
    with Crashing(LIMITS) as decoder:
        error = refusal(decoder, factory.jpeg())
    assert error.status == Status.DECODER_CRASHED
    assert words in error.detail
    assert error.facts.format == "JPEG"


def test_after_a_crash_in_the_middle_the_next_image_gets_a_new_child(decoder):
    decoder.decode(factory.jpeg())
    pid = decoder.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))
    requests = decoder._child.stdin.fileno()
    errors: list[ImageRefused] = []
    thread = threading.Thread(target=lambda: errors.append(refusal(decoder, factory.png())))
    thread.start()
    wait_until(lambda: bytes_waiting(requests) > 1000)
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)
    thread.join()
    assert errors[0].status == Status.DECODER_CRASHED
    assert "SIGSEGV" in errors[0].detail
    assert decoder.decode(factory.png()).pixels.size == (96, 64)
    assert decoder.pid != pid


def test_a_child_that_hangs_is_killed_at_the_wall_limit():
    with DecoderProcess(LIMITS, wall_limit_s=0.3) as decoder:
        decoder.decode(factory.jpeg())
        pid = decoder.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid))
        started = time.monotonic()
        # Larger than a pipe holds: the hang is met while writing.
        error = refusal(decoder, factory.jpeg() + bytes(1_000_000))
        assert error.status == Status.DECODE_TIMEOUT
        assert "0.3 s" in error.detail
        assert error.limit == 0.3
        assert 0.2 < time.monotonic() - started < 5
        assert not Path(f"/proc/{pid}").exists()
        assert decoder.decode(factory.jpeg()).pixels.size == (96, 64)


def test_a_child_killed_while_idle_costs_no_image(decoder):
    decoder.decode(factory.jpeg())
    pid = decoder.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: decoder.pid is None)
    assert decoder.decode(factory.jpeg()).pixels.size == (96, 64)


def test_a_child_that_cannot_start_is_the_systems_fault():
    class Broken(DecoderProcess):
        def _command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit(7)"]

    with Broken(LIMITS) as decoder, pytest.raises(TouchstoneError, match="exit code 7") as caught:
        decoder.decode(factory.jpeg())
    assert caught.value.hint
    assert not isinstance(caught.value, ImageRefused)


CLAIMS = [
    {"frames": 2**40}, {"frames": -1}, {"orientation": 99}, {"quality": 2**7}, {"width": 2**31, "height": 1}, {"mode": "\x1b[31m"},
    {"mode": "M" * 101}, {"decoder": "two\nlines"}, {"flags": ["alpha", "alpha"]}, {"flags": ["broken_exif", "alpha"]}, {"flags": ["odd"]},
]  # fmt: skip


def claimed(data, refused, **claim):
    """What a process that decoded a hostile file may say of it."""
    facts = dataclasses.asdict(inspect_bytes(data)) | {"width": 96, "height": 64} | claim
    return json.dumps({"facts": facts, "refused": {"status": "corrupt_image", "detail": "no"} if refused else None}).encode()


@pytest.mark.parametrize("refused", [False, True])
def test_a_claim_that_no_row_can_hold_is_not_believed(decoder, refused):
    data = factory.jpeg()
    assert decoder._believed(claimed(data, refused), data).facts.width == 96
    for claim in CLAIMS:
        with pytest.raises((ValueError, InputError)):
            pytest.fail(f"believed: {decoder._believed(claimed(data, refused, **claim), data)}")


def test_who_claims_it_counts_as_crashed():
    class TakenOver(Scripted):
        pass

    data = factory.jpeg()
    answer, pixels = claimed(data, False, **CLAIMS[0]), 3 * 96 * 64
    TakenOver.script = f"answer = {answer!r}; os.write(1, ANSWER.pack(len(answer), {pixels}) + answer + bytes({pixels}))"
    with TakenOver(LIMITS) as decoder:
        error = refusal(decoder, data)
    assert (error.status, error.detail) == (Status.DECODER_CRASHED, "the decoder process gave no valid answer")
    assert error.facts == inspect_bytes(data)


def test_what_a_child_says_of_a_refusal_is_one_line():
    class TakenOver(Scripted):
        pass

    data = factory.jpeg()
    report = {
        "facts": dataclasses.asdict(inspect_bytes(data)),
        "refused": {"status": "corrupt_image", "detail": "red\x1b[31m\nor\u202e not"},
    }
    answer = json.dumps(report).encode()
    TakenOver.script = f"answer = {answer!r}; os.write(1, ANSWER.pack(len(answer), 0) + answer)"
    with TakenOver(LIMITS) as decoder:
        assert refusal(decoder, data).detail == "red\\x1b[31m\\nor\\u202e not"


def test_close_ends_the_child():
    decoder = DecoderProcess(LIMITS)
    decoder.decode(factory.jpeg())
    pid = decoder.pid
    decoder.close()
    decoder.close()
    assert decoder.pid is None
    assert not Path(f"/proc/{pid}").exists()
