"""List the systems of a run, which are its ensemble and its detectors (`list_systems`).

`training_overlap` returns whether a detector was trained on fakes of a generator.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.labels import is_real_generator
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.card import Platt
from ray_app.ensembles import EnsembleCard, combine, is_calibrated, select_audited
from ray_app.errors import TouchstoneError
from ray_app.identification.generators import spelling_key
from ray_app.runs import RunDirectory

ENSEMBLE = "ensemble"
Column = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Overlap = Literal["in-training", "unseen", "unknown"]


@dataclass(frozen=True)
class System:
    """A detector or the ensemble of a run, with the threshold and calibration of its scores.

    Scores are log-odds of fake.

    Attributes:
        name: Name in the run.
        kind: `ensemble` if the scores are the ensemble's, else `detector`. The kind may be
            `ensemble` under a detector's name, if this is the ensemble's only detector.
        title: Title for people.
        threshold: Scores above it are fake.
        strict: If False, scores at the threshold are also fake.
        calibration: Turns the scores into probabilities; None for the logistic function alone.
        calibrated: Whether the probabilities are calibrated.
        binary: Whether the detector only replies yes or no.
        decides: Whether the run's verdicts are those of this detector or ensemble.
        late: Whether it is a detector that scores only the images in the second stage of a cascade,
            which are uncertain images and a random sample.
        card: The detector's card, which describes the detector; None if it cannot be read any more.
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
        """Whether the scores are those of an ensemble."""
        return self.kind == ENSEMBLE

    @property
    def cut(self) -> dict[str, Any]:
        """The threshold, `strict`, and the calibration, as keyword arguments of `ScoredImages`."""
        return {"threshold": self.threshold, "strict": self.strict, "calibration": self.calibration}


@dataclass(frozen=True)
class Systems:
    """All systems of a run: its ensemble and its detectors, each of which gives scores.

    Attributes:
        all: The systems, beginning with the one that decides verdicts.
        ensemble: The card of the ensemble, or None.
        members: Names of the ensemble's detectors in the run, in the ensemble's order.
        calibrations: Calibrations of the members, by name.
    """

    all: tuple[System, ...]
    ensemble: EnsembleCard | None
    members: tuple[str, ...]
    calibrations: Mapping[str, Platt | None]

    @property
    def headline(self) -> System:
        """The system that decides verdicts: the ensemble, or the detector if it is the only one."""
        return self.all[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of result rows that are needed, in addition to scores, to apply the ensemble.

        The tuple is empty unless the ensemble is a cascade, in which some detectors do not score
        every image. A cascade needs `sha256`. It scores a sample of all images with all detectors
        as an audit, and draws this sample by the digest of the file.
        """
        return (
            ("sha256",) if self.ensemble is not None and self.ensemble.cascade is not None else ()
        )

    def read_score_columns(self, table: pa.Table) -> dict[str, pa.Array]:
        """Return the scores of result rows as columns by name.

        The names are `score:SYSTEM`, and `view:SYSTEM|VIEW` for the scores under a perturbation. A
        score that is missing or not finite is null.
        """
        columns = {f"score:{name}": scores for name, scores in self.read_scores(table).items()}
        columns |= {
            f"view:{name}|{view}": scores
            for view, view_scores in self.read_views(table).items()
            for name, scores in view_scores.items()
        }
        return {
            name: pa.array(scores, mask=~np.isfinite(scores)) for name, scores in columns.items()
        }

    def read_scores(self, table: pa.Table) -> dict[str, Column]:
        """Return the scores (n,) of result rows by system; NaN for a missing score."""
        scores = table["scores"].combine_chunks()
        names = {field.name for field in scores.type}
        return {
            system.name: _to_floats(table["score"])
            if system.is_ensemble
            else _to_floats(_read_field(scores, system.name, names))
            for system in self.all
        }

    def read_views(self, table: pa.Table) -> dict[str, dict[str, Column]]:
        """Return the scores (n,) of result rows under each perturbation (view), by view and system.

        A view has the scores of the images after one perturbation, such as JPEG compression. The
        result is empty if the run has no perturbations. Rows have no ensemble scores of views, so
        the ensemble is applied again to the detectors' scores.
        """
        if "views" not in table.column_names:
            return {}
        column = table["views"].combine_chunks()
        audited = (
            select_audited(self.ensemble, table["sha256"].to_pylist())
            if self.ensemble is not None and self.columns
            else ()
        )
        return {
            field.name: self._read_view(pc.struct_field(column, field.name), audited)
            for field in column.type
        }

    def _read_view(self, scores: pa.Array, audited: Sequence[bool]) -> dict[str, Column]:
        names = {field.name for field in scores.type}
        view_scores: dict[str, Column] = {
            system.name: _to_floats(_read_field(scores, system.name, names))
            for system in self.all
            if not system.is_ensemble
        }
        if self.ensemble is None or not self.headline.is_ensemble:
            return view_scores
        columns = {
            name: np.asarray(_to_floats(_read_field(scores, name, names)), np.float32)
            for name in self.members
        }
        return {
            self.headline.name: combine(self.ensemble, columns, self.calibrations, audited=audited),
            **view_scores,
        }


def list_systems(
    run: RunDirectory, *, threshold: float | None = None, strict: bool = True
) -> Systems:
    """List the systems of a run, which are its detectors and its ensemble, from its `run.json`.

    An ensemble of one detector and this detector are one system, under the detector's name. This
    system has the scores, title, and threshold of the ensemble, with two exceptions. It has those
    of the detector if the ensemble changes neither scores nor verdicts. It also has the detector's
    scores and title if `threshold` is given, because protocols define thresholds for these scores.

    Args:
        run: The run.
        threshold: The threshold of all systems. By default it is 0 for a detector, and the lowest
            score of a fake verdict for an ensemble.
        strict: If False, scores at the given threshold are also fake. Without a threshold, an
            ensemble always treats a score at its threshold as fake.

    Returns:
        The systems, beginning with the one that decides verdicts.
    """
    run_info = run.describe()
    names: list[str] = run_info["detectors"]
    entries = run_info["identity"].get("detectors", {})
    calibrations = {name: _parse_calibration(entries.get(name, {})) for name in names}
    ensemble = (
        EnsembleCard.model_validate(run_info["ensemble"]) if run_info.get("ensemble") else None
    )
    cards = _load_cards(ensemble, names)
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
    member_calibrations = {name: calibrations[name] for name in members if name in calibrations}
    ensemble_system = _make_ensemble_system(ensemble, member_calibrations, threshold, strict)
    if ensemble is None or len(members) != 1 or members[0] not in names:
        return Systems((ensemble_system, *detectors), ensemble, members, member_calibrations)
    [only], others = (
        [system for system in detectors if (system.name == members[0]) is is_member]
        for is_member in (True, False)
    )
    if threshold is not None or _equals_detector(ensemble, member_calibrations):
        return Systems(
            (replace(only, decides=True), *others), ensemble, members, member_calibrations
        )
    return Systems(
        (replace(ensemble_system, name=only.name, binary=only.binary, card=only.card), *others),
        ensemble,
        members,
        member_calibrations,
    )


def training_overlap(card: DetectorCard, generator: str) -> Overlap:
    """Return whether a detector was trained on images of a generator or a source.

    The result is `in-training` if the card lists the name. Another name is `unseen` only if the
    card lists all generators, else `unknown`. Sources of real images (`real`, `real:…`) that the
    card does not list are `unknown`.

    Args:
        card: The card of the detector.
        generator: The name of the generator in the labels.
    """
    data = card.training_data
    if any(is_named(generator, glob) for glob in data.generators):
        return "in-training"
    return (
        "unseen"
        if data.complete and data.generators and not is_real_generator(generator)
        else "unknown"
    )


def combined_overlap(overlaps: Iterable[str]) -> Overlap:
    """Combine results of `training_overlap` for several detectors or several generators into one.

    `in-training` takes precedence, then `unknown`. Without any result to combine, the result is
    `unknown`.
    """
    distinct = set(overlaps)
    if "in-training" in distinct:
        return "in-training"
    return "unseen" if distinct == {"unseen"} else "unknown"


def is_named(name: str, glob: str) -> bool:
    """Return whether the name of a generator matches a glob.

    Case, spaces, dots, dashes, and underscores are ignored in both.
    """
    return fnmatchcase(spelling_key(name), spelling_key(glob))


def _make_ensemble_system(
    card: EnsembleCard | None,
    calibrations: Mapping[str, Platt | None],
    threshold: float | None,
    strict: bool,
) -> System:
    if card is None:
        return System(ENSEMBLE, "ensemble", "The ensemble", threshold or 0.0, strict, decides=True)
    first_fake, strict = (
        (card.thresholds.fake_above, False) if threshold is None else (threshold, strict)
    )
    return System(
        ENSEMBLE,
        "ensemble",
        card.title,
        first_fake,
        strict,
        None,
        is_calibrated(card, calibrations),
        decides=True,
    )


def _equals_detector(ensemble: EnsembleCard, calibrations: Mapping[str, Platt | None]) -> bool:
    """Return whether the ensemble's scores and verdicts equal those of its only detector.

    The verdicts may differ for a score exactly at the threshold.
    """
    thresholds = ensemble.thresholds
    return (
        ensemble.is_passthrough
        and ensemble.calibration is None
        and not any(calibrations.values())
        and thresholds.real_below == thresholds.fake_above == 0
    )


def _load_cards(
    ensemble: EnsembleCard | None, names: list[str]
) -> dict[str, tuple[str, DetectorCard | None]]:
    """Return the name in the run and the card of each detector.

    The keys are the ensemble's names of its members, and the run's names of other detectors. The
    card is None if it cannot be read.
    """
    cards: dict[str, tuple[str, DetectorCard | None]] = {}
    for index, member in enumerate(ensemble.members if ensemble else ()):
        card = try_load_card(member.detector)
        candidates = [
            name
            for name in (card.name if card else None, member.detector, *names[index : index + 1])
            if name in names
        ]
        run_name = candidates[0] if candidates else member.detector
        cards[member.detector] = (str(run_name), card if card and card.name == run_name else None)
    missing = set(names) - {run_name for run_name, _ in cards.values()}
    return cards | {name: (name, try_load_card(name)) for name in missing}


def try_load_card(name: str) -> DetectorCard | None:
    """Return a detector's card, or None if it is not readable on this machine."""
    try:
        return load_card(name)
    except TouchstoneError:
        return None


def _parse_calibration(entry: Mapping[str, Any]) -> Platt | None:
    calibration = entry.get("calibration")
    return None if calibration is None else Platt.model_validate(calibration)


def _to_floats(column: pa.ChunkedArray | pa.Array) -> Column:
    floats: Column = np.asarray(pc.fill_null(column, float("nan")))
    return floats


def _read_field(scores: pa.Array, name: str, names: set[str]) -> pa.Array:
    return pc.struct_field(scores, name) if name in names else pa.nulls(len(scores), pa.float32())
