import dataclasses
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import Status, TouchstoneError
from ray_app.images import Breadcrumb, ChildDecoder, ImageLimits, ImageRefused, Watchdog, decode_image, inspect_bytes
from tests.images import factory

ROOT = Path(__file__).parents[2]


def start(folder: Path, script: str) -> subprocess.Popen[bytes]:
    code = "import os, signal, sys, time, threading; from pathlib import Path; from ray_app.images import *\n"
    code += "crumb = Breadcrumb(Path(sys.argv[1]))\n" + script
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)


def run(folder: Path, script: str) -> int:
    process = start(folder, script)
    process.communicate(timeout=60)
    return process.returncode


def test_a_killed_process_leaves_the_id_that_it_was_decoding(tmp_path):
    code = run(tmp_path, "crumb.note(1); crumb.clear(); crumb.note(-(2**63)); os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    assert Breadcrumb.left_in(tmp_path) == {-(2**63)}
    assert Breadcrumb.left_in(tmp_path, remove=True) == {-(2**63)}
    assert Breadcrumb.left_in(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_crash_in_c_leaves_the_id(tmp_path):
    assert run(tmp_path, "import ctypes; crumb.note(77); ctypes.string_at(0)") == -signal.SIGSEGV
    assert Breadcrumb.left_in(tmp_path) == {77}


def test_nothing_is_left_between_decodes_or_after_a_good_end(tmp_path):
    assert run(tmp_path, "crumb.note(5); crumb.clear(); os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    assert Breadcrumb.left_in(tmp_path, remove=True) == set()
    assert run(tmp_path, "crumb.note(5); crumb.clear(); crumb.close()") == 0
    assert list(tmp_path.iterdir()) == []
    assert Breadcrumb.left_in(tmp_path / "never made") == set()


def test_the_living_are_not_suspected_and_each_thread_has_its_own(tmp_path):
    mine, other = Breadcrumb(tmp_path), Breadcrumb(tmp_path)
    mine.note(1)
    other.note(2)
    assert Breadcrumb.left_in(tmp_path, remove=True) == set()
    process = start(tmp_path, "second = Breadcrumb(Path(sys.argv[1])); crumb.note(3); second.note(4); print(flush=True); signal.pause()")
    assert process.stdout is not None
    process.stdout.readline()
    assert Breadcrumb.left_in(tmp_path) == set()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Breadcrumb.left_in(tmp_path) == {3, 4}, "a zombie is dead"
    process.communicate()
    assert Breadcrumb.left_in(tmp_path) == {3, 4}
    mine.close()
    other.close()


def test_a_later_process_under_the_same_id_is_not_mistaken(tmp_path):
    crumb = Breadcrumb(tmp_path)
    crumb.note(9)
    pid, start_time, serial = crumb.path.stem.split("-")
    (tmp_path / f"{pid}-{int(start_time) - 1}-{serial}.crumb").write_bytes(crumb.path.read_bytes())
    assert Breadcrumb.left_in(tmp_path) == {9}
    crumb.close()


def test_a_note_costs_next_to_nothing(tmp_path):
    crumb = Breadcrumb(tmp_path)
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        for image_id in range(10_000):
            crumb.note(image_id)
            crumb.clear()
        best = min(best, (time.perf_counter() - started) / 10_000)
    crumb.close()
    assert best < 2e-6


def test_a_hang_ends_the_process_and_leaves_the_id(tmp_path):
    started = time.monotonic()
    code = run(tmp_path, "watchdog = Watchdog(crumb, 0.5).__enter__(); crumb.note(42); threading.Event().wait()")
    assert code == Watchdog.EXIT_CODE
    assert time.monotonic() - started < 30
    assert Breadcrumb.left_in(tmp_path) == {42}


def test_many_short_decodes_and_idleness_are_no_hang(tmp_path):
    script = """
with Watchdog(crumb, 0.2):
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        crumb.note(1); crumb.clear()
    threading.Event().wait(0.6)
crumb.close()
"""
    assert run(tmp_path, script) == 0


def test_a_slow_decode_in_c_leaves_the_watchdog_its_turn(tmp_path):
    """Pillow decodes without the interpreter lock, so even a decode that never ends is ended."""
    script = """
from PIL import Image
import io
out = io.BytesIO(); Image.effect_noise((4000, 4000), 90).convert("RGB").save(out, "JPEG", quality=95)
with Watchdog(crumb, 0.05):
    crumb.note(8); decode_image(out.getvalue(), ImageLimits())
"""
    assert run(tmp_path, script) == Watchdog.EXIT_CODE
    assert Breadcrumb.left_in(tmp_path) == {8}


def test_closing_twice_is_an_error_of_the_caller(tmp_path):
    crumb = Breadcrumb(tmp_path)
    crumb.close()
    with pytest.raises(ValueError, match="released"):
        crumb.note(1)


LIMITS = ImageLimits()


@pytest.fixture
def decoder():
    with ChildDecoder(LIMITS) as decoder:
        yield decoder


class Scripted(ChildDecoder):
    """A child that behaves as a script says once a request has come."""

    script = ""

    def _command(self) -> list[str]:
        start = "import os, signal, sys, ctypes; from ray_app.images.sandbox_child import *\n"
        start += "os.write(1, READY); sys.stdin.buffer.read(REQUEST.size)\n"
        return [sys.executable, "-c", start + self.script]


def refusal(decoder: ChildDecoder, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        decoder.decode(data)
    return caught.value


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def bytes_waiting(pipe: int) -> int:
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def wait_until(condition, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


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
    with ChildDecoder(LIMITS, wall_limit_s=0.3) as decoder:
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
    class Broken(ChildDecoder):
        def _command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit(7)"]

    with Broken(LIMITS) as decoder, pytest.raises(TouchstoneError, match="exit code 7") as caught:
        decoder.decode(factory.jpeg())
    assert caught.value.hint
    assert not isinstance(caught.value, ImageRefused)


def test_memory_is_bounded():
    data = factory.encoded(Image.new("RGB", (3000, 3000), "teal"), "JPEG")
    with ChildDecoder(LIMITS, memory_limit_bytes=190 * 1024**2) as decoder:
        assert decoder.decode(factory.jpeg()).pixels.size == (96, 64)
        error = refusal(decoder, data)
    assert error.status in (Status.IMAGE_TOO_LARGE, Status.DECODER_CRASHED)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("ANSWER.pack(2**63, 0)", "no valid answer"),
        ("ANSWER.pack(2, 2**63) + b'{}'", "no valid answer"),
        ("ANSWER.pack(9, 0) + b'[[[[[[[[['", "no valid answer"),
        ("b''); os.close(1); (b''", "fell silent"),
    ],
)
def test_an_answer_that_no_decoder_gives_counts_as_a_crash(answer, words):
    class TakenOver(Scripted):
        script = f"os.write(1, {answer}); sys.stdin.buffer.read()"

    with TakenOver(LIMITS) as decoder:
        error = refusal(decoder, factory.jpeg())
        assert decoder.pid is None
    assert error.status == Status.DECODER_CRASHED
    assert words in error.detail


CLAIMS = [
    {"frames": 2**40}, {"frames": -1}, {"orientation": 99}, {"quality": 2**7}, {"width": 2**31, "height": 1}, {"mode": "\x1b[31m"},
    {"mode": "M" * 101}, {"decoder": "two\nlines"}, {"flags": ["alpha", "alpha"]}, {"flags": ["broken_exif", "alpha"]}, {"flags": ["odd"]},
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=repr)
@pytest.mark.parametrize("refused", [False, True])
def test_a_claim_that_no_row_can_hold_counts_as_a_crash(claim, refused):
    """A process that decoded a hostile file may say anything of it."""

    class TakenOver(Scripted):
        pass

    data = factory.jpeg()
    facts = dataclasses.asdict(inspect_bytes(data)) | {"width": 96, "height": 64} | claim
    refusal_said = {"status": "corrupt_image", "detail": "no"} if refused else None
    answer = json.dumps({"facts": facts, "refused": refusal_said}).encode()
    pixels = 0 if refused else 3 * 96 * 64
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


def test_a_child_holds_none_of_our_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key")
    with ChildDecoder(LIMITS) as decoder:
        decoder.decode(factory.jpeg())
        environment = Path(f"/proc/{decoder.pid}/environ").read_bytes()
    assert b"AWS_SECRET" not in environment
    assert b"OMP_NUM_THREADS=1" in environment


def test_close_ends_the_child():
    decoder = ChildDecoder(LIMITS)
    decoder.decode(factory.jpeg())
    pid = decoder.pid
    decoder.close()
    decoder.close()
    assert decoder.pid is None
    assert not Path(f"/proc/{pid}").exists()
