"""What a training keeps of images: the vectors that scoring would make, of what can be read, block
by block.
"""

import numpy as np
import pytest

from benchmarks.seeded import seeded_card
from ray_app.detectors import load_detector
from ray_app.detectors.linear_head import LinearHead
from ray_app.errors import TouchstoneError
from ray_app.storage import Store
from ray_app.training.embeddings import (
    Embeddings,
    column_of,
    embed,
    groups_of,
    keep_block,
    kept_embeddings,
)
from ray_app.training.loader import BatchLoader
from tests.datasets.tables import labelled
from tests.scoring.eight import small_cards
from tests.training.test_loader import rows_in

CARDS = {card.name: card for card in small_cards()}


@pytest.mark.parametrize("name", ["unifd", "corvi2023"])
def test_embeddings_are_those_of_scoring(tmp_path, name):
    """Their head gives the detector's own scores, image by image; what cannot be read is not there.
    Corvi keeps the size of every image.
    """
    card = seeded_card(CARDS[name], tmp_path)
    told = rows_in(tmp_path, 9)
    (tmp_path / "03.png").write_bytes(b"no picture")
    detector = load_detector(card, precision="fp32")
    loader = BatchLoader(labelled(told), card.preprocessing, policy=None, seed=0)
    pictures = {
        row: detector.prepare(image)
        for row, image in loader.images(range(9))
        if not isinstance(image, Exception)
    }
    scores = [detector.score(pictures[row][None])[0] for row in sorted(pictures)]
    detector.keep_embeddings()
    found = embed(detector, loader, np.arange(9))
    assert found.rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert found.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0]
    np.testing.assert_allclose(LinearHead(card).score(found.vectors), scores, atol=1e-5)
    assert column_of(loader.rows, found.rows, "generator") == [
        "real",
        "g",
        "real",
        "real",
        "g",
        "real",
        "g",
        "real",
    ]
    assert groups_of(loader.rows, found.rows[:2]) == ["p0", "p0"]
    assert not len(embed(detector, loader, np.array([3])))


def test_blocks_come_back_in_the_order_of_their_rows(tmp_path):
    store, vectors = (
        Store.open(str(tmp_path)),
        np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
    )
    keep_block(
        store,
        "test",
        2,
        Embeddings(np.empty((0, 0), np.float32), np.ones(0, int), np.ones(0, int), "bf16"),
    )
    with pytest.raises(TouchstoneError, match="not one of the test images"):
        kept_embeddings(store, "test")
    for first, rows in ((4, [4]), (0, [0, 1])):
        keep_block(
            store,
            "test",
            first,
            Embeddings(vectors[rows], np.ones(len(rows), int), np.array(rows), "bf16"),
        )
    found = kept_embeddings(store, "test")
    assert found.rows.tolist() == [0, 1, 4]
    np.testing.assert_array_equal(found.vectors, vectors[[0, 1, 4]])
    assert found.precision == "bf16"
