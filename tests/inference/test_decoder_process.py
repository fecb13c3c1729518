"""One decoder process: it answers as this process would, and nothing that it says is trusted."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.detectors import load_card
from ray_app.errors import InputError, Status, TouchstoneError
from ray_app.images import ImageRefused, decode_image, inspect_bytes
from ray_app.inference.decoder_pool import DecoderProcess
from tests.inference.children import LIMITS, request, scripted, stopped, wait_until
from tests.make import images


@pytest.fixture(scope="module")
def decoder():
    """One child for all tests; it starts again after a test has killed it."""
    with DecoderProcess(LIMITS, wall_limit_s=20.0) as decoder:
        yield decoder


def refusal(decode, *given) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        decode(*given)
    return caught.value


def test_child_decodes_as_this_process_does(decoder):
    for name, (_, make) in (images.SOUND | images.ODD).items():
        data = make()
        expected, found = decode_image(data, LIMITS), decoder.decode(data)
        assert found.facts == expected.facts, name
        np.testing.assert_array_equal(np.asarray(found.pixels), np.asarray(expected.pixels))


def test_child_refuses_as_this_process_does_and_lives(decoder):
    decoder.start()
    pid = decoder.pid
    for name, (status, make) in images.REFUSED.items():
        data = make()
        found = refusal(decoder.decode, data)
        assert found.status == status, name
        assert refusal(decoder.prepare, data, request()).status == status, name
        expected = refusal(decode_image, data, LIMITS)
        for field in ("detail", "facts", "limit", "observed"):
            assert getattr(found, field) == getattr(expected, field), name
    assert decoder.pid == pid


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os._exit(3)", "exit code 3"),
        ("os.write(1, ANSWER.pack(10, 10) + b'half'); os._exit(0)", "exit code 0"),
    ],
    ids=["signal", "exit", "half-an-answer"],
)
def test_crash_of_a_child_is_a_status_with_its_cause(script, said):
    with scripted(script)(LIMITS) as decoder:
        error = refusal(decoder.decode, images.jpeg())
    assert error.status == Status.DECODER_CRASHED
    assert said in error.detail
    assert error.facts.format == "JPEG"


def test_child_that_hangs_is_replaced_at_the_wall_limit():
    with DecoderProcess(LIMITS, wall_limit_s=0.2) as decoder:
        # The second file is larger than a pipe: the hang happens while writing.
        for data in (images.jpeg(), images.jpeg() + bytes(1_000_000)):
            decoder.start()
            pid = stopped(decoder.pid)
            error = refusal(decoder.decode, data)
            assert (error.status, error.limit) == (Status.DECODE_TIMEOUT, 0.2)
            assert "0.2 s" in error.detail
            assert not Path(f"/proc/{pid}").exists()


def test_child_killed_while_idle_costs_no_image(decoder):
    decoder.start()
    os.kill(decoder.pid, signal.SIGKILL)
    wait_until(lambda: decoder.pid is None)
    assert decoder.decode(images.jpeg()).pixels.size == (96, 64)


def test_child_that_cannot_start_is_an_error_of_the_system(monkeypatch):
    class Broken(DecoderProcess):
        def _command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit(7)"]

    def no_process(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with (
        Broken(LIMITS) as decoder,
        pytest.raises(TouchstoneError, match=r"did not start: it .*exit code 7") as caught,
    ):
        decoder.decode(images.jpeg())
    assert caught.value.hint
    assert not isinstance(caught.value, ImageRefused)
    monkeypatch.setattr("ray_app.child_process.subprocess.Popen", no_process)
    with pytest.raises(TouchstoneError, match="did not start: BlockingIOError"):
        DecoderProcess(LIMITS).decode(images.jpeg())


def test_child_that_hangs_while_it_starts_is_replaced(monkeypatch):
    hang = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    commands = [[sys.executable, "-c", hang], DecoderProcess(LIMITS)._command()]
    monkeypatch.setattr(DecoderProcess, "_command", lambda _: commands.pop(0))
    monkeypatch.setattr("ray_app.inference.decoder_pool.START_LIMITS_S", (0.5, 60.0))
    with DecoderProcess(LIMITS) as decoder:
        assert decoder.decode(images.jpeg()).pixels.size == (96, 64)


@pytest.mark.parametrize(
    "card", ["touchstone-tiny", pytest.param("siglip2-open-deepfake", marks=pytest.mark.slow)]
)
def test_memory_of_a_child_is_limited(card):
    """The second card resizes with torch."""
    preprocessing = load_card(card).preprocessing
    heavy = images.encoded(Image.new("RGB", (3000, 3000), "teal"), "JPEG")
    with DecoderProcess(LIMITS, 20.0, 20 * 1024**2) as child:  # The pixels alone take 27 MB.
        prepared = child.prepare(images.jpeg(), request(preprocessing))
        assert prepared.pixels[0].shape == (*preprocessing.shape, 3)
        error = refusal(child.prepare, heavy, request(preprocessing))
    assert error.status in (Status.IMAGE_TOO_LARGE, Status.DECODER_CRASHED)


FACTS = [
    {"frames": 2**40}, {"frames": -1}, {"orientation": 99}, {"quality": 2**7}, {"width": 2**31, "height": 1}, {"mode": "\x1b[31m"},
    {"mode": "M" * 101}, {"decoder": "two\nlines"}, {"flags": ["alpha", "alpha"]}, {"flags": ["broken_exif", "alpha"]}, {"flags": ["odd"]},
    {"sha256": "0" * 64}, {"format": "<script>"},
]  # fmt: skip


@pytest.mark.parametrize("refused", [None, {"status": "corrupt_image", "detail": "no"}])
def test_facts_that_no_row_can_hold_are_rejected(decoder, refused):
    data = images.jpeg()
    true = dataclasses.asdict(inspect_bytes(data)) | {"width": 96, "height": 64}

    def believed(facts):
        return decoder._check_report(
            json.dumps({"facts": facts, "refused": refused}).encode(), data
        )

    assert believed(true).facts.width == 96
    for lie in FACTS:
        with pytest.raises((ValueError, InputError)):
            pytest.fail(f"believed: {believed(true | lie)}")


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
def test_lie_of_a_child_is_rejected_and_ends_it(lie):
    data = images.jpeg()
    with scripted(LIES[lie])(LIMITS, 20.0) as child:
        error = refusal(child.prepare, data, request())
        assert child.pid is None
    assert error.status == Status.DECODER_CRASHED
    assert error.detail == "the decoder process gave no valid answer"
    assert error.facts == inspect_bytes(data)


def test_child_that_falls_silent_is_ended(monkeypatch):
    monkeypatch.setattr("ray_app.child_process.EXIT_WAIT_S", 0.1)
    with scripted("os.close(1)")(LIMITS, 5.0) as child:
        assert "stopped responding" in refusal(child.prepare, images.jpeg(), request()).detail
        assert child.pid is None


def test_text_of_a_child_is_cleaned():
    said = "{'software': 'a\\u202eb\\n' + 'c' * 400, 'digital_source_type': ['d'] * 99, 'ai_declared': False}"
    with scripted(f"say({{'facts': facts, 'provenance': {said}}})")(LIMITS, 20.0) as child:
        provenance = child.prepare(images.jpeg(), request()).provenance
    assert provenance.software == "a b" + " " + "c" * 296
    assert provenance.digital_source_type == ("d",)
    detail = "'red' + chr(27) + '[31m\\nor' + chr(0x202e) + ' not'"
    said = f"{{'status': 'corrupt_image', 'detail': {detail}}}"
    with scripted(f"say({{'facts': facts, 'refused': {said}}}, b'')")(LIMITS, 20.0) as child:
        error = refusal(child.decode, images.jpeg())
    assert error.detail == "red\\x1b[31m\\nor\\u202e not"


def test_close_ends_the_child(decoder):
    decoder.start()
    pid = decoder.pid
    decoder.close()
    decoder.close()
    assert decoder.pid is None
    assert not Path(f"/proc/{pid}").exists()
