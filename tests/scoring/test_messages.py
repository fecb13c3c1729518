"""What crosses processes comes out as it went in, and pixels are not copied on the way out."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from ray_app.archives import BlockRef
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import Batch, DecodeResult, DetectorOutputs
from ray_app.inference.batch import PerturbedBatch, ReusedOutput
from ray_app.scoring import workers
from ray_app.scoring.messages import BlockWork, OpenPiece

REF = BlockRef(0, 3, 2, 100, "part-00000-00000.parquet", 1)


def batch(seed, *, slots=4, usable=True):
    rng = np.random.default_rng(seed)
    outcomes = (
        DecodeResult(Status.OK, None, ImageFileFacts("00", width=seed, height=2), provenance='{"c2pa": null}'),
        DecodeResult(Status.EMPTY_FILE, "no bytes", None),
    )
    if not usable:
        return Batch(outcomes, (), (None, None))
    fixed = tuple(rng.integers(0, 256, (slots, side, side, 3), dtype=np.uint8) for side in (16, 24))
    native = ((None, None),)
    return Batch(outcomes, (*fixed, *native), (b"a file", None), (PerturbedBatch(fixed[:1], ((16, 16), None)),), (5, -7))


@pytest.mark.parametrize("usable", [[True, True, True], [True, False, True], [False], []])
def test_an_open_piece_comes_back_as_it_was_and_its_pixels_are_not_copied(usable):
    work = BlockWork({"decode": 0.5}, {"decoded": 3, "looked_again": 0}, 7)
    piece = OpenPiece(REF, 2, "file:///a", work, [batch(seed, usable=each) for seed, each in enumerate(usable)])
    beside = []
    found = pickle.loads(pickle.dumps(piece, 5, buffer_callback=beside.append), buffers=beside)
    assert (found.ref, found.start, found.first, found.work) == (REF, 2, "file:///a", work)
    assert len(found.batches) == len(piece.batches)
    for left, right in zip(found.batches, piece.batches, strict=True):
        assert (left.outcomes, left.encoded, left.ids) == (right.outcomes, right.encoded, right.ids)
        assert [view.sizes for view in left.views] == [view.sizes for view in right.views]
        assert len(left.pixels) == len(right.pixels)
        for one, other in zip(left.pixels, right.pixels, strict=True):
            assert isinstance(one, np.ndarray) == isinstance(other, np.ndarray)
            np.testing.assert_array_equal(one, other)
            assert not isinstance(one, np.ndarray) or np.shares_memory(one, other)


def test_work_of_stages_adds_up():
    first, second = (
        BlockWork({"decode": 0.5, "wait": 0.0}, {"decoded": 3}, 7),
        BlockWork({"decode": 0.5, "score": 1.0}, {"looked_again": 0}, 5),
    )
    assert first.joined(second) == BlockWork({"decode": 1.0, "wait": 0.0, "score": 1.0}, {"decoded": 3, "looked_again": 0}, 7)


@pytest.mark.parametrize(("count", "most", "starts"), [(10, 4, [0, 4, 8]), (8, 4, [0, 4]), (3, 4, [0]), (1, 1, [0])])
def test_pieces_of_a_block_have_each_member_once_and_travel_alone(count, most, starts):
    members = pa.table({"image_id": pa.array(range(count), pa.int64()), "uri": [f"{number:0999}" for number in range(count)]})
    pieces = list(workers.pieces_of(REF, members, most))
    assert [piece.start for piece in pieces] == starts
    assert pa.concat_tables([piece.members for piece in pieces]).equals(members)
    if len(pieces) > 1:
        assert len(pickle.dumps(pieces[-1])) < 1500 * (count - starts[-1]) + 3000, "the whole block travels with it"


def test_pieces_are_joined_in_the_places_of_their_block(monkeypatch):
    """Also where a member names another of the same bytes, by its place in the piece."""
    plain, twin = DecodeResult(Status.OK, None, None), DecodeResult(Status.OK, None, None, said=ReusedOutput(0))
    given = []
    monkeypatch.setattr(workers, "commit_block", lambda *committed: given.append(committed) or MadeOfNothing())
    scores = [DetectorOutputs.clean(scores={"d": np.array([one, one + 1], np.float32)}) for one in (0, 5)]
    pieces = [OpenPiece(REF, start, "", BlockWork(), outcomes=[plain, twin], outputs=scores[start // 2]) for start in (0, 2)]
    workers.commit_pieces(None, REF, pa.table({"image_id": [1, 2, 3, 4]}), pieces, None)
    _, _, _, outcomes, outputs, *_ = given[0]
    assert [outcome.said and outcome.said.twin for outcome in outcomes] == [None, 0, None, 2]
    np.testing.assert_array_equal(outputs.scores["d"], [0, 1, 5, 6])


class MadeOfNothing:
    bad, failures = 0, ()
