"""The embeddings that a training keeps of images, block by block."""

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
    embed,
    get_groups,
    get_label_column,
    read_embeddings,
    store_block,
)
from ray_app.training.loader import BatchLoader
from tests.make.cards import small_cards
from tests.make.datasets import labelled
from tests.make.networks.small_clip import small_card
from tests.training.labelled_rows import rows_in

CARDS = {card.name: card for card in small_cards()}


@pytest.mark.parametrize("name", ["unifd", "corvi2023"])
def test_embeddings_are_those_of_scoring(tmp_path, name):
    """The head gives the detector's own scores; Corvi keeps the size of every image."""
    card = seeded_card(CARDS[name], tmp_path)
    rows = rows_in(tmp_path, 9)
    (tmp_path / "03.png").write_bytes(b"no picture")
    detector = load_detector(card, precision="fp32")
    loader = BatchLoader(labelled(rows), card.preprocessing, policy=None, seed=0)
    images = {
        row: one for row, one in loader.iter_images(range(9)) if not isinstance(one, Exception)
    }
    scores = [detector.score(detector.prepare(images[row])[None])[0] for row in sorted(images)]
    detector.keep_embeddings()
    found = embed(detector, loader, np.arange(9))
    readable = [0, 1, 2, 4, 5, 6, 7, 8]
    assert found.rows.tolist() == readable
    assert found.labels.tolist() == [row % 2 for row in readable]
    np.testing.assert_allclose(LinearHead(card).score(found.vectors), scores, atol=1e-5)
    generators = get_label_column(loader.rows, found.rows, "generator")
    assert generators == ["g" if row % 2 else "real" for row in readable]
    assert get_groups(loader.rows, found.rows[:2]) == ["p0", "p0"]
    assert not len(embed(detector, loader, np.array([3])))


def test_blocks_come_back_in_the_order_of_their_rows(tmp_path):
    store = Store.open(str(tmp_path))
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    def keep(first, rows):
        found = vectors[rows] if rows else np.empty((0, 0), np.float32)
        labels = np.ones(len(rows), int)
        store_block(store, "test", first, Embeddings(found, labels, np.array(rows, int), "bf16"))

    keep(2, [])
    with pytest.raises(TouchstoneError, match="none of the test images"):
        read_embeddings(store, "test")
    keep(4, [4])
    keep(0, [0, 1])
    found = read_embeddings(store, "test")
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


def test_features_are_kept_by_image_and_settings(tmp_path):
    card, _ = small_card(tmp_path)
    detector, images, url = loaded(card), noise(3), str(tmp_path / "features")
    FeatureFolder(url, detector).compute(iter(images))
    again = FeatureFolder(url, detector).vectors
    assert again.keys() == dict(images).keys()
    scores = detector.score(np.stack([image for _, image in images]))
    found = LinearHead(card).score(np.stack(list(again.values())))
    np.testing.assert_allclose(found, scores, atol=1e-5)
    bicubic = card.preprocessing.model_copy(update={"filter": "bicubic"})
    resized = card.model_copy(update={"preprocessing": bicubic})
    for other in (loaded(resized), loaded(card, "bf16")):
        assert not FeatureFolder(url, other).vectors


def test_interrupted_features_are_kept(tmp_path):
    detector, url = loaded(small_card(tmp_path)[0]), str(tmp_path / "features")
    count = BLOCK_IMAGES + detector.slots

    def interrupted():
        yield from noise(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureFolder(url, detector).compute(interrupted())
    assert len(FeatureFolder(url, detector).vectors) == count
    blocks = sorted((tmp_path / "features").rglob("*.npz"))
    assert len(blocks) == 2
    blocks[0].write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(StorageError, match=f"{blocks[0].name}: not a file of features"):
        FeatureFolder(url, detector)
