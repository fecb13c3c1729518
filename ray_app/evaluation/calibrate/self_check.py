"""Whether the labelled images themselves pass what a card will ask of archives (`self_check`): the promise, and the comparison.

Each part is other sources and generators of the same labels. Where one of them, taken as an archive, fails, archives of others will.
"""

from collections.abc import Sequence

import numpy as np

from ray_app.ensembles import EnsembleCard, PopulationTally
from ray_app.ensembles.population import Properties, chosen
from ray_app.evaluation.calibrate.division import PARTS, Division
from ray_app.evaluation.calibrate.fit_card import Assembled
from ray_app.metrics import intervals, operating_points
from ray_app.metrics.arrays import Bools
from ray_app.reports.calibration import SelfCheck
from ray_app.reports.evaluation.system_model import FigureFacts
from ray_app.reports.format import stated
from ray_app.scoring.guarantee import shifts_of


def self_check(card: EnsembleCard, assembled: Assembled, division: Division, properties: Properties) -> list[SelfCheck]:
    """Of all labelled images and of each part: the false positives of the card, and in which properties it would be called unlike."""
    every = np.ones(len(division.labelled), np.bool_)
    scores = assembled.fitted.scores(division.labelled)
    flagged: Bools = scores >= card.thresholds.fake_above
    named = [("all labelled images", every), *((f"part {name}", division.parts == number) for number, name in enumerate(PARTS))]
    return [_checked(card, name, some, flagged[some & division.reals], properties) for name, some in named]


def _checked(card: EnsembleCard, name: str, some: Bools, flagged: Bools, properties: Properties) -> SelfCheck:
    tally = PopulationTally(card.population.features if card.population else ())
    tally.add({key: chosen(column, some) for key, column in properties.items()})
    unlike = [shift.feature for shift in shifts_of(card, tally) if shift.noticed]
    rate = intervals.proportion(int(flagged.sum()), len(flagged), operating_points.NO_REALS)
    promised = card.guarantee.target_fpr if card.guarantee else 1.0
    broken = rate.interval is not None and rate.interval[0] > promised
    finding = _finding(name, rate.value or 0.0, unlike, broken=broken)
    return SelfCheck(name=name, false_positives=FigureFacts.of(rate), unlike=unlike, finding=finding)


def _finding(name: str, rate: float, unlike: Sequence[str], *, broken: bool) -> str | None:
    found = [f"{stated(rate)} of its reals are called fake, more than is promised"] if broken else []
    found += [f"it would be called unlike in {', '.join(unlike)}"] if unlike else []
    if not found:
        return None
    return f"Self-check, {name} taken as an archive: {', and '.join(found)}. Sources or generators differ, and an archive's may too."
