"""One decoder process: the answers of the process itself, and a status for whatever becomes of it;
nothing that it says is believed.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.detectors import load_card
from ray_app.errors import InputError, Status, TouchstoneError
from ray_app.images import ImageLimits, ImageRefused, decode_image, inspect_bytes
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import DecoderProcess
from tests.images import factory

LIMITS = ImageLimits()
TINY = load_card("touchstone-tiny").preprocessing  # 256 × 256


@pytest.fixture(scope="module")
def decoder():
    """One child for all tests; it starts anew where a test has killed it."""
    with DecoderProcess(LIMITS, wall_limit_s=20.0) as decoder:
        yield decoder


def scripted(script: str) -> type[DecoderProcess]:
    """A child that answers a request as a script says, as one that a hostile file took over: it
    knows the protocol and the file, `data`.
    """
    start = """
import ctypes, hashlib, json, os, signal, struct, sys
REQUEST, ANSWER = struct.Struct("<Q"), struct.Struct("<QQ")
os.write(1, b"+")
request = sys.stdin.buffer.read(*REQUEST.unpack(sys.stdin.buffer.read(REQUEST.size)))
data = request[4 + int.from_bytes(request[:4], "little"):]
facts = {"sha256": hashlib.sha256(data).hexdigest(), "format": "JPEG", "width": 96, "height": 64}
def say(report, pixels=bytes(256 * 256 * 3), text=None):
    text = text or json.dumps(report).encode()
    os.write(1, ANSWER.pack(len(text), len(pixels)) + text)
    sys.stdout.buffer.write(pixels)
    sys.stdout.flush()
"""

    class Scripted(DecoderProcess):
        def _command(self) -> list[str]:
            return [sys.executable, "-ISc", start + script + "\nsys.stdin.buffer.read()"]

    return Scripted


def refusal(decoder: DecoderProcess, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        decoder.decode(data)
    return caught.value


def wanted(*preprocessings) -> DecodeRequest:
    return DecodeRequest(preprocessings=preprocessings or (TINY,), resize="exact")


def state(pid: int) -> str:
    """The kernel's letter for a process; Z or X once it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def stopped(pid: int) -> int:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T")
    return pid


def wait_until(condition, limit_s: float = 60.0) -> None:
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


def test_the_child_refuses_as_the_process_itself_does_and_lives_on(decoder):
    """Whether pixels are wanted or tensors."""
    decoder.start()
    pid = decoder.pid
    for name, (status, make) in factory.REFUSED.items():
        data = make()
        error = refusal(decoder, data)
        assert error.status == status, name
        with pytest.raises(ImageRefused) as prepared:
            decoder.prepare(data, wanted())
        assert prepared.value.status == status, name
        with pytest.raises(ImageRefused) as caught:
            decode_image(data, LIMITS)
        ours = caught.value
        assert (error.detail, error.facts, error.limit, error.observed) == (
            ours.detail,
            ours.facts,
            ours.limit,
            ours.observed,
        )
    assert decoder.pid == pid


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os._exit(3)", "exit code 3"),
        ("os.write(1, ANSWER.pack(10, 10) + b'half'); os._exit(0)", "exit code 0"),
    ],
)
def test_a_crash_is_a_status_that_names_the_signal(script, words):
    with scripted(script)(LIMITS) as decoder:
        error = refusal(decoder, factory.jpeg())
    assert error.status == Status.DECODER_CRASHED
    assert words in error.detail
    assert error.facts.format == "JPEG"


def test_a_child_that_hangs_is_killed_at_the_wall_limit_and_the_next_image_gets_another():
    with DecoderProcess(LIMITS, wall_limit_s=0.2) as decoder:
        # The second is larger than a pipe holds: the hang is met while writing.
        for data in (factory.jpeg(), factory.jpeg() + bytes(1_000_000)):
            decoder.start()
            pid = stopped(decoder.pid)
            error = refusal(decoder, data)
            assert (error.status, error.limit) == (Status.DECODE_TIMEOUT, 0.2)
            assert "0.2 s" in error.detail
            assert not Path(f"/proc/{pid}").exists()


def test_a_child_killed_while_idle_costs_no_image(decoder):
    decoder.start()
    os.kill(decoder.pid, signal.SIGKILL)
    wait_until(lambda: decoder.pid is None)
    assert decoder.decode(factory.jpeg()).pixels.size == (96, 64)


def test_a_child_that_cannot_start_is_the_systems_fault(monkeypatch):
    class Broken(DecoderProcess):
        def _command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit(7)"]

    def no_process(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with (
        Broken(LIMITS) as decoder,
        pytest.raises(TouchstoneError, match=r"did not start: it .*exit code 7") as caught,
    ):
        decoder.decode(factory.jpeg())
    assert caught.value.hint
    assert not isinstance(caught.value, ImageRefused)
    monkeypatch.setattr("ray_app.child_process.subprocess.Popen", no_process)
    with pytest.raises(TouchstoneError, match="did not start: BlockingIOError"):
        DecoderProcess(LIMITS).decode(factory.jpeg())


def test_a_child_that_hangs_while_it_starts_is_replaced_and_costs_no_image(monkeypatch):
    hang = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    commands = [[sys.executable, "-c", hang], DecoderProcess(LIMITS)._command()]
    monkeypatch.setattr(DecoderProcess, "_command", lambda _: commands.pop(0))
    monkeypatch.setattr("ray_app.inference.decoder_pool.START_LIMITS_S", (0.5, 60.0))
    with DecoderProcess(LIMITS) as decoder:
        assert decoder.decode(factory.jpeg()).pixels.size == (96, 64)


@pytest.mark.parametrize(
    "card", ["touchstone-tiny", pytest.param("siglip2-open-deepfake", marks=pytest.mark.slow)]
)
def test_memory_is_bounded_with_torch_and_without(card):
    preprocessing = load_card(card).preprocessing
    heavy = factory.encoded(Image.new("RGB", (3000, 3000), "teal"), "JPEG")
    with DecoderProcess(LIMITS, 20.0, 20 * 1024**2) as child:  # the pixels alone take 27 MB
        assert child.prepare(factory.jpeg(), wanted(preprocessing)).pixels[0].shape == (
            *preprocessing.shape,
            3,
        )
        with pytest.raises(ImageRefused) as caught:
            child.prepare(heavy, wanted(preprocessing))
    assert caught.value.status in (Status.IMAGE_TOO_LARGE, Status.DECODER_CRASHED)


FACTS = [
    {"frames": 2**40}, {"frames": -1}, {"orientation": 99}, {"quality": 2**7}, {"width": 2**31, "height": 1}, {"mode": "\x1b[31m"},
    {"mode": "M" * 101}, {"decoder": "two\nlines"}, {"flags": ["alpha", "alpha"]}, {"flags": ["broken_exif", "alpha"]}, {"flags": ["odd"]},
    {"sha256": "0" * 64}, {"format": "<script>"},
]  # fmt: skip


@pytest.mark.parametrize("refused", [None, {"status": "corrupt_image", "detail": "no"}])
def test_facts_that_no_row_can_hold_or_of_another_file_are_not_believed(decoder, refused):
    data = factory.jpeg()
    true = dataclasses.asdict(inspect_bytes(data)) | {"width": 96, "height": 64}
    assert (
        decoder._believed(
            json.dumps({"facts": true, "refused": refused}).encode(), data
        ).facts.width
        == 96
    )
    for lie in FACTS:
        with pytest.raises((ValueError, InputError)):
            pytest.fail(
                f"believed: {decoder._believed(json.dumps({'facts': true | lie, 'refused': refused}).encode(), data)}"
            )


LIES = {
    "too few pixels": "say({'facts': facts}, b'few')",
    "too many pixels": "say({'facts': facts}, bytes(256 * 256 * 3 + 1))",
    "a long report": "os.write(1, ANSWER.pack(2**63, 0))",
    "endless": "os.write(1, ANSWER.pack(2**63, 2**63))\nwhile os.write(1, b' ' * 60_000): pass",
    "endless pixels": "text = json.dumps({'facts': facts}).encode(); os.write(1, ANSWER.pack(len(text), 2**63) + text)",
    "deep JSON": "say(None, text=b'[' * 50_000)",
    "impossible size": "say({'facts': facts | {'width': 10**9}})",
    "refused and well": "say({'facts': facts, 'refused': {'status': 'ok', 'detail': ''}}, b'')",
    "not a number": "say(None, text=json.dumps({'facts': facts, 'seconds': float('nan')}).encode())",
    "unknown statement": "say({'facts': facts, 'provenance': {'ai_declared': True, 'place': 'home'}})",
    "a demand beyond the limits": "os.write(1, ANSWER.pack(0, 16) + struct.pack('<QQ', 2**62, 1))",
    "a second demand": "os.write(1, 2 * (ANSWER.pack(0, 16) + struct.pack('<QQ', 40_000_000, 10**9)))",
    "no such state": "say({'facts': facts, 'provenance': {'ai_declared': True, 'c2pa': {'state': 'certain', 'ai_generated': False}}})",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_child_that_was_taken_over_says_is_not_believed_and_it_ends(lie):
    data = factory.jpeg()
    with scripted(LIES[lie])(LIMITS, 20.0) as child, pytest.raises(ImageRefused) as caught:
        child.prepare(data, wanted())
    assert (caught.value.status, caught.value.detail) == (
        Status.DECODER_CRASHED,
        "the decoder process gave no valid answer",
    )
    assert caught.value.facts == inspect_bytes(data)
    assert child.pid is None


def test_a_child_that_falls_silent_is_ended(monkeypatch):
    monkeypatch.setattr("ray_app.child_process.LAST_WORDS_S", 0.1)
    with (
        scripted("os.close(1)")(LIMITS, 5.0) as child,
        pytest.raises(ImageRefused, match="fell silent"),
    ):
        child.prepare(factory.jpeg(), wanted())
    assert child.pid is None


def test_words_of_a_child_that_was_taken_over_are_cleaned():
    said = "{'software': 'a\\u202eb\\n' + 'c' * 400, 'digital_source_type': ['d'] * 99, 'ai_declared': False}"
    with scripted(f"say({{'facts': facts, 'provenance': {said}}})")(LIMITS, 20.0) as child:
        provenance = child.prepare(factory.jpeg(), wanted()).provenance
    assert provenance.software == "a b" + " " + "c" * 296
    assert provenance.digital_source_type == ("d",)
    detail = "'red' + chr(27) + '[31m\\nor' + chr(0x202e) + ' not'"
    with scripted(
        f"say({{'facts': facts, 'refused': {{'status': 'corrupt_image', 'detail': {detail}}}}}, b'')"
    )(LIMITS, 20.0) as child:
        assert refusal(child, factory.jpeg()).detail == "red\\x1b[31m\\nor\\u202e not"


def test_close_ends_the_child(decoder):
    decoder.start()
    pid = decoder.pid
    decoder.close()
    decoder.close()
    assert decoder.pid is None
    assert not Path(f"/proc/{pid}").exists()
