"""Large images take turns on a node: each waits for memory, and a wait is not a hang."""

import subprocess
import sys
import threading
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.ensembles import build_ensemble, load_ensemble_card
from ray_app.errors import Status
from ray_app.images import BatchLimits
from ray_app.images import limits as memory
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.decoder import CrashSafeDecoder
from ray_app.inference.decoder_pool import DecoderProcess, IsolatedDecoders
from ray_app.storage.node_budget import SLOT_BYTES, NodeBudget
from ray_app.transforms.perturbations import load_perturbations
from tests.inference.children import scripted
from tests.make import images

ROOT = Path(__file__).resolve().parents[2]
SPEC = make_spec(load_ensemble_card("tiny"), limits=BatchLimits(), precision="fp32")


@pytest.fixture
def everything_is_large(monkeypatch):
    """A test of turns needs no gigabytes."""
    monkeypatch.setattr(memory, "LIMIT_PIXELS", 1000)


@pytest.fixture
def budget(tmp_path):
    return NodeBudget("pixels", 4 * SLOT_BYTES, tmp_path / "seats")


@pytest.fixture(autouse=True)
def seats(tmp_path):
    (tmp_path / "seats").mkdir()


def is_free(budget: NodeBudget) -> bool:
    """Return whether the whole budget can be taken."""

    def take():
        with budget.reserve(budget.total_bytes):
            pass

    waiting = threading.Thread(target=take, daemon=True)
    waiting.start()
    waiting.join(60)
    return not waiting.is_alive()


def test_large_image_waits_for_its_turn_and_small_does_not(budget, monkeypatch):
    clock, batches = StageClock(), []
    decoder = BatchDecoder(SPEC, clock, budget=budget)
    with budget.reserve(budget.total_bytes):
        assert decoder.decode([(1, images.jpeg())]).outcomes[0].status is Status.OK
        monkeypatch.setattr(memory, "LIMIT_PIXELS", 1000)
        files = [(1, images.jpeg()), (2, images.png())]
        waiting = threading.Thread(target=lambda: batches.append(decoder.decode(files)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(60)
    [batch] = batches
    assert [outcome.status for outcome in batch.outcomes] == [Status.OK, Status.OK]
    assert clock.seconds["wait"] > 0
    assert is_free(budget)


def test_image_over_the_memory_of_the_node_is_refused(everything_is_large, tmp_path):
    tiny = NodeBudget("pixels", 2**20, tmp_path / "seats")
    decoder = BatchDecoder(SPEC, StageClock(), tmp_path / "markers", budget=tiny)
    small = images.raw_png(8, 8, 8, 2, bytes(200))
    batch = decoder.decode([(1, images.jpeg()), (2, small), (3, b"")])
    statuses = [outcome.status for outcome in batch.outcomes]
    assert statuses == [Status.IMAGE_TOO_LARGE, Status.OK, Status.EMPTY_FILE]
    assert "over decode_bytes (0.0 GB) of this node" in batch.outcomes[0].detail
    assert batch.outcomes[0].facts.width == 96
    decoder.close()


WAITING = """
import sys, threading
from pathlib import Path
from ray_app.images import limits as memory
from ray_app.inference import BatchDecoder, StageClock
from ray_app.storage.node_budget import SLOT_BYTES, NodeBudget
from tests.make import images
from tests.inference.test_large_images import SPEC
memory.LIMIT_PIXELS = 1000
budget = NodeBudget("pixels", 4 * SLOT_BYTES, Path(sys.argv[1]) / "seats")
decoder = BatchDecoder(SPEC, StageClock(), Path(sys.argv[1]) / "markers", wall_limit_s=0.5, budget=budget)
with budget.reserve(budget.total_bytes) as give_back:
    threading.Timer(1.0, give_back).start()
    print(decoder.decode([(7, images.jpeg())]).outcomes[0].status)
decoder.close()
"""


def test_wait_longer_than_the_wall_limit_is_not_a_hang(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WAITING, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert list((tmp_path / "markers").iterdir()) == []


@pytest.mark.slow
def test_child_waits_before_it_decodes_large_image():
    data = images.encoded(Image.new("L", (9000, 6000), 77), "PNG", compress_level=1)
    with DecoderProcess(BatchLimits(), wall_limit_s=20) as child:
        with closing(child.peek(data)) as peeked:
            assert (peeked.demand.pixels, peeked.demand.timeout_factor) == (54_000_000, 1.08)
            assert peeked.demand.peak_bytes >= 54_000_000 * 14 + len(data)
            pid = child.pid
            assert peeked.decode().pixels.getpixel((5, 5)) == (77, 77, 77)
        with closing(child.peek(data)):
            assert child.pid == pid
        assert child.pid is None  # it waited for memory that nobody reserved
        assert child.decode(images.jpeg()).pixels.size == (96, 64)


# A child that finds every file large, and dies when it may decode.
DIES_IN_TURN = """
os.write(1, ANSWER.pack(0, 16) + struct.pack("<QQ", 40_000_000, 2**29))
sys.stdin.buffer.read(1)
os._exit(3)
"""


@pytest.mark.parametrize(
    ("count", "status", "detail"),
    [(16, Status.DECODER_CRASHED, "exit code 3"), (4, Status.IMAGE_TOO_LARGE, "decode_bytes")],
)
def test_child_that_dies_or_is_refused_frees_memory(monkeypatch, tmp_path, count, status, detail):
    monkeypatch.setattr("ray_app.inference.decoder_pool.DecoderProcess", scripted(DIES_IN_TURN))
    budget = NodeBudget("pixels", count * SLOT_BYTES, tmp_path / "seats")
    with closing(IsolatedDecoders(SPEC.limits, processes=1, wall_limit_s=20)) as children:
        careful = CrashSafeDecoder(SPEC.limits, None, 20, budget, children=children)
        decoder = BatchDecoder(SPEC, StageClock(), careful=careful)
        # The second file needs the only child, and the memory of the first.
        outcomes = decoder.decode([(1, images.jpeg()), (2, images.png())]).outcomes
    assert [outcome.status for outcome in outcomes] == [status, status]
    assert all(detail in outcome.detail for outcome in outcomes)
    assert is_free(budget)


def test_file_is_released_before_the_next_is_read():
    size = 20 * 2**20
    arriving = ((number, images.jpeg() + bytes(size)) for number in range(4))
    decoder = BatchDecoder(SPEC, StageClock())
    tracemalloc.start()
    batch = decoder.decode(arriving)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batch.outcomes) == 4
    assert peak < 2.5 * size


def test_views_of_large_images_are_decoded_again(everything_is_large, budget, monkeypatch):
    """Detectors that keep sizes read views one by one. No large image is kept beyond its turn."""
    views = load_perturbations(["jpeg:75", "blur:2"])
    spec = make_spec(
        build_ensemble(["corvi2023"]), limits=BatchLimits(), precision="fp32", views=views, slots=2
    )
    files = [(1, images.encoded(images.photo(300, 200), "JPEG")), (2, images.jpeg())]

    def seen(decoder):
        batch = decoder.decode(files)
        return [list(view.pixels[0].complete([0, 1]).values()) for view in batch.views]

    large = BatchDecoder(spec, StageClock(), budget=budget)
    anew = seen(large)
    monkeypatch.setattr(memory, "LIMIT_PIXELS", 50_000_000)
    kept = BatchDecoder(spec, StageClock())
    for one, other in zip(anew, seen(kept), strict=True):
        for image, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(image, same)
    assert (large.counts["decoded"], kept.counts["decoded"]) == (6, 2)
    assert is_free(budget)
