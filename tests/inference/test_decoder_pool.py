"""Strangers' images in child processes: the right pixels to the right caller, and a pool that outlives whatever it is given."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ray_app.detectors import Preprocessing, load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status, TouchstoneError
from ray_app.images import ImageLimits, ImageRefused, inspect_bytes
from ray_app.images.provenance import ProvenancePolicy
from ray_app.inference import BatchDecoder, StageClock
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import DecoderProcess, IsolatedDecoders, PreparedImage
from ray_app.inference.spec import ScoringSpec
from tests.images import factory

LIMITS = ImageLimits()
TINY = load_card("touchstone-tiny").preprocessing
# Pillow's, torch's and OpenCV's resize, crops, thumbnails, and one that keeps sizes.
CARDS = ("touchstone-tiny", "community-forensics-vits384", "openfake-swinv2-small", "siglip2-open-deepfake", "clip-d-10k-plus",
         "maskclip", "corvi2023")  # fmt: skip
ALL = tuple(dict.fromkeys(load_card(name).preprocessing for name in CARDS))
PICTURES = {
    "large": lambda: factory.encoded(factory.photo(1024, 768), "JPEG", quality=90),
    "tall": lambda: factory.encoded(factory.photo(150, 400), "PNG"),
    "tiny": lambda: factory.encoded(factory.photo(7, 5), "PNG"),
    "alpha": factory.ODD["alpha_webp"][1],
    "cmyk": factory.cmyk,
    "heic": factory.SOUND["heic"][1],
}


@pytest.fixture(scope="module")
def shared():
    """Two children without torch; tests may kill them."""
    with IsolatedDecoders(LIMITS, processes=2, wall_limit_s=10) as pool:
        pool.start((TINY,), "exact")
        yield pool


@pytest.fixture(scope="module")
def choosy():
    """A child for two formats and sides of 600 pixels, that also reads what files say of themselves."""
    with IsolatedDecoders(
        ImageLimits(max_side=600, max_aspect=200), processes=1, formats=("JPEG", "PNG"), provenance=ProvenancePolicy()
    ) as pool:
        yield pool


def prepared(pool: IsolatedDecoders, data: bytes, preprocessings=(TINY,), resize="exact") -> PreparedImage:
    return asyncio.run(pool.prepare(data, preprocessings, resize))


def refusal(pool: IsolatedDecoders, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        prepared(pool, data)
    return caught.value


def state(pid: int) -> str:
    """The kernel's letter for a process; Z or X once it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def stopped(pid: int) -> int:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T")
    return pid


def wait_until(condition, limit_s: float = 20.0) -> None:
    deadline, tick = time.monotonic() + limit_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.005)


def wanted(*preprocessings: Preprocessing) -> DecodeRequest:
    return DecodeRequest(preprocessings=preprocessings or (TINY,), resize="exact")


def batched(resize: str, data: bytes):
    """What the batch job's decoder makes of the same bytes, per preprocessing."""
    cards = MappingProxyType({name: load_card(name) for name in CARDS})
    spec = ScoringSpec(load_ensemble_card("tiny"), cards, LIMITS, {}, resize, 1, "cpu")
    assert spec.preprocessings == ALL
    return BatchDecoder(spec, StageClock()).decode([(0, data)])


@pytest.fixture(scope="module")
def with_torch():
    with IsolatedDecoders(LIMITS, processes=1, wall_limit_s=20) as pool:
        pool.start(ALL, "exact")
        yield pool


@pytest.mark.parametrize(("picture", "resize"), [*((picture, "exact") for picture in PICTURES), ("large", "fast"), ("tiny", "fast")])
def test_the_pixels_are_those_of_the_batch_job_bit_for_bit(with_torch, picture, resize):
    data = PICTURES[picture]()
    ours = prepared(with_torch, data, ALL, resize)
    theirs = batched(resize, data)
    assert ours.facts == theirs.outcomes[0].facts
    for preprocessing, mine, batch in zip(ALL, ours.pixels, theirs.pixels, strict=True):
        if preprocessing.shape is None:
            assert mine is None
        else:
            np.testing.assert_array_equal(mine, batch[0])
            assert mine.dtype == np.uint8
            assert mine.flags.writeable


def test_a_preprocessing_that_is_refused_says_why():
    limits = ImageLimits(max_side=70_000, max_aspect=70_000)
    strip = factory.encoded(factory.photo(60_000, 1), "PNG")
    with IsolatedDecoders(limits, processes=1) as pool, pytest.raises(ImageRefused) as caught:
        asyncio.run(pool.prepare(strip, ALL[1:2], "exact"))
    assert caught.value.status == Status.IMAGE_TOO_LARGE
    assert "would make it" in caught.value.detail
    assert caught.value.facts.width == 60_000


def test_raw_pixels_do_not_travel_and_sizes_are_kept_where_they_are(shared):
    keeps = load_card("corvi2023").preprocessing
    answer = prepared(shared, factory.jpeg(), (keeps, TINY))
    assert answer.pixels[0] is None
    assert answer.pixels[1].shape == (256, 256, 3)
    assert prepared(shared, factory.jpeg(), ()).pixels == ()


def test_what_a_file_says_of_itself_comes_along(shared, choosy):
    notes = PngInfo()
    notes.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler")
    answer = prepared(choosy, factory.png(pnginfo=notes))
    assert (answer.provenance.generator.prompt, answer.provenance.ai_declared) == ("a cat", True)
    assert 0 < answer.seconds < 10
    assert prepared(choosy, factory.png()).provenance is None
    assert prepared(shared, factory.png(pnginfo=notes)).provenance is None  # nobody asked


@pytest.mark.parametrize("name", factory.REFUSED)
def test_hostile_files_are_refused_by_name_and_leave_the_pool_alive(shared, name):
    status, make = factory.REFUSED[name]
    pids = shared.pids
    data = make()
    error = refusal(shared, data)
    assert error.status == status
    assert error.facts.sha256 == inspect_bytes(data).sha256
    assert shared.pids == pids


def test_odd_files_are_prepared_and_leave_the_pool_alive(shared):
    pids = shared.pids
    for name, (flags, make) in factory.ODD.items():
        assert set(flags) <= set(prepared(shared, make()).facts.flags), name
    assert shared.pids == pids


def test_a_file_over_the_byte_limit_is_refused_before_a_child_sees_it():
    with IsolatedDecoders(ImageLimits(max_bytes=1000), processes=1) as pool:
        error = refusal(pool, bytes(1001))
        assert (error.status, error.limit, error.observed) == (Status.IMAGE_TOO_LARGE, 1000, 1001)
        assert pool.pids == []


def test_a_format_that_is_not_let_in_is_refused_before_a_child_sees_it(choosy, monkeypatch):
    assert prepared(choosy, factory.png()).facts.format == "PNG"
    monkeypatch.setattr(DecoderProcess, "prepare", lambda *_: pytest.fail("a child saw it"))
    for make in (factory.SOUND["tiff"][1], lambda: b"just text, nothing more"):
        error = refusal(choosy, make())
        assert error.status == Status.UNSUPPORTED_FORMAT
        assert "JPEG, PNG" in error.detail


def test_numbers_of_a_refusal_come_through(choosy):
    error = refusal(choosy, factory.encoded(factory.photo(6, 601), "PNG"))
    assert (error.limit, error.observed) == (600, 601)


def test_a_child_killed_in_the_middle_costs_one_image(shared):
    async def both() -> tuple[object, object]:
        victim, other = (stopped(pid) for pid in shared.pids)
        asked = [asyncio.create_task(shared.prepare(factory.jpeg(), (TINY,), "exact")) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: shared._free.empty())
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        return await asyncio.gather(*asked, return_exceptions=True)

    died, lived = sorted(asyncio.run(both()), key=lambda answer: isinstance(answer, PreparedImage))
    assert isinstance(lived, PreparedImage)
    assert isinstance(died, ImageRefused)
    assert died.status == Status.DECODER_CRASHED
    assert "SIGKILL" in died.detail
    assert prepared(shared, factory.png()).facts.format == "PNG"
    wait_until(lambda: len(shared.pids) == 2)


def test_a_hang_costs_one_image_and_at_most_the_wall_limit():
    with IsolatedDecoders(LIMITS, processes=1, wall_limit_s=0.5) as pool:
        pool.start()
        pid = stopped(pool.pids[0])
        started = time.monotonic()
        error = refusal(pool, factory.jpeg())
        assert 0.4 < time.monotonic() - started < 5
        assert (error.status, error.limit) == (Status.DECODE_TIMEOUT, 0.5)
        assert not Path(f"/proc/{pid}").exists()
        # The new child is up before anybody asks for it.
        wait_until(lambda: pool.pids != [])
        assert prepared(pool, factory.png()).facts.format == "PNG"


def test_many_callers_get_their_own_answers(shared):
    files = [factory.encoded(factory.photo(200 + 10 * seed, 150, seed), "JPEG") for seed in range(16)]

    async def at_once() -> list[PreparedImage]:
        return await asyncio.gather(*(shared.prepare(data, (TINY,), "exact") for data in files))

    for data, answer in zip(files, asyncio.run(at_once()), strict=True):
        assert answer.facts.sha256 == inspect_bytes(data).sha256
        alone = prepared(shared, data)
        np.testing.assert_array_equal(answer.pixels[0], alone.pixels[0])


def test_several_threads_with_their_own_loops(shared):
    files = [factory.encoded(factory.photo(seed=seed), "PNG") for seed in range(6)]
    answers: dict[int, PreparedImage] = {}
    threads = [threading.Thread(target=lambda i=i, data=data: answers.update({i: prepared(shared, data)})) for i, data in enumerate(files)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i].facts.sha256 for i in range(6)] == [inspect_bytes(data).sha256 for data in files]


def test_the_event_loop_goes_on_while_images_wait(shared):
    async def count() -> int:
        tasks = [asyncio.create_task(shared.prepare(PICTURES["large"](), (TINY,), "exact")) for _ in range(4)]
        turns = 0
        while not all(task.done() for task in tasks):
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(count()) > 50


def test_callers_that_go_away_leave_the_protocol_sound(shared):
    async def some_leave() -> list[PreparedImage]:
        pids = [stopped(pid) for pid in shared.pids]
        leaving = [asyncio.create_task(shared.prepare(factory.jpeg(quality=50 + i), (TINY,), "exact")) for i in range(4)]
        await asyncio.to_thread(wait_until, lambda: shared._free.empty())
        for task in leaving:  # two of them in the middle of an exchange, two waiting
            task.cancel()
        assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*leaving, return_exceptions=True))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        files = [factory.encoded(factory.photo(seed=seed), "PNG") for seed in range(4)]
        answers = [await shared.prepare(data, (TINY,), "exact") for data in files]
        assert [answer.facts.sha256 for answer in answers] == [inspect_bytes(data).sha256 for data in files]
        assert shared.pids == pids
        return answers

    assert len(asyncio.run(some_leave())) == 4


def test_close_finishes_what_is_at_work_and_turns_the_rest_away():
    async def closing() -> list[object]:
        pool = IsolatedDecoders(LIMITS, processes=1)
        pool.start()
        pid = stopped(pool.pids[0])
        asked = [asyncio.create_task(pool.prepare(factory.jpeg(), (TINY,), "exact")) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: pool._free.empty())
        closing = threading.Thread(target=pool.close)
        closing.start()
        wait_until(lambda: pool._is_closed)
        os.kill(pid, signal.SIGCONT)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.to_thread(closing.join)
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(TouchstoneError, match="closed"):
            await pool.prepare(factory.jpeg(), (TINY,), "exact")
        return answers

    first, *rest = asyncio.run(closing())
    assert isinstance(first, PreparedImage)
    assert [type(error) for error in rest] == [TouchstoneError] * 2


def test_children_are_light_and_hold_no_secret(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", "a-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key")
    with IsolatedDecoders(LIMITS, processes=1) as pool:
        prepared(pool, factory.jpeg())
        process = Path(f"/proc/{pool.pids[0]}")
        maps, environment = (process / "maps").read_text(), (process / "environ").read_bytes()
    assert "_imaging" in maps
    assert not [name for name in ("torch", "pyarrow", "_raylet") if name in maps]
    assert b"TOUCHSTONE_TOKENS" not in environment
    assert b"AWS_SECRET" not in environment
    assert b"OMP_NUM_THREADS=1" in environment


@pytest.mark.parametrize("card", ["touchstone-tiny", pytest.param("siglip2-open-deepfake", marks=pytest.mark.slow)])
def test_memory_is_bounded_with_torch_and_without(card):
    preprocessing = load_card(card).preprocessing
    heavy = factory.encoded(Image.new("RGB", (3000, 3000), "teal"), "JPEG")
    with DecoderProcess(LIMITS, 20.0, 20 * 1024**2) as child:  # the pixels alone take 27 MB
        assert child.prepare(factory.jpeg(), wanted(preprocessing)).pixels[0].shape == (*preprocessing.shape, 3)
        with pytest.raises(ImageRefused) as caught:
            child.prepare(heavy, wanted(preprocessing))
    assert caught.value.status in (Status.IMAGE_TOO_LARGE, Status.DECODER_CRASHED)


@pytest.mark.slow  # two imports of torch
def test_torch_comes_with_the_first_image_that_needs_it_and_stays():
    torch_resize = load_card("siglip2-open-deepfake").preprocessing
    with DecoderProcess(LIMITS, 20.0, 2**31) as child:
        child.prepare(factory.jpeg(), wanted())
        light = child.pid
        assert child.prepare(factory.jpeg(), wanted(torch_resize)).pixels[0].shape == (*torch_resize.shape, 3)
        heavy = child.pid
        assert heavy != light
        child.prepare(factory.jpeg(), wanted())
        assert child.pid == heavy
        os.kill(heavy, signal.SIGKILL)
        wait_until(lambda: child.pid is None)
        child.start()
        assert "torch" in Path(f"/proc/{child.pid}/maps").read_text()


def taken_over(answer: str) -> type[DecoderProcess]:
    """A child that answers every request as a script says: it knows the protocol, and the file in `data`."""
    start = """
import hashlib, json, os, struct, sys
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

    class TakenOver(DecoderProcess):
        def _command(self) -> list[str]:
            return [sys.executable, "-ISc", start + answer + "\nsys.stdin.buffer.read()"]

    return TakenOver


LIES = {
    "too few pixels": "say({'facts': facts}, b'few')",
    "too many pixels": "say({'facts': facts}, bytes(256 * 256 * 3 + 1))",
    "a long report": "os.write(1, ANSWER.pack(2**63, 0))",
    "endless": "os.write(1, ANSWER.pack(2**63, 2**63))\nwhile os.write(1, b' ' * 60_000): pass",
    "endless pixels": "text = json.dumps({'facts': facts}).encode(); os.write(1, ANSWER.pack(len(text), 2**63) + text)",
    "no JSON": "say(None, text=b'{')",
    "deep JSON": "say(None, text=b'[' * 50_000)",
    "no facts": "say({'facts': {}})",
    "another file": "say({'facts': facts | {'sha256': '0' * 64}})",
    "another format": "say({'facts': facts | {'format': '<script>'}})",
    "unknown flag": "say({'facts': facts | {'flags': ['<script>']}})",
    "no size": "say({'facts': facts | {'width': None}})",
    "impossible size": "say({'facts': facts | {'width': 10**9}})",
    "refused and well": "say({'facts': facts, 'refused': {'status': 'ok', 'detail': ''}}, b'')",
    "not a number": "say(None, text=json.dumps({'facts': facts, 'seconds': float('nan')}).encode())",
    "unknown statement": "say({'facts': facts, 'provenance': {'ai_declared': True, 'place': 'home'}})",
    "no such state": "say({'facts': facts, 'provenance': {'ai_declared': True, 'c2pa': {'state': 'certain', 'ai_generated': False}}})",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_child_that_was_taken_over_says_is_not_believed(lie):
    with taken_over(LIES[lie])(LIMITS, 5.0, 2**31) as child, pytest.raises(ImageRefused) as caught:
        child.prepare(factory.jpeg(), wanted())
    assert caught.value.status == Status.DECODER_CRASHED
    assert "no valid answer" in caught.value.detail
    assert child.pid is None


def test_a_child_that_falls_silent_is_ended():
    with taken_over("os.close(1)")(LIMITS, 5.0, 2**31) as child, pytest.raises(ImageRefused, match="fell silent"):
        child.prepare(factory.jpeg(), wanted())
    assert child.pid is None


def test_words_of_a_child_that_was_taken_over_are_cleaned():
    said = "{'software': 'a\\u202eb\\n' + 'c' * 400, 'digital_source_type': ['d'] * 99, 'ai_declared': False}"
    with taken_over(f"say({{'facts': facts, 'provenance': {said}}})")(LIMITS, 5.0, 2**31) as child:
        provenance = child.prepare(factory.jpeg(), wanted()).provenance
    assert provenance.software == "a b" + " " + "c" * 296
    assert provenance.digital_source_type == ("d",)


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    script = """
import os, signal, sys
from ray_app.images import ImageLimits
from ray_app.inference.decoder_pool import IsolatedDecoders
pool = IsolatedDecoders(ImageLimits(), processes=1)
pool.start()
print(*pool.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1
    wait_until(lambda: not [pid for pid in pids if state(pid) not in "ZX"])
