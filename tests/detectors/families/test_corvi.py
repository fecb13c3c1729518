import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.detector import build_network
from ray_app.detectors.families.resnet import Corvi
from ray_app.errors import DetectorError
from tests.detectors.fill import filled, with_arguments

RESNET50 = (3, 4, 6, 3)
NARROW = {"layers": RESNET50, "channels": (8, 8, 8, 8)}
# Not multiples of 8, smaller than a tile, one pixel over what fits into one window (64 + 2 × 56),
# long and thin; tiles not of whole cells.
SIZES = [((1, 1), 64), ((7, 300), 64), ((177, 121), 64), ((50, 20), 8), ((61, 97), 45)]


def network(tile, **arguments):
    return filled(Corvi(**arguments, tile=tile))


@pytest.mark.parametrize(("size", "tile"), SIZES)
@torch.inference_mode()
def test_tiles_do_not_change_the_logit(size, tile):
    whole, cut = network(4096, **NARROW), network(tile, **NARROW)
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut(pixels), whole(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.logit_map(pixels), whole.logit_map(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        cut.logit_map(pixels).mean(dim=(2, 3)), cut(pixels), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", ["corvi2023", "npr"])
@pytest.mark.parametrize("tile", [0, 7, 64.0, "64"])
def test_a_tile_of_less_than_a_cell_is_refused(name, tile):
    with pytest.raises(
        DetectorError, match=f"tile: a whole number of pixels, at least 8, not {tile!r}"
    ):
        build_network(with_arguments(load_card(name), {"tile": tile}))
