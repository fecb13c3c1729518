"""A labelled set of small pictures."""

import csv

import numpy as np
import pytest
from PIL import Image

PAIRS = 80


@pytest.fixture(scope="session", autouse=True)
def _own_config(tmp_path_factory):
    """A training records the licence of its card as accepted, here not for who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_CONFIG", str(tmp_path_factory.mktemp("config") / "config.yaml"))
        yield


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A list of 80 smooth pictures and, of each, a twin whose pixels are doubled, by two
    generators; a pair is a group.
    """
    folder = tmp_path_factory.mktemp("labelled")
    rows = [("path", "label", "generator", "group")]
    for number in range(PAIRS):
        rng = np.random.default_rng([7, number])
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)
        noisy = Image.fromarray(
            np.clip(np.asarray(picture) + rng.normal(0, 6, (80, 96, 3)), 0, 255).astype(np.uint8)
        )
        twin = noisy.resize((48, 40), Image.Resampling.BOX).resize(
            (96, 80), Image.Resampling.NEAREST
        )
        for label, image, generator in (
            ("real", noisy, "real:noise"),
            ("fake", twin, "double-a" if number % 2 else "double-b"),
        ):
            path = folder / label / f"{number:03d}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            rows.append((f"{label}/{path.name}", label, generator, f"pair-{number}"))
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return labels
