"""Read the labelled images of a run for a calibration (`read_labelled`, `CalibrationData`).

The result has one entry per image, with a score of every detector. Images without a score of every
detector or without a label are left out and counted. Images of one colour, and images outside the
valid ranges of a detector, are also left out, because their verdict is always `abstain`. A
detector's card has its valid ranges of sizes and of properties such as the JPEG quality.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.datasets.label_reader import open_labels
from ray_app.detectors import DetectorCard
from ray_app.detectors.card import Platt
from ray_app.ensembles.card import EnsembleCard, EnsembleMember, build_ensemble
from ray_app.errors import ConfigError
from ray_app.evaluation.join import INPUT_KEY, own_labels, read_labels
from ray_app.evaluation.run import check_joined
from ray_app.evaluation.systems import Systems, list_systems, try_load_card
from ray_app.inference import is_blank
from ray_app.metrics.arrays import Bools
from ray_app.runs import RunDirectory
from ray_app.runs.current import numbers
from ray_app.runs.rows import bounded_facts

Indices = NDArray[np.int64]
ROWS = ("image_id", "status", "sha256", "format", "width", "height", "quality", "texture", "graphics", "flags", "phash", "decoder",
        "scores")  # fmt: skip
"""Columns to read from a run, if it has them."""
TRUTH = (
    "label",
    "generator",
    *(
        f"{origin}_{name}"
        for origin in ("label", "own")
        for name in ("source", "group", "part", "phash")
    ),
)
"""Columns of labels, or of the run's own labels. `group` replaces a missing `source`."""


@dataclass(frozen=True)
class CalibrationData:
    """Columns of n labelled images, each with a score of every detector.

    Attributes:
        image_id: Ids, int64 (n,).
        sha256: SHA-256 of the files, 64 hexadecimal digits (n,).
        fake: Labels, bool (n,).
        scores: Uncalibrated finite scores, float32 (n,), by detector, in the ensemble's order.
        generator: The generator (n,); None if unknown.
        source: The scene, photographer, or article (n,), whose images are not independent; None if
            unknown.
        phash: Perceptual hash, 16 hexadecimal digits (n,); None if unknown.
        part: Use of each image (n,). `fit` is for the detectors' calibrations and the rule that
            combines the detectors. `calibrate` is for the ensemble's calibration, and `choose` for
            thresholds. None if the labels do not divide the images.
        format: The file format as in the run (n,).
        width: Width in pixels, int (n,).
        height: Height in pixels, int (n,).
        quality: JPEG quality, 1 … 100, float (n,); NaN for other formats.
    """

    image_id: NDArray[np.int64]
    sha256: Sequence[str]
    fake: Bools
    scores: Mapping[str, NDArray[np.float32]]
    generator: Sequence[str | None]
    source: Sequence[str | None]
    phash: Sequence[str | None]
    part: Sequence[str | None]
    format: Sequence[str | None]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    quality: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors, in the order of `scores`."""
        return tuple(self.scores)

    @property
    def raw(self) -> NDArray[np.float64]:
        """The uncalibrated scores of all detectors as one array, float64 (n, detectors)."""
        return np.stack([np.asarray(scores, np.float64) for scores in self.scores.values()], axis=1)

    def take(self, selection: NDArray[Any]) -> "CalibrationData":
        """Return some of the images, selected by index or by a mask.

        Args:
            selection: Indices (m,) in the order of the result, or a mask (n,), bool.

        Returns:
            The selected images.
        """
        indices = np.flatnonzero(selection) if selection.dtype == np.bool_ else selection
        selected: dict[str, Any] = {
            "scores": {name: scores[indices] for name, scores in self.scores.items()}
        }
        for field in fields(self):
            if field.name != "scores":
                column = getattr(self, field.name)
                selected[field.name] = (
                    column[indices]
                    if isinstance(column, np.ndarray)
                    else [column[index] for index in indices]
                )
        return CalibrationData(**selected)


@dataclass(frozen=True)
class LabelledRun:
    """The labelled images of a run, with the facts of the run that a calibration records or needs.

    Attributes:
        url: Path or URL of the run.
        labels: Name of the labels in messages.
        members: The detectors to calibrate, as members of an ensemble.
        names: Names of the detectors in the run, in the order of `members`.
        before: The ensemble before the calibration. It is the run's ensemble if this has exactly
            the detectors to calibrate, in this order, else a default ensemble of these detectors.
        calibrations: Calibration that each detector had in the run, by name in the run.
        labelled: The labelled images with a score of every detector.
        identity: The section `identity` of `run.json`: the settings of the run.
        joined: Number of labelled rows.
        left_out: Number of labelled rows that are not in `labelled`, by reason.
        decoders: Names of the decoders that decoded the images.
        remarks: Sentences on labels and rows that do not match or were left out.
    """

    url: str
    labels: str
    members: tuple[EnsembleMember, ...]
    names: tuple[str, ...]
    before: EnsembleCard
    calibrations: Mapping[str, Platt | None]
    labelled: CalibrationData
    identity: Mapping[str, Any]
    joined: int
    left_out: Mapping[str, int]
    decoders: frozenset[str]
    remarks: tuple[str, ...]


def read_labelled(
    url: str,
    labels: str | None,
    *,
    key: str | None = None,
    split: str | None = None,
    detectors: Sequence[str] = (),
) -> LabelledRun:
    """Return the images of a run that have a label and a score of every detector.

    Args:
        url: Path or URL of the run.
        labels: Path or URL of the labels; None for the run's own columns.
        key: The column that joins labels to rows; None for the first of `image_id`, `sha256`, and
            `uri` that the labels have.
        split: Use only labels of this split; None for all.
        detectors: Use only these detectors of the run, in this order; empty for all.

    Returns:
        The labelled images with their scores, and facts of the run.

    Raises:
        ConfigError: The run does not exist, a cascade scored it, or it has no scores of a requested
            detector. A detector's card has changed since the run was scored. Labels are invalid
            or are of other images, or no labelled image has a score of every detector.
    """
    run = RunDirectory.open(url)
    if not run.exists():
        raise run.missing_run_error()
    run_info, systems = run.describe(), list_systems(run)
    members, names = _select_members(systems, run_info["detectors"], detectors, run.store.url)
    cards = _load_cards(members, names)
    _check_cards(cards, run_info["identity"].get("detectors", {}))
    with (
        read_labels(open_labels(labels), key=key, split=split)
        if labels
        else own_labels(run.store.url, split) as label_rows
    ):
        label_rows.join(run, [*ROWS, INPUT_KEY])
        remarks = check_joined(label_rows, run)
        rows = pa.concat_tables(label_rows.tables([*ROWS, *TRUTH]))
    usable, left_out = _select_usable(rows, names, cards)
    remarks += [
        f"{count:,} labelled images are left out: {reason}." for reason, count in left_out.items()
    ]
    if not run.store.exists("summary.json"):
        remarks.append(f"{run.store.url} is not finished: only the images scored so far are used.")
    before = (
        systems.ensemble
        if systems.ensemble and names == systems.members
        else build_ensemble([member.detector for member in members])
    )
    calibrations = {name: systems.calibrations.get(name) for name in names}
    rows = rows.filter(pa.array(usable))
    if not len(rows):
        raise ConfigError(
            f"{run.store.url}: no labelled image has a score of every detector",
            hint=" ".join(remarks) or None,
        )
    labelled = _to_calibration_data(rows, names)
    _check_labels(labelled, label_rows.name)
    return LabelledRun(
        url=run.store.url, labels=label_rows.name, members=members, names=names, before=before, calibrations=calibrations, labelled=labelled,
        identity=run_info["identity"], joined=label_rows.joined, left_out=left_out,
        decoders=frozenset(pc.unique(rows["decoder"]).drop_null().to_pylist()), remarks=tuple(remarks),
    )  # fmt: skip


def _select_usable(
    rows: pa.Table, names: Sequence[str], cards: Mapping[str, DetectorCard]
) -> tuple[Bools, dict[str, int]]:
    """Return which labelled rows are usable, and the number of others by reason.

    A usable row has a score of each detector, is in the valid range of every card, and is not of
    one colour.
    """
    is_ok = np.asarray(pc.equal(rows["status"], "ok"))
    statuses = Counter(rows["status"].filter(pa.array(~is_ok)).to_pylist())
    has_all = np.isfinite([_read_scores(rows, name) for name in names]).all(axis=0)
    blank = np.array([is_blank(flags) for flags in rows["flags"].to_pylist()], np.bool_)
    sizes = np.stack([_to_integers(rows["width"]), _to_integers(rows["height"])], axis=1)
    distinct, inverse = np.unique(sizes, axis=0, return_inverse=True)
    ranges = [card.valid_range for card in cards.values()]
    is_outside = [
        width > 0 and any(valid_range.describe_mismatch(width, height) for valid_range in ranges)
        for width, height in distinct.tolist()
    ]
    outside: Bools = np.array(is_outside, np.bool_)[inverse.reshape(-1)]
    for card in cards.values():
        outside[
            list(card.fragility.describe_mismatches(bounded_facts(rows, card.fragility.abstains)))
        ] = True
    others = {
        "no score of every detector": int((is_ok & ~has_all & ~outside & ~blank).sum()),
        "outside a valid range": int((is_ok & outside).sum()),
        "one colour, or nearly": int((is_ok & ~outside & blank).sum()),
    }
    left_out = {
        reason: count
        for reason, count in {**dict(sorted(statuses.items())), **others}.items()
        if count
    }
    return is_ok & has_all & ~outside & ~blank, left_out


def _to_calibration_data(rows: pa.Table, names: Sequence[str]) -> CalibrationData:
    """Return usable rows with `ROWS` and `TRUTH` as columns."""
    columns = {
        name: pc.coalesce(*(rows[f"{origin}_{name}"] for origin in ("label", "own")))
        for name in ("source", "group", "part", "phash")
    }
    return CalibrationData(
        image_id=rows["image_id"].to_numpy(),
        sha256=rows["sha256"].to_pylist(),
        fake=np.asarray(pc.equal(rows["label"], "fake")),
        scores={name: _read_scores(rows, name) for name in names},
        generator=[
            None if name in ("unknown", "real") else name for name in rows["generator"].to_pylist()
        ],
        source=pc.coalesce(columns["source"], columns["group"]).to_pylist(),
        phash=pc.coalesce(columns["phash"], rows["phash"]).to_pylist(),
        part=columns["part"].to_pylist(),
        format=rows["format"].to_pylist(),
        width=_to_integers(rows["width"]),
        height=_to_integers(rows["height"]),
        quality=numbers(rows["quality"]),
    )


def _read_scores(rows: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a detector's own scores (n,); NaN for a missing score."""
    return np.asarray(pc.fill_null(pc.struct_field(rows["scores"], name), np.nan), np.float32)


def _to_integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(column, 0)).astype(np.int64)


def _select_members(
    systems: Systems, run_names: Sequence[str], requested: Sequence[str], url: str
) -> tuple[tuple[EnsembleMember, ...], tuple[str, ...]]:
    """Return the members to calibrate, without calibrations, and their names in the run.

    Args:
        systems: The systems of the run.
        run_names: The names of all detectors of the run.
        requested: Names of the requested detectors; empty for all.
        url: The URL of the run in messages.

    Raises:
        ConfigError: A cascade scored the run, or it has no scores of a requested detector.
    """
    if systems.ensemble is not None and systems.ensemble.cascade is not None:
        raise ConfigError(
            f"{url}: a cascade scored it, so only a biased sample of the images has scores of all detectors",
            hint="score the labelled images with `--detector A --detector B …`, and calibrate that run",
        )
    if systems.ensemble is not None:
        detector_by_name = dict(
            zip(
                systems.members,
                (member.detector for member in systems.ensemble.members),
                strict=True,
            )
        )
    else:
        detector_by_name = {name: name for name in run_names}
    if missing := [name for name in requested if name not in detector_by_name]:
        raise ConfigError(
            f"{url}: the run has no scores of {', '.join(missing)}",
            hint=f"use one of {', '.join(detector_by_name)}",
        )
    names = tuple(requested) or tuple(detector_by_name)
    return tuple(EnsembleMember(detector=detector_by_name[name]) for name in names), names


def _load_cards(members: Sequence[EnsembleMember], names: Sequence[str]) -> dict[str, DetectorCard]:
    """Return the readable cards by name.

    The valid range of a detector without a readable card is not checked.
    """
    cards = {
        name: try_load_card(member.detector) for name, member in zip(names, members, strict=True)
    }
    return {name: card for name, card in cards.items() if card is not None}


def _check_cards(cards: Mapping[str, DetectorCard], recorded: Mapping[str, Any]) -> None:
    """Check that each card is the one that the run was scored with.

    Raises:
        ConfigError: A card has changed, so that other scores would be calibrated.
    """
    for name, card in cards.items():
        run_fields = recorded.get(name, {})
        current: dict[str, Any] = {
            "architecture": card.architecture_facts,
            "preprocessing": card.preprocessing.model_dump(mode="json"),
        }
        if card.weights.sha256 and not card.weights.beside and card.backbone is None:
            current["weights"] = card.weights.sha256
        if changed := [
            key for key, value in current.items() if key in run_fields and run_fields[key] != value
        ]:
            raise ConfigError(
                f"{name}: {' and '.join(changed)} of its card changed since the run was scored",
                hint="score the labelled images again, with another --out, and calibrate that run",
            )


def _check_labels(labelled: CalibrationData, labels: str) -> None:
    """Check that no file is labelled real and fake.

    Raises:
        ConfigError: Files with the same bytes have both labels.
    """
    digests = np.array(labelled.sha256, object)
    if both := sorted({*digests[labelled.fake]} & {*digests[~labelled.fake]}):
        raise ConfigError(
            f"{labels}: {len(both):,} files have the labels real and fake, for example sha256 {both[0]}",
            hint="correct the labels, or leave out those files",
        )
