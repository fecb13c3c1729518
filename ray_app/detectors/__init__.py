"""Load detectors and score images: cards, preprocessing, weights, and networks.

A detector is a network that scores how likely an image is fake: generated or altered by a model.
Its card is a YAML file with everything that Touchstone knows about it. Start at `load_detector`.
Cards and preprocessing load without torch. The other modules load on first use.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    # `as` marks the names that docs/versioning.md guarantees, for the type checkers of users.
    from ray_app.detectors.card import DetectorCard as DetectorCard
    from ray_app.detectors.card import list_cards, list_variants
    from ray_app.detectors.card import load_card as load_card
    from ray_app.detectors.detector import Detector, load_detector
    from ray_app.detectors.preprocessing import Preprocessing as Preprocessing
    from ray_app.detectors.preprocessing import RequestedResize, ResizeMode, choose_resize
    from ray_app.detectors.weights import (
        MIRROR_VARIABLE,
        publish_weights,
        resolve_weights,
        verify_weights,
        weights_digest,
    )
else:
    __getattr__ = on_first_use(__name__)
