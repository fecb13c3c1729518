"""Cards, preprocessing, weights and networks: pixels → scores. Cards and preprocessing load without torch; the rest loads on first use."""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.detectors.card import DetectorCard, list_cards, load_card, variants_of
    from ray_app.detectors.detector import Detector, load_detector
    from ray_app.detectors.preprocessing import Preprocessing, ResizeMode
    from ray_app.detectors.weights import MIRROR_VARIABLE, publish_weights, resolve_weights, verify_weights, weights_digest
else:
    __getattr__ = on_first_use(__name__)
