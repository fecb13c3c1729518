"""Untrusted images in child processes: each caller gets its own pixels, and the pool survives."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from ray_app.detectors import load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits, ImageRefused, inspect_bytes
from ray_app.inference import BatchDecoder, StageClock
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import DecoderProcess, IsolatedDecoders, PreparedImage
from ray_app.inference.spec import ScoringSpec
from tests.inference.children import LIMITS, TINY, request, state, stopped, wait_until
from tests.make import images
from tests.make.forking import run_in_fork

# Pillow's, torch's and OpenCV's resize, crops, thumbnails, and one that keeps sizes.
CARDS = ("touchstone-tiny", "community-forensics-vits384", "openfake-swinv2-small", "siglip2-open-deepfake", "clip-d-10k-plus",
         "maskclip", "corvi2023")  # fmt: skip
ALL = tuple(dict.fromkeys(load_card(name).preprocessing for name in CARDS))
PICTURES = {
    "large": lambda: images.encoded(images.photo(1024, 768), "JPEG", quality=90),
    "tall": lambda: images.encoded(images.photo(150, 400), "PNG"),
    "tiny": lambda: images.encoded(images.photo(7, 5), "PNG"),
    "alpha": images.ODD["alpha_webp"][1],
    "cmyk": images.cmyk,
    "heic": images.SOUND["heic"][1],
}


def pids_of(pool):
    """The process ids of the children that run."""
    return [pid for child in pool._children if (pid := child.pid) is not None]


@pytest.fixture(scope="module")
def shared():
    """Two children without torch; tests may kill them."""
    with closing(IsolatedDecoders(LIMITS, processes=2, wall_limit_s=20)) as pool:
        pool.start((TINY,))
        yield pool


def prepared(pool: IsolatedDecoders, data: bytes) -> PreparedImage:
    return pool.prepare(data, request())


def refusal(pool: IsolatedDecoders, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        prepared(pool, data)
    return caught.value


def test_pool_prepares_the_pixels_of_the_batch_job():
    cards = MappingProxyType({name: load_card(name) for name in CARDS})
    with closing(IsolatedDecoders(LIMITS, processes=1, wall_limit_s=60)) as pool:
        exact = [(name, "exact") for name in PICTURES]
        for name, resize in [*exact, ("large", "fast"), ("tiny", "fast")]:
            data = PICTURES[name]()
            precision = dict.fromkeys(cards, "fp32")
            spec = ScoringSpec(
                load_ensemble_card("tiny"), cards, LIMITS, precision, resize, 1, "cpu"
            )
            wanted = tuple(preprocessing.with_resize(resize) for preprocessing in ALL)
            assert spec.preprocessings == wanted
            expected = BatchDecoder(spec, StageClock()).decode([(0, data)])
            found = pool.prepare(data, DecodeRequest(preprocessings=wanted))
            assert found.facts == expected.outcomes[0].facts
            for preprocessing, mine, batch in zip(ALL, found.pixels, expected.pixels, strict=True):
                if preprocessing.shape is None:  # Images that keep their size do not travel.
                    assert mine is None
                else:
                    np.testing.assert_array_equal(mine, batch[0], err_msg=f"{name} {resize}")
                    assert mine.dtype == np.uint8
                    assert mine.flags.writeable


def test_pool_refuses_bytes_and_formats_before_a_child(monkeypatch):
    monkeypatch.setattr(DecoderProcess, "prepare", lambda *_: pytest.fail("a child saw it"))
    with closing(IsolatedDecoders(LIMITS, processes=1, formats=("JPEG", "PNG"))) as pool:
        for data in (images.SOUND["tiff"][1](), b"just text, nothing more"):
            error = refusal(pool, data)
            assert error.status == Status.UNSUPPORTED_FORMAT
            assert "JPEG, PNG" in error.detail
    with closing(IsolatedDecoders(ImageLimits(max_bytes=1000), processes=1)) as pool:
        error = refusal(pool, bytes(1001))
    assert (error.status, error.limit, error.observed) == (Status.IMAGE_TOO_LARGE, 1000, 1001)


def test_killed_child_costs_one_image(shared):
    victim, other = (stopped(pid) for pid in pids_of(shared))
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(prepared, shared, images.jpeg()) for _ in range(2)]
        wait_until(lambda: shared._idle.empty())
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        (died,) = filter(None, [one.exception() for one in asked])
    assert isinstance(died, ImageRefused)
    assert died.status == Status.DECODER_CRASHED
    assert "SIGKILL" in died.detail
    assert prepared(shared, images.png()).facts.format == "PNG"


def test_callers_get_their_own_answers(shared):
    files = [images.encoded(images.photo(80 + 10 * seed, 60, seed), "PNG") for seed in range(8)]
    with ThreadPoolExecutor(len(files)) as threads:
        answers = list(threads.map(lambda data: prepared(shared, data), files * 2))
    for data, answer in zip(files * 2, answers, strict=True):
        assert answer.facts.sha256 == inspect_bytes(data).sha256
        np.testing.assert_array_equal(answer.pixels[0], prepared(shared, data).pixels[0])


def test_forked_process_starts_its_own_child():
    first, second = images.png(), images.jpeg()
    with closing(IsolatedDecoders(LIMITS, processes=1)) as pool:
        prepared(pool, first)
        pids = pids_of(pool)
        digest, pids_in_fork = run_in_fork(
            lambda: (prepared(pool, second).facts.sha256, pids_of(pool))
        )
        assert digest == inspect_bytes(second).sha256
        assert pids_in_fork != pids == pids_of(pool)
        assert prepared(pool, first).facts.sha256 == inspect_bytes(first).sha256


def test_children_are_light_and_hold_no_secret(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", "a-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key")
    with closing(IsolatedDecoders(LIMITS, processes=1)) as pool:
        prepared(pool, images.jpeg())
        process = Path(f"/proc/{pids_of(pool)[0]}")
        maps, environment = (process / "maps").read_text(), (process / "environ").read_bytes()
    assert "_imaging" in maps
    assert not [name for name in ("torch", "pyarrow", "_raylet") if name in maps]
    assert b"TOUCHSTONE_TOKENS" not in environment
    assert b"AWS_SECRET" not in environment
    assert b"OMP_NUM_THREADS=1" in environment


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    script = """
import os, signal, sys
from ray_app.images import ImageLimits
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import IsolatedDecoders
pool = IsolatedDecoders(ImageLimits(), processes=1)
pool.start()
print(*(child.pid for child in pool._children), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1
    wait_until(lambda: not [pid for pid in pids if state(pid) not in "ZX"])
