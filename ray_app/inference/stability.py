"""Whether a verdict outlives another save (`uncertain`, `settled`): seeded recompressed views of images near a threshold."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.detectors.card import Platt
from ray_app.ensembles import Decisions, EnsembleCard, decide
from ray_app.ensembles.card import Thresholds
from ray_app.errors import Reason
from ray_app.transforms.perturbations import Perturbation

Scores = Mapping[str, npt.NDArray[np.float32]]
Rows = npt.NDArray[np.intp]

# What a picture shows stays what it is when a website shrinks it a little and saves it again; a verdict that does not is none.
# One more trip through a platform: it shrinks a picture or leaves it, then saves it at a quality that is usual on the web.
STEPS = ({"op": "resize", "scale": (0.7, 1.0), "filter": "lanczos"}, {"op": "jpeg", "quality": (60, 95)})
WORDS = ("fake", "real", "abstain")


@dataclass(frozen=True)
class Stability:
    """Ask `count` views of every image whose score is no more than `margin` (log-odds) from the threshold of its verdict."""

    count: int
    margin: float

    @cached_property
    def views(self) -> tuple[Perturbation, ...]:
        """The views. Each draws its size and quality by the file's SHA-256 and its own name: the same on every machine, in any order."""
        return tuple(Perturbation.model_validate({"name": f"stability-{number}", "steps": STEPS}) for number in range(1, self.count + 1))

    def facts(self) -> dict[str, Any]:
        """What a run's identity says of it."""
        return {"count": self.count, "margin": self.margin, "steps": self.views[0].facts()}


def uncertain(score: npt.NDArray[np.float64], verdict: Sequence[str | None], thresholds: Thresholds, margin: float) -> Rows:
    """The rows (ascending) with a verdict of `fake` or `real` that a change of `margin` log-odds or less would take from them."""
    verdicts = np.array(verdict, dtype=object)
    beyond = np.where(verdicts == "fake", score - thresholds.fake_above, thresholds.real_below - score)
    return np.flatnonzero(np.isin(verdicts, ("fake", "real")) & (beyond <= margin))


def settled(
    card: EnsembleCard,
    decisions: Decisions,
    views: Sequence[Scores],
    *,
    calibrations: Mapping[str, Platt | None],
    margin: float,
    audited: Sequence[bool] = (),
) -> Decisions:
    """The decisions, where every verdict near its threshold that some view does not share is `abstain`, and the detail counts the views.

    `views`: per view one column of scores for every member, of all rows; NaN where nobody looked. A view that abstains does not share
    the verdict either: what remains a verdict is what all views say. One without an ensemble score (a codec could not hold the image, a
    member that it needs gave none) says nothing. The score and the probability stay those of the image as it is.
    """
    rows = uncertain(decisions.score, decisions.verdict, card.thresholds, margin) if views else np.array([], np.intp)
    if not len(rows):
        return decisions
    drawn = np.asarray(audited, bool)[rows].tolist() if len(audited) else ()
    seen = [decide(card, {name: column[rows] for name, column in view.items()}, calibrations=calibrations, audited=drawn) for view in views]
    verdict, reason, detail = list(decisions.verdict), list(decisions.reason), list(decisions.detail)
    for place, row in enumerate(rows.tolist()):
        words = Counter(one.verdict[place] for one in seen if np.isfinite(one.score[place]))
        if words.total() > words[verdict[row]]:
            verdict[row], reason[row], detail[row] = "abstain", Reason.UNSTABLE, _why(words, verdict[row])
    return replace(decisions, verdict=verdict, reason=reason, detail=detail)


def _why(words: Counter[str], verdict: str) -> str:
    """For example: 2 of 5 recompressed views say real, 1 says abstain."""
    others = [(word, words[word]) for word in WORDS if word != verdict and words[word]]
    (first, count), *rest = others
    parts = [f"{count} of {words.total()} recompressed views {_says(count)} {first}", *(f"{n} {_says(n)} {word}" for word, n in rest)]
    return ", ".join(parts)


def _says(count: int) -> str:
    return "says" if count == 1 else "say"
