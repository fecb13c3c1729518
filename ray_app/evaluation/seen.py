"""Whether a detector saw a generator in training, as its card tells. Knows cards and names of generators; knows no images."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from ray_app.detectors import DetectorCard

Seen = Literal["in-training", "unseen", "unknown"]
_SEPARATORS = re.compile(r"[\s._-]+")


def seen(card: DetectorCard, generator: str) -> Seen:
    """Whether the fakes that the card's weights were trained on were of this generator, by the name that labels give it.

    A name that the card does not list is `unseen` only where the card lists all; sources of real images (`real`, `real:…`) always are
    unknown unless listed.
    """
    data = card.training_data
    if any(is_named(generator, glob) for glob in data.generators):
        return "in-training"
    is_real = generator == "real" or generator.startswith("real:")
    return "unseen" if data.complete and data.generators and not is_real else "unknown"


def seen_by_any(found: Iterable[str]) -> Seen:
    """What is known of several at once, members of an ensemble or generators of a row: one that was seen decides, and one unknown next."""
    words = set(found)
    if "in-training" in words:
        return "in-training"
    return "unseen" if words == {"unseen"} else "unknown"


def is_named(name: str, glob: str) -> bool:
    """Whether a glob matches a generator's name; case, spaces, dots, dashes and underscores make no difference."""
    return fnmatchcase(_plain(name), _plain(glob))


def _plain(text: str) -> str:
    return _SEPARATORS.sub("", text.casefold())
