"""The systems of a run that give scores, its ensemble and every detector (`systems_of`), and
whether one was trained on a generator (`training_overlap`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.labels import names_a_real
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.card import Platt
from ray_app.ensembles import EnsembleCard, combine, drawn_by_audit, is_calibrated
from ray_app.errors import TouchstoneError
from ray_app.identification.generators import spelling_key
from ray_app.runs import RunDirectory

ENSEMBLE = "ensemble"
Column = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Seen = Literal["in-training", "unseen", "unknown"]


@dataclass(frozen=True)
class System:
    """One column of scores (log-odds of fake). `calibration`: what makes chances of them;
    `decides`: the run's verdicts are its own; `late`: in a cascade it scores only the images that
    go on. `kind`: `ensemble` where the scores are the ensemble's, under whatever name.

    Fake is a score above `threshold`, or, unless `strict`, at it. `card`: None where it cannot be
    read any more.
    """

    name: str
    kind: str
    title: str
    threshold: float
    strict: bool
    calibration: Platt | None = None
    calibrated: bool = False
    binary: bool = False
    decides: bool = False
    late: bool = False
    card: DetectorCard | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether its scores are those that the ensemble made of its detectors'."""
        return self.kind == ENSEMBLE

    @property
    def cut(self) -> dict[str, Any]:
        """Threshold, strictness and calibration, as `ScoredImages` takes them."""
        return {"threshold": self.threshold, "strict": self.strict, "calibration": self.calibration}


@dataclass(frozen=True)
class Systems:
    """All of a run, the headline first. `members`: the ensemble's detectors, as the run names them,
    in its own order.
    """

    all: tuple[System, ...]
    ensemble: EnsembleCard | None
    members: tuple[str, ...]
    calibrations: Mapping[str, Platt | None]

    @property
    def headline(self) -> System:
        """The ensemble, under its only detector's name where it has but one."""
        return self.all[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """What rows must have beside their scores: the bytes' digest, by which a cascade's audit
        draws images, whatever a view shows.
        """
        return (
            ("sha256",) if self.ensemble is not None and self.ensemble.cascade is not None else ()
        )

    def score_columns(self, table: pa.Table) -> dict[str, pa.Array]:
        """Of result rows the column `score:SYSTEM` for each system, and `view:SYSTEM|VIEW` for each
        of its scores of a view; null where there is no finite one.
        """
        found = {f"score:{name}": scores for name, scores in self.clean(table).items()}
        found |= {
            f"view:{name}|{view}": scores
            for view, columns in self.views(table).items()
            for name, scores in columns.items()
        }
        return {name: pa.array(scores, mask=~np.isfinite(scores)) for name, scores in found.items()}

    def clean(self, table: pa.Table) -> dict[str, Column]:
        """Per system, the scores (n,) of result rows; NaN = none."""
        scores = table["scores"].combine_chunks()
        there = {field.name for field in scores.type}
        return {
            one.name: _floats(table["score"])
            if one.is_ensemble
            else _floats(_field(scores, one.name, there))
            for one in self.all
        }

    def views(self, table: pa.Table) -> dict[str, dict[str, Column]]:
        """Per view and system the same of perturbed pixels; nothing where the run has no views. The
        ensemble decides anew.
        """
        if "views" not in table.column_names:
            return {}
        column = table["views"].combine_chunks()
        drawn = (
            drawn_by_audit(self.ensemble, table["sha256"].to_pylist())
            if self.ensemble is not None and self.columns
            else ()
        )
        return {
            field.name: self._view(pc.struct_field(column, field.name), drawn)
            for field in column.type
        }

    def _view(self, scores: pa.Array, audited: Sequence[bool]) -> dict[str, Column]:
        there = {field.name for field in scores.type}
        found: dict[str, Column] = {
            one.name: _floats(_field(scores, one.name, there))
            for one in self.all
            if not one.is_ensemble
        }
        if self.ensemble is None or not self.headline.is_ensemble:
            return found
        columns = {
            name: np.asarray(_floats(_field(scores, name, there)), np.float32)
            for name in self.members
        }
        return {
            self.headline.name: combine(self.ensemble, columns, self.calibrations, audited=audited),
            **found,
        }


def systems_of(
    run: RunDirectory, *, threshold: float | None = None, strict: bool = True
) -> Systems:
    """Those of a run by its `run.json`. A protocol's `threshold` holds for all; without one a
    detector's is 0, and an ensemble's is where its verdict begins to be fake.

    An ensemble of one detector and that detector are one system, under the detector's name: with
    the ensemble's scores, title and threshold, or with the detector's own scores where the ensemble
    leaves them as they are, or where a protocol, which is for such scores, gives a threshold.
    """
    described = run.describe()
    names: list[str] = described["detectors"]
    entries = described["identity"].get("detectors", {})
    calibrations = {name: _calibration(entries.get(name, {})) for name in names}
    ensemble = (
        EnsembleCard.model_validate(described["ensemble"]) if described.get("ensemble") else None
    )
    cards = _cards(ensemble, names)
    members = tuple(cards[member.detector][0] for member in ensemble.members) if ensemble else ()
    for name, member in zip(members, ensemble.members if ensemble else (), strict=True):
        calibrations[name] = member.calibration or calibrations.get(name)
    by_name = {name: card for name, card in cards.values()}
    late = members[ensemble.first :] if ensemble else ()
    detectors = [
        System(name, "detector", card.title if (card := by_name.get(name)) else name, threshold or 0.0, strict, calibrations[name],
               calibrations[name] is not None, bool(card and card.replies), late=name in late, card=card)
        for name in names
    ]  # fmt: skip
    kept = {name: calibrations[name] for name in members if name in calibrations}
    whole = _ensemble(ensemble, kept, threshold, strict)
    if ensemble is None or len(members) != 1 or members[0] not in names:
        return Systems((whole, *detectors), ensemble, members, kept)
    [only], others = (
        [one for one in detectors if (one.name == members[0]) is is_its] for is_its in (True, False)
    )
    if threshold is not None or _is_plain(ensemble, kept):
        return Systems((replace(only, decides=True), *others), ensemble, members, kept)
    return Systems(
        (replace(whole, name=only.name, binary=only.binary, card=only.card), *others),
        ensemble,
        members,
        kept,
    )


def training_overlap(card: DetectorCard, generator: str) -> Seen:
    """Whether the fakes that the card's weights were trained on were of this generator, by the name
    that labels give it.

    A name that the card does not list is `unseen` only where the card lists all; sources of real
    images (`real`, `real:…`) always are unknown unless listed.
    """
    data = card.training_data
    if any(is_named(generator, glob) for glob in data.generators):
        return "in-training"
    return (
        "unseen" if data.complete and data.generators and not names_a_real(generator) else "unknown"
    )


def combined_overlap(found: Iterable[str]) -> Seen:
    """What is known of several at once, members of an ensemble or generators of a row: one that was
    seen decides, and one unknown next.
    """
    words = set(found)
    if "in-training" in words:
        return "in-training"
    return "unseen" if words == {"unseen"} else "unknown"


def is_named(name: str, glob: str) -> bool:
    """Whether a glob matches a generator's name; case, spaces, dots, dashes and underscores make no
    difference.
    """
    return fnmatchcase(spelling_key(name), spelling_key(glob))


def _ensemble(
    card: EnsembleCard | None,
    calibrations: Mapping[str, Platt | None],
    threshold: float | None,
    strict: bool,
) -> System:
    if card is None:
        return System(ENSEMBLE, "ensemble", "The ensemble", threshold or 0.0, strict, decides=True)
    begins, strict = (
        (card.thresholds.fake_above, False) if threshold is None else (threshold, strict)
    )
    return System(
        ENSEMBLE,
        "ensemble",
        card.title,
        begins,
        strict,
        None,
        is_calibrated(card, calibrations),
        decides=True,
    )


def _is_plain(ensemble: EnsembleCard, calibrations: Mapping[str, Platt | None]) -> bool:
    """Whether the ensemble equals its only detector, number for number and verdict for verdict but
    at the threshold itself.
    """
    thresholds = ensemble.thresholds
    return (
        ensemble.leaves_one_score_alone
        and ensemble.calibration is None
        and not any(calibrations.values())
        and thresholds.real_below == thresholds.fake_above == 0
    )


def _cards(
    ensemble: EnsembleCard | None, names: list[str]
) -> dict[str, tuple[str, DetectorCard | None]]:
    """By what the ensemble calls its members, the run's own name of each, and its card where that
    can still be read.
    """
    found: dict[str, tuple[str, DetectorCard | None]] = {}
    for place, member in enumerate(ensemble.members if ensemble else ()):
        card = readable_card(member.detector)
        called = [
            name
            for name in (card.name if card else None, member.detector, *names[place : place + 1])
            if name in names
        ]
        known = called[0] if called else member.detector
        found[member.detector] = (str(known), card if card and card.name == known else None)
    missing = set(names) - {known for known, _ in found.values()}
    return found | {name: (name, readable_card(name)) for name in missing}


def readable_card(name: str) -> DetectorCard | None:
    """A detector's card; None where it cannot be read any more, as in a run that another machine
    made.
    """
    try:
        return load_card(name)
    except TouchstoneError:
        return None


def _calibration(entry: Mapping[str, Any]) -> Platt | None:
    given = entry.get("calibration")
    return None if given is None else Platt.model_validate(given)


def _floats(column: pa.ChunkedArray | pa.Array) -> Column:
    floats: Column = np.asarray(pc.fill_null(column, float("nan")))
    return floats


def _field(scores: pa.Array, name: str, there: set[str]) -> pa.Array:
    return pc.struct_field(scores, name) if name in there else pa.nulls(len(scores), pa.float32())
