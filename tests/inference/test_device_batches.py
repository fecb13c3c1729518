"""Pinned buffers that are used again, and batches of the size that pays, without a GPU."""

import numpy as np
import pytest
import torch

from ray_app.ensembles import build_ensemble
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.device_batches import (
    DeviceUpload,
    PinnedRing,
    batch_sizes,
    choose_batch_size,
    measure_batches,
)
from ray_app.inference.scorer import DetectorTimes, EnsembleScorer, _Columns
from ray_app.scoring.identity import scoring_facts
from tests.inference.batches import batches, noise
from tests.make.cards import write_two
from tests.make.fake_cuda import bare, detector_on_cuda, fake_cuda
from tests.make.networks.small_zoo import small


class LateEvent:
    """A copy that ends when it is waited for, and a log of what was done to it."""

    def __init__(self, log):
        self.log, self.pending = log, False

    def record(self):
        self.pending = True
        self.log.append("record")

    def synchronize(self):
        self.log.append("wait" if self.pending else "free")
        self.pending = False


def ring_of(depth=2):
    log, made = [], []

    def allocate(size):
        made.append(torch.zeros(size, dtype=torch.uint8))
        return made[-1]

    return PinnedRing(allocate, lambda: LateEvent(log), depth), log, made


def images(count, side=8, value=1):
    return torch.full((count, side, side, 3), value, dtype=torch.uint8)


def test_buffer_is_reused_after_its_copy_has_ended():
    ring, log, made = ring_of()
    seen = [ring.copy_through(images(2, value=value), torch.clone) for value in range(5)]
    assert len(made) == 2
    assert [int(one.max()) for one in seen] == list(range(5))
    assert log == ["free", "record"] * 2 + ["wait", "record"] * 3
    lent = []
    for value in (1, 2):
        ring.copy_through(images(2, value=value), lambda pinned: lent.append(pinned) or pinned)
    assert [int(one.min()) for one in lent] == [1, 2]


class Meter:
    """A device on which a batch takes `fixed` + `each` × images seconds.

    Args:
        share: The fraction of memory per image.
        indexed: The maximum number of images.
    """

    def __init__(self, fixed, each, share=0.0, indexed=10**6):
        self.fixed, self.each, self.share, self.indexed, self.size = fixed, each, share, indexed, 0

    def run(self, size):
        self.size = size
        if self.share * size > 1:
            raise torch.OutOfMemoryError
        if size > self.indexed:
            raise RuntimeError("only supports output tensors with less than INT_MAX elements")

    def seconds(self, work):
        work()
        return self.fixed + self.each * self.size

    def measure_peak_fraction(self):
        return self.share * self.size

    def forget(self):
        pass


LARGER_IS_FASTER = Meter(0.1, 0.0)  # all sizes take the same time, so that the largest pays


def measured_with(meter, slots=64, most=1024):
    return measure_batches(batch_sizes(slots, most), meter.run, meter)


@pytest.mark.parametrize(("fixed", "expected"), [(0.0, 8), (0.001, 256), (0.1, 1024)])
def test_smallest_size_near_the_best_rate_is_taken(fixed, expected):
    assert choose_batch_size(measured_with(Meter(fixed, 0.0001))) == expected


@pytest.mark.parametrize(
    ("meter", "sizes"),
    [
        (Meter(0.1, 0.001, share=0.004), [8, 16, 32, 64]),  # more would take too much of the memory
        (Meter(0.1, 0.001, share=0.1), [8]),
        (Meter(0.0, 0.0125), [8, 16, 32, 64]),  # more would take too long
        (Meter(0.1, 0.001, indexed=100), [8, 16, 32, 64]),  # as TruFor's, seen on an H100
    ],
)
def test_batch_that_takes_long_or_much_is_not_doubled(meter, sizes):
    assert [one.size for one in measured_with(meter)] == sizes


def test_failure_of_the_smallest_batch_is_raised():
    with pytest.raises(RuntimeError, match="INT_MAX"):
        measured_with(Meter(0.1, 0.001, indexed=7))


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    _, slow = write_two(tmp_path_factory.mktemp("two"))
    return make_spec(build_ensemble([slow]), limits=ImageLimits(), precision="fp32", slots=4)


def read(spec):
    """Eleven images in batches of four, after four files that are none."""
    return batches(spec, [*[b"no image"] * 4, *noise(*[(140, 150)] * 11)])


@pytest.mark.parametrize(("pieces", "step"), [((8,), 8), ((16, 16), 16)])
def test_networks_get_batches_of_the_size_that_pays(spec, pieces, step):
    given = read(spec)
    before = EnsembleScorer(spec, StageClock()).score(given).scores["slow"]
    scorer = EnsembleScorer(spec, StageClock())
    [detector], seen = scorer._detectors.values(), []
    known, fingerprint = scoring_facts(spec), detector.fingerprint
    assert scorer.fit_batches(pieces, LARGER_IS_FASTER) == {"slow": step}
    detector.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    after = scorer.score(given).scores["slow"]
    assert set(seen) == {step}
    assert np.isfinite(after).tolist() == [False] * 4 + [True] * 11
    # Another size of batch moves last bits at most, well within what fp32 is held to; at one size a
    # score is the same in any company.
    np.testing.assert_allclose(after, before, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(scorer.score(given[3:]).scores["slow"], after[12:])
    # runs are known by the same as ever
    assert (scoring_facts(spec), detector.fingerprint) == (known, fingerprint)


def test_split_stages_stay_on_the_gpu(monkeypatch):
    cards = [small(name) for name in ("touchstone-photo", "unifd", "corvi2023")]
    spec = make_spec(
        build_ensemble([card.name for card in cards]),
        cards=cards,
        limits=ImageLimits(),
        device="cuda",
        precision="bf16",
        slots=4,
    )
    first = BatchDecoder(spec, StageClock(), hand_over=True)
    [handed] = batches(spec, noise(*[(160, 150)] * 3), first)
    complete = BatchDecoder(spec, StageClock()).complete(handed)
    networks, devices = {card.name: bare(card) for card in cards}, []

    def loaded(card, *, device, precision, resize, slots):
        return detector_on_cuda(card, networks[card.name], precision, slots, resize)

    def gathered(block):
        devices.extend(part.device.type for parts in block.parts.values() for part in parts)

    for name, replacement in {
        "load_detector": loaded,
        "shared_backbone.share_backbones": lambda detectors: [],
        "shared_backbone.share_equal_weights": lambda networks: 0,
        "DetectorTimes": lambda _: DetectorTimes("cpu"),  # The clock of a GPU needs the GPU.
    }.items():
        monkeypatch.setattr(f"ray_app.inference.scorer.{name}", replacement)
    monkeypatch.setattr(DeviceUpload, "__init__", lambda self, device: None)
    monkeypatch.setattr(DeviceUpload, "__call__", lambda self, tensor: tensor.to("cuda"))
    monkeypatch.setattr(_Columns, "gather", gathered)
    with fake_cuda():
        EnsembleScorer(spec, StageClock()).score([complete])
    assert devices == ["cuda"] * len(cards)
