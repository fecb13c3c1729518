"""Metadata that tell nothing make no shortcut, and metadata that do are found."""

import numpy as np
import pytest

from ray_app.metrics.shortcut import confounded, harmless, shortcut_auc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLEAN = "7. a set whose files tell nothing is called confounded"
FOUND = "7. a shortcut is not found, or said not to be there"
SIZES = (100, 300, 1_000)
WIDTHS, HEIGHTS = (512, 640, 768, 1_024, 1_536, 2_048, 4_000), (512, 768, 1_024, 3_000)
FORMATS = ("JPEG", "PNG", "WEBP")


def by_image(rng, n):
    """Every file is of its own kind."""
    return rng.integers(0, n, n), n


def two_dominating(rng, n):
    """Two sources have two fifths of the files each, six the rest; all files of a source are of one
    kind.
    """
    return rng.choice(8, n, p=[0.4, 0.4, *[0.2 / 6] * 6]), 8


def files(rng, kinds, count, *, few=False):
    """Columns of files of `count` kinds: width, height, format and bytes; `few`: width and format
    of few values, so that most are tied.
    """
    width = rng.choice(WIDTHS[:3] if few else WIDTHS, count)[kinds]
    form = rng.choice(FORMATS, count, p=[0.7, 0.2, 0.1])[kinds]
    if few:
        return {"width": width, "format": form}
    height = rng.choice(HEIGHTS, count)[kinds]
    size = np.round(width * height * rng.lognormal(-1, 0.4, len(kinds)))
    return {"width": width, "height": height, "format": form, "size_bytes": size}


KINDS = ((by_image, 0.5, False), (by_image, 0.15, True), (two_dominating, 0.5, False))


def test_clean_sets_are_not_called_confounded(simulated):
    fired = []
    for seed in range(1_000):
        rng, n = np.random.default_rng(seed), SIZES[seed % 3]
        sources, share, few = KINDS[seed // 3 % 3]
        fake = rng.permutation(np.arange(n) < share * n)
        fired.append(confounded(shortcut_auc(files(rng, *sources(rng, n), few=few), fake)))
    words = "100, 300 and 1,000 files: each its own kind; 9 kinds, 15 % fake (ties); 8 sources, two of them dominating"
    simulated(CLEAN, words, 0.025, fired)


def test_a_real_shortcut_is_found(simulated):
    missed = []
    for seed in range(150):
        rng, fake = np.random.default_rng(seed), np.arange(100) < 50
        columns = files(rng, *by_image(rng, 100))
        is_png = np.where(fake, rng.random(100) < 0.8, rng.random(100) < 0.1)
        columns["format"] = np.where(is_png, "PNG", "JPEG")
        auc = shortcut_auc(columns, fake)
        missed.append(not confounded(auc) or harmless(auc))
    simulated(FOUND, "100 files, 80 % of fakes and 10 % of reals PNG", 0.05, missed)
