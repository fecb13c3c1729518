"""What stands behind a system's figures in an evaluation's document: its weights and licence (`StandingFacts`), and what an image costs
(`CostFacts`).

Fields stand in the order of the file.
"""

from typing import Literal

from ray_app.config import Section

NOT_SAID = "the evaluation does not say which weights were loaded; evaluate again with this version"
WeightsWord = Literal["published", "own", "other", "unknown", "demonstration"]


class WeightsFacts(Section):
    """Whose weights made the scores: `published` (the file of a shipped card), `own` (the file of a card of the user's), `other` (not the
    file that the card of this name means), `unknown` (nobody stated its SHA-256), or a `demonstration`. `why`: the same in words.

    `loaded`, `stated`: the SHA-256 of what was loaded, as the run notes it, and of what the card means.
    """

    standing: str = "unknown"
    why: str = NOT_SAID
    loaded: str = ""
    stated: str = ""

    @property
    def ranks(self) -> bool:
        """Whether figures of these weights are figures of the detector."""
        return self.standing in ("published", "own")


class StandingFacts(Section):
    """Of a detector, or of all members of an ensemble: the weights that rank least, licences, and the terms that bind most."""

    weights: WeightsFacts = WeightsFacts()
    licence: str = ""
    terms: str = ""
    gmac: float | None = None


class CostFacts(Section):
    """What one picture takes, as the run measured it: milliseconds of one worker in the stage `score`, and bytes of its process at most.

    `pictures`: of how many, views counted; `of`: how many detectors the process held. `why`: why there is no time.
    """

    ms_per_image: float | None = None
    process_bytes: int | None = None
    of: int = 1
    pictures: int = 0
    why: str = ""
