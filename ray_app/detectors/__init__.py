"""Cards, preprocessing, weights and networks: pixels → scores. Cards and preprocessing load without
torch; the rest loads on first use.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:  # `as`: what docs/versioning.md promises, for type checkers of others, too
    from ray_app.detectors.card import DetectorCard as DetectorCard
    from ray_app.detectors.card import list_cards, variants_of
    from ray_app.detectors.card import load_card as load_card
    from ray_app.detectors.detector import Detector, load_detector
    from ray_app.detectors.preprocessing import Preprocessing as Preprocessing
    from ray_app.detectors.preprocessing import ResizeMode
    from ray_app.detectors.weights import (
        MIRROR_VARIABLE,
        publish_weights,
        resolve_weights,
        verify_weights,
        weights_digest,
    )
else:
    __getattr__ = on_first_use(__name__)
