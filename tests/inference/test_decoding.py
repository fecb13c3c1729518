"""Batches: each image in its own slot, failures beside it, suspects in a child process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import SourceError, Status
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, StageClock, make_spec
from tests.images.factory import jpeg

ROOT = Path(__file__).resolve().parents[2]
SPEC = make_spec(load_ensemble_card("default"), limits=ImageLimits(), precision="fp32")


def decoder(crumbs=None):
    return BatchDecoder(SPEC, StageClock(), crumbs)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    "bad", [b"", b"no image", jpeg()[:300], SourceError(Status.SOURCE_TIMEOUT, "late")], ids=["empty", "text", "cut", "late"]
)
def test_a_bad_member_leaves_its_slot_empty_and_the_others_alone(place, bad):
    good = decoder().decode([(slot, jpeg()) for slot in range(4)])
    members = [(slot, bad if slot == place else jpeg()) for slot in range(4)]
    batch = decoder().decode(members)
    assert [outcome.status is Status.OK for outcome in batch.outcomes] == [slot != place for slot in range(4)]
    assert not batch.pixels[0][place].any()
    others = [slot for slot in range(4) if slot != place]
    np.testing.assert_array_equal(batch.pixels[0][others], good.pixels[0][others])


def test_a_short_batch_has_its_static_shape():
    batch = decoder().decode([(0, jpeg())])
    assert batch.pixels[0].shape == (SPEC.slots, 256, 256, 3)
    assert len(batch.outcomes) == 1


def test_a_batch_without_pixels_has_no_tensors():
    assert decoder().decode([(0, b"")]).pixels == ()


def test_what_killed_a_worker_is_decoded_in_a_child_with_the_same_pixels(tmp_path):
    dying = f"""
import os, sys
from pathlib import Path
from ray_app.images import Breadcrumb
crumb = Breadcrumb(Path({str(tmp_path)!r}))
crumb.note(7)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", dying], cwd=ROOT).returncode == -9
    careful = decoder(tmp_path)
    careful.look_for_crumbs()
    assert careful._child.pid is None
    trusted = careful.decode([(6, jpeg())])
    assert careful._child.pid is None
    suspect = careful.decode([(7, jpeg())])
    assert careful._child.pid is not None
    np.testing.assert_array_equal(suspect.pixels[0], trusted.pixels[0])
    assert suspect.outcomes == trusted.outcomes
    careful.close()
