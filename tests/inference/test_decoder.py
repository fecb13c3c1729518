"""Batches: each image in its own slot, failures beside it, suspects in a child process."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_app.detectors import Preprocessing
from ray_app.ensembles import build_ensemble, load_ensemble_card
from ray_app.errors import SourceError, Status, TouchstoneError
from ray_app.images import ImageLimits, inspect_bytes
from ray_app.images.provenance import ProvenancePolicy
from ray_app.images.provenance.containers import NOTHING
from ray_app.inference import BatchDecoder, StageClock, make_spec
from tests.make.images import jpeg

ROOT = Path(__file__).resolve().parents[2]
SPEC = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")


def decoder(marker_dir=None):
    return BatchDecoder(SPEC, StageClock(), marker_dir)


def test_bad_members_leave_their_slots_empty():
    good = decoder().decode([(slot, jpeg()) for slot in range(4)])
    late = SourceError(Status.SOURCE_TIMEOUT, "late")
    for place, bad in enumerate([b"", b"no image", jpeg()[:300], late]):
        batch = decoder().decode([(slot, bad if slot == place else jpeg()) for slot in range(4)])
        statuses = [outcome.status is Status.OK for outcome in batch.outcomes]
        assert statuses == [slot != place for slot in range(4)]
        assert not batch.pixels[0][place].any()
        others = [slot for slot in range(4) if slot != place]
        np.testing.assert_array_equal(batch.pixels[0][others], good.pixels[0][others])


def test_short_batch_has_the_shape_of_a_full_batch():
    batch = decoder().decode([(0, jpeg())])
    assert batch.pixels[0].shape == (SPEC.slots, 256, 256, 3)
    assert len(batch.outcomes) == 1


def test_batch_without_images_has_no_tensors():
    assert decoder().decode([(0, b"")]).pixels == ()


def test_image_that_killed_a_worker_is_decoded_in_a_child(tmp_path):
    dying = f"""
import os, sys
from pathlib import Path
from ray_app.images import CrashMarker
crumb = CrashMarker(Path({str(tmp_path)!r}))
crumb.note(7)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", dying], cwd=ROOT).returncode == -9
    careful = decoder(tmp_path)
    careful.careful.read_crash_markers()
    pool = careful.careful._pool
    trusted = careful.decode([(6, jpeg())])
    assert not any(child.pid for child in pool._children)
    suspect = careful.decode([(7, jpeg())])
    assert sum(child.pid is not None for child in pool._children) == 1
    np.testing.assert_array_equal(suspect.pixels[0], trusted.pixels[0])
    assert suspect.outcomes == trusted.outcomes
    careful.close()


@pytest.mark.parametrize(
    "error",
    [TypeError("a bug"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")],
    ids=lambda error: type(error).__name__,
)
def test_bug_costs_only_the_member_that_met_it(monkeypatch, error):
    bad, spec = jpeg(quality=60), replace(SPEC, provenance=ProvenancePolicy())

    def located(data, *_):
        if data == bad:
            raise error
        return NOTHING

    monkeypatch.setattr("ray_app.images.provenance.containers.locate", located)
    files = [(0, jpeg()), (1, bad), (2, jpeg())]
    batch = BatchDecoder(spec, StageClock()).decode(files)
    statuses = [outcome.status for outcome in batch.outcomes]
    assert statuses == [Status.OK, Status.DECODER_CRASHED, Status.OK]
    outcome = batch.outcomes[1]
    assert outcome.detail.startswith(f"Touchstone's own code failed: {type(error).__name__}: ")
    assert outcome.detail.isprintable()
    assert outcome.facts == inspect_bytes(bad)
    assert outcome.failure.startswith("Traceback")
    assert not batch.pixels[0][1].any()
    assert all(batch.pixels[0][slot].any() for slot in (0, 2))


@pytest.mark.parametrize(
    "error", [RuntimeError("not enough memory"), TouchstoneError("no child")], ids=repr
)
def test_failure_of_the_system_stays_an_exception(monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(Preprocessing, "prepare", failing)
    with pytest.raises(type(error)):
        BatchDecoder(SPEC, StageClock()).decode([(0, jpeg())])


def test_image_that_cannot_be_prepared_late_is_left_out(monkeypatch, caplog):
    def fail(*_):
        raise TypeError("a bug")

    spec = make_spec(build_ensemble(["corvi2023"]), limits=ImageLimits(), precision="fp32")
    batch = BatchDecoder(spec, StageClock(), hand_over=True).decode([(1, jpeg())])
    monkeypatch.setattr(Preprocessing, "prepare", fail)
    [images] = BatchDecoder(spec, StageClock()).complete(batch).pixels
    assert images.complete([0]) == {}
    assert "a bug" in caplog.text
