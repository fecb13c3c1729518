"""The detectors of a work, with the settings with which `touchstone score` runs them."""

from typing import TYPE_CHECKING

from benchmarks.work import Work

if TYPE_CHECKING:
    from ray_app.detectors import Detector

# Images that are decoded before they are scored, as in a worker of a run on a CPU. Decoders and
# networks that alternate after a few images evict each other from the caches.
DECODED = 64


def load_all(work: Work, *, is_exact: bool = False) -> "list[Detector]":
    """Load the detectors of a work. `is_exact` resizes with Pillow."""
    from ray_app.detectors import load_detector
    from ray_app.images import BatchLimits
    from ray_app.inference import make_spec

    spec = make_spec(work.ensemble_card(), limits=BatchLimits())
    return [
        load_detector(
            card,
            precision=spec.precision[name],
            resize="exact" if is_exact else spec.choose_resize(name),
        )
        for name, card in spec.cards.items()
    ]
