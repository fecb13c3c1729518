"""What a training keeps of images: the vectors that scoring would make, of what can be read, block
by block.
"""

import numpy as np
import pytest

from benchmarks.seeded import seeded_card
from ray_app.detectors import load_detector
from ray_app.detectors.linear_head import LinearHead
from ray_app.errors import StorageError, TouchstoneError
from ray_app.storage import Store
from ray_app.training.embeddings import (
    BLOCK_IMAGES,
    Embeddings,
    FeatureFolder,
    column_of,
    embed,
    groups_of,
    keep_block,
    kept_embeddings,
)
from ray_app.training.loader import BatchLoader
from tests.datasets.tables import labelled
from tests.detectors.small_clip import small_card
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


def loaded(card, precision="fp32"):
    detector = load_detector(card, precision=precision)
    detector.keep_embeddings()
    return detector


def noise(count):
    random = np.random.default_rng(0)
    return [(f"{n:064x}", random.integers(0, 256, (28, 28, 3), np.uint8)) for n in range(count)]


def test_features_are_kept_by_image_and_what_decides_them(tmp_path):
    card, _ = small_card(tmp_path)
    detector, images = loaded(card), noise(3)
    folder = FeatureFolder(str(tmp_path / "features"), detector)
    folder.compute(iter(images))
    again = FeatureFolder(str(tmp_path / "features"), detector).vectors
    assert again.keys() == dict(images).keys()
    scores = detector.score(np.stack([image for _, image in images]))
    np.testing.assert_allclose(
        LinearHead(card).score(np.stack(list(again.values()))), scores, atol=1e-5
    )
    bicubic = card.preprocessing.model_copy(update={"filter": "bicubic"})
    resized = card.model_copy(update={"preprocessing": bicubic})
    for other in (loaded(resized), loaded(card, "bf16")):
        assert not FeatureFolder(str(tmp_path / "features"), other).vectors


def test_interrupted_features_are_kept_and_damaged_ones_refused(tmp_path):
    detector = loaded(small_card(tmp_path)[0])
    count = BLOCK_IMAGES + detector.slots

    def interrupted():
        yield from noise(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureFolder(str(tmp_path / "features"), detector).compute(interrupted())
    assert len(FeatureFolder(str(tmp_path / "features"), detector).vectors) == count
    blocks = sorted((tmp_path / "features").rglob("*.npz"))
    assert len(blocks) == 2
    blocks[0].write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(StorageError, match=f"{blocks[0].name}: not a file of features"):
        FeatureFolder(str(tmp_path / "features"), detector)
