"""Whether a card's guarantee covers an archive: its rows against the images that the card was
calibrated on. `count_archive`, `compare`.

The scores of known reals that it rests on lie beside the card (`references_beside`) and with its
runs (`references_of`).

Differences are reported. Beyond a limit the card knows nothing of such images, and every reader
gives `abstain` (`runs.current.mark_unlike`).

What such a comparison would not have noticed (`unseen_shift`): a population's fakes may be any
share of an archive, so reals of a new kind that score as fakes do look like more fakes, however
many images there are; only labels see them. A rise of all real scores is seen once it is large
enough for the archive.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.config import find_config
from ray_app.ensembles import (
    EnsembleCard,
    PopulationTally,
    decide,
    drawn_by_audit,
    properties_of,
)
from ray_app.errors import ConfigError
from ray_app.inference import ScoringSpec, is_blank, range_doubts, remarks_on
from ray_app.inference.spec import departures, guarantee_departures, other_decoders
from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.drift import Shift, most_fakes, shift_of
from ray_app.metrics.significance import holm
from ray_app.runs import ChangedRows, CurrentRows, RunDirectory, current, document, fingerprint
from ray_app.runs.rows import as_array, bounded_facts, decided_columns, with_findings
from ray_app.runs.schema import DETAIL, SECOND_LOOK, UNLIKE

COLUMNS = [
    "image_id",
    "score",
    "scores",
    "format",
    "width",
    "height",
    "quality",
    "decoder",
    SECOND_LOOK,
]
WAIVED = "waive_guarantee"  # in a run's identity, where it was asked for
REFERENCES, REFERENCES_COLUMN = "references.parquet", "score"
_MOST_NAMED = 3
_STEP, _STEPS = 0.05, 40  # standard deviations of the references, and how many steps are tried
# drawn archives, and in how many of them a shift that is called seen is noticed
_DRAWS, _SURE = 40, 38


class ArchiveTally:
    """What is counted of an archive's rows, to compare them with a calibration.

    Attributes:
        population: Images per bin of each property.
        decoders: Images per decoder, of formats that the calibration saw.
        images: Number of images with a score.
        flagged: Number of images at or above the threshold.
    """

    def __init__(self, spec: ScoringSpec) -> None:
        self._spec = spec
        population = spec.ensemble.population
        self.population = PopulationTally(population.features if population else ())
        self._formats = population.seen.formats if population and population.seen else ()
        self.decoders, self.images, self.flagged = Counter[str](), 0, 0

    def add(self, table: pa.Table) -> None:
        """Count rows that have `COLUMNS`; verdicts play no part."""
        rows = table.filter(pc.is_valid(table["score"]))
        self.images += len(rows)
        threshold = self._spec.ensemble.thresholds.fake_above
        self.flagged += int((current.numbers(rows["score"]) >= threshold).sum())
        detectors = [
            name.removeprefix("score:")
            for name in self.population.counts
            if name.startswith("score:")
        ]
        self.population.add(_properties(rows, detectors, self._spec.late))
        if self._formats:
            is_known = pc.is_in(rows["format"].cast(pa.string()), pa.array(self._formats))
            rows = rows.filter(is_known)
        self.decoders.update(pc.drop_null(rows["decoder"].cast(pa.string())).to_pylist())

    def update(self, counts: document.ArchiveCounts, *, sign: int = 1) -> None:
        """Add counts, or subtract them if `sign` is -1."""
        for name, column in counts.counts.items():
            self.population.counts[name] += sign * np.array(column, np.int64)
        for name, count in counts.decoders.items():
            self.decoders[name] += sign * count
        self.images += sign * counts.images
        self.flagged += sign * counts.flagged

    def facts(self) -> document.ArchiveCounts:
        """Return the counts as a summary stores them."""
        return document.ArchiveCounts(
            card=_card_digest(self._spec),
            counts={name: column.tolist() for name, column in self.population.counts.items()},
            decoders={name: count for name, count in sorted(self.decoders.items()) if count},
            images=self.images,
            flagged=self.flagged,
        )


def count_archive(
    spec: ScoringSpec,
    rows: CurrentRows,
    changed: ChangedRows | None = None,
    before: document.ArchiveCounts | None = None,
) -> ArchiveTally:
    """Count the current rows of a run.

    Args:
        spec: The ensemble that is compared.
        rows: The rows.
        changed: The rows that changed since `before`.
        before: The counts of the last summary. If they are of another card, all rows are counted.
    """
    tally = ArchiveTally(spec)
    if before is None or changed is None or before.card != _card_digest(spec):
        for table in rows.tables(COLUMNS):
            tally.add(table)
        return tally
    removed = ArchiveTally(spec)
    for table in changed.removed(COLUMNS):
        removed.add(table)
    tally.update(before)
    tally.update(removed.facts(), sign=-1)
    for table in changed.added(COLUMNS):
        tally.add(table)
    return tally


def _card_digest(spec: ScoringSpec) -> str:
    return fingerprint({"card": spec.ensemble.model_dump(mode="json"), "late": list(spec.late)})


def has_comparison(card: EnsembleCard) -> bool:
    """Return whether the card has a guarantee or a population to compare an archive with."""
    return card.guarantee is not None or card.population is not None


def compare(run: RunDirectory, spec: ScoringSpec, tally: ArchiveTally) -> document.GuaranteeSummary:
    """Compare an archive with the images of its card's calibration; settings and decoders, too.

    Args:
        run: The run directory.
        spec: The ensemble, which has a comparison.
        tally: The counts of the current rows.

    Returns:
        The section of the summary. Its `unlike` is the reason why every verdict is to abstain.
    """
    card, identity = spec.ensemble, run.describe()["identity"]
    scored = departures(card.settings, identity["precision"], identity["resize"])
    decoders = {name for name, count in tally.decoders.items() if count}
    unknown = other_decoders(card.settings, decoders)
    shifts = shifts_of(card, tally.population)
    waived = bool(identity.get(WAIVED))
    beyond = sorted(
        (shift for shift in shifts if shift.beyond), key=lambda shift: -(shift.psi or 0.0)
    )
    unlike = (
        f"{UNLIKE}: {', '.join(map(_named, beyond[:_MOST_NAMED]))}"
        if beyond and not waived
        else None
    )
    noticed = [_named(shift) for shift in shifts if shift.noticed]
    why = [
        *([f"images differ in {', '.join(noticed)}"] if noticed else []),
        *guarantee_departures(scored, unknown),
    ]
    is_enough = any(shift.tells for shift in shifts)
    return document.GuaranteeSummary(
        holds=False if why else True if is_enough else None,
        why="; ".join(why) if why else None if is_enough else _why_unknown(card, tally.images),
        unlike=unlike,
        waived=waived,
        target_fpr=card.guarantee.target_fpr if card.guarantee else None,
        confidence=card.guarantee.confidence if card.guarantee else None,
        population=card.population.what if card.population else None,
        images=tally.images,
        shifts=shifts,
        unseen=unseen_shift(card, references_of(run), tally.population.counts, tally.flagged)
        if is_enough and run.store.exists(REFERENCES)
        else None,
        decoders=unknown,
        settings=scored,
        counted=tally.facts(),
    )


def shifts_of(card: EnsembleCard, tally: PopulationTally) -> list[document.ShiftSummary]:
    """Each property of a card's population that archive and calibration both have: how far apart
    they are, p corrected for all of them.

    A score may be explained by any share of fakes; every other property by no more fakes than the
    ensemble's scores allow, or reals that have become like the fakes would pass for these.
    """
    features = (
        {feature.name: feature for feature in card.population.features} if card.population else {}
    )
    score = features.get("score")
    most = 1.0 if score is None else most_fakes(tally.counts["score"], score.real, score.fake)
    found: dict[str, Shift] = {
        name: shift_of(
            tally.counts[name],
            one.real,
            one.fake,
            most_fakes=1.0 if name.startswith("score") else most,
            ordered=not one.words,
        )
        for name, one in features.items()
        if tally.counts[name].any() and any(one.real)
    }
    corrected = holm([shift.p for shift in found.values()])
    return [
        document.ShiftSummary(feature=name, psi=shift.psi, ks=shift.ks, p=p, noticed=shift.noticed(p), beyond=shift.beyond(p),
                              fakes=shift.share, images=shift.n, tells=shift.tells)
        for (name, shift), p in zip(found.items(), corrected, strict=True)
    ]  # fmt: skip


def unseen_shift(
    card: EnsembleCard, references: Floats, counts: Mapping[str, Counts], flagged: int
) -> document.UnseenShift | None:
    """The largest rise of all reals' scores that an archive of these `counts` per feature would
    hide in more than one case of twenty.

    Its false-positive rate is that of the references, so risen, at the card's threshold. `flagged`:
    images of the archive at or above that. Fakes are as many as the archive's scores fit best. None
    where the card's population has no scores, or the archive none.
    """
    features = (
        {feature.name: feature for feature in card.population.features} if card.population else {}
    )
    score = features.get("score")
    if score is None or not counts["score"].any():
        return None
    from scipy.stats import norm, rankdata

    n, real, fake = (
        int(counts["score"].sum()),
        np.array(score.real, np.float64),
        np.array(score.fake, np.float64),
    )
    share, tests = (
        shift_of(counts["score"], real, fake).share,
        sum(bool(one.any()) for one in counts.values()),
    )
    normal = norm.ppf((rankdata(references) - 0.5) / len(references))
    bins = np.searchsorted(score.edges, references, "left")
    generator = np.random.default_rng(0)

    def risen(step: int) -> Floats:
        """The share that each reference has of reals that are higher: of a normal distribution this
        tilt is a shift, and ties stay ties.
        """
        weights: Floats = np.exp(step * _STEP * normal)
        return np.asarray(weights / weights.sum())

    def noticed(step: int) -> bool:
        reals = np.bincount(bins, weights=risen(step), minlength=len(real))
        chances = (1 - share) * reals + share * fake / max(fake.sum(), 1.0)
        drawn = generator.multinomial(n, chances / chances.sum(), size=_DRAWS)
        shifts = (shift_of(one, real, fake) for one in drawn)
        return sum(shift.noticed(min(1.0, shift.p * tests)) for shift in shifts) >= _SURE

    low, high = 0, _STEPS + 1  # the largest step that may go unseen lies in low … high − 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if noticed(middle) else (middle, high)
    threshold, rise = card.thresholds.fake_above, low * _STEP
    tilted = risen(low) @ (references >= threshold)
    # Where no reference reaches the threshold, a tilt of them has none there either.
    shifted = (references + rise * references.std() >= threshold).mean()
    return document.UnseenShift(
        standard_deviations=None if low == _STEPS else rise,
        false_positive_rate=1.0 if low == _STEPS else float(max(tilted, shifted)),
        flagged=flagged,
    )


def decided(rows: pa.Table, spec: ScoringSpec) -> pa.Table:
    """Result rows with what the spec's ensemble makes of their detector scores, in place of what
    stands there.
    """
    has_score = pc.equal(rows["status"].cast(pa.string()), "ok").to_numpy()
    scores = {
        name: pc.struct_field(rows["scores"].combine_chunks(), name).to_numpy(zero_copy_only=False)
        for name in spec.cards
    }
    sizes = list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
    scores = {name: np.asarray(column, np.float32) for name, column in scores.items()}
    replies = rows["replies"].combine_chunks() if "replies" in rows.column_names else None
    remarks = remarks_on(
        {name: pc.struct_field(replies, name).to_pylist() for name in spec.speakers}
        if replies is not None
        else {}
    )
    drawn = drawn_by_audit(spec.ensemble, rows["sha256"].to_pylist())
    doubts = range_doubts(
        spec, sizes, rows["format"].to_pylist(), bounded_facts(rows, spec.bounded)
    )
    decisions = decide(spec.ensemble, scores, calibrations=spec.calibrations, out_of_range=doubts, remarks=remarks, audited=drawn,
                       blank=[is_blank(flags) for flags in rows["flags"].to_pylist()])  # fmt: skip
    rows = _with_second_look(rows, wanted=decisions.second_look is not None)
    for name, values in decided_columns(decisions, has_score).items():
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(
            index, rows.schema.field(index), as_array(values, rows.schema.field(index), len(rows))
        )
    return with_findings(rows, spec.ensemble.thresholds)


def _with_second_look(rows: pa.Table, *, wanted: bool) -> pa.Table:
    """The rows with a column for what goes on in a cascade, or without it: another rule knows none."""
    has = SECOND_LOOK in rows.column_names
    if wanted and not has:
        place = rows.schema.get_field_index(DETAIL) + 1
        return rows.add_column(
            place, SECOND_LOOK, pa.nulls(len(rows), pa.dictionary(pa.int32(), pa.string()))
        )
    return rows.drop_columns([SECOND_LOOK]) if has and not wanted else rows


def _properties(rows: pa.Table, detectors: list[str], late: Sequence[str]) -> Mapping[str, Any]:
    """Of rows, as the card's population has them: a cascade's `late` members count where they were
    to look, and rows that `decide` has found may hold what they say of everything.
    """
    scores = rows["scores"].combine_chunks()
    content = {
        name: current.numbers(pc.struct_field(scores, name))
        for name in detectors
        if scores.type.get_field_index(name) >= 0
    }
    for name in set(late) & content.keys() if SECOND_LOOK in rows.column_names else ():
        content[name] = np.where(rows[SECOND_LOOK].is_valid().to_numpy(), content[name], np.nan)
    return properties_of(
        score=current.numbers(rows["score"]),
        scores=content,
        formats=rows["format"].cast(pa.string()).to_pylist(),
        width=current.numbers(rows["width"]),
        height=current.numbers(rows["height"]),
        quality=current.numbers(rows["quality"]) if "quality" in rows.column_names else None,
    )


def _named(shift: document.ShiftSummary) -> str:
    return f"{shift.feature} (PSI {shift.psi:.2g})"


def _why_unknown(card: EnsembleCard, images: int) -> str:
    if card.population is None or not card.population.features:
        return "the card does not say what its images were like"
    return f"{images:,} images with a score are too few to compare"


def references_beside(ensemble: str, card: EnsembleCard) -> bytes | None:
    """The file beside an ensemble's card that its guarantee names; None where it names none.

    Raises ConfigError where the file is not there, or is not the one that the card was written
    with.
    """
    guarantee = card.guarantee
    if guarantee is None or guarantee.references is None:
        return None
    path = find_config("ensembles", ensemble).parent / guarantee.references
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{ensemble}: the references of its guarantee, {path}: {error.strerror}",
            hint="keep the file that `touchstone detectors calibrate` wrote beside its card",
        ) from None
    _check_references(data, guarantee.references_sha256, str(path))
    return data


def keep_references(run: RunDirectory, data: bytes | None) -> None:
    """Keep with a run the references that its own card promises by; where that card names none,
    what another one left goes.
    """
    promise = _promise(run)
    if not promise.get("references"):
        run.store.delete(REFERENCES)
    elif data is not None and promise.get("references_sha256") in (None, _digest(data)):
        run.store.write(REFERENCES, data)


def references_of(run: RunDirectory) -> Floats:
    """The references that a run keeps. Raises ConfigError where it has none, or other ones than its
    card's.
    """
    promise = _promise(run)
    try:
        data = run.store.read(REFERENCES) if promise.get("references") else None
    except FileNotFoundError:
        data = None
    if data is None:
        raise ConfigError(
            f"{run.store.url}: no scores of known reals to compare with; the run's ensemble has none",
            hint="`touchstone detectors calibrate RUN --labels FILE --out CARD.yaml` writes a card that has them, and "
            "`touchstone runs decide RUN --ensemble CARD.yaml` applies it to the scores of this run",
        )
    _check_references(data, promise.get("references_sha256"), f"{run.store.url}/{REFERENCES}")
    scores = (
        pq.ParquetFile(pa.BufferReader(data))
        .read([REFERENCES_COLUMN])[REFERENCES_COLUMN]
        .to_numpy()
    )
    return np.asarray(scores, np.float64)


def _promise(run: RunDirectory) -> Mapping[str, Any]:
    """The guarantee of the card that a run was decided by; nothing where it has none."""
    return (run.describe().get("ensemble") or {}).get("guarantee") or {}


def _check_references(data: bytes, sha256: str | None, where: str) -> None:
    """Raises ConfigError for bytes that are no references, or not those of the card."""
    if sha256 not in (None, _digest(data)):
        raise ConfigError(
            f"{where}: not the references that the card was written with: sha256 {_digest(data)}, not {sha256}"
        )
    try:
        found = pq.read_schema(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise ConfigError(f"{where}: not a Parquet file of references: {error}") from None
    if REFERENCES_COLUMN not in found.names or not pa.types.is_floating(
        found.field(REFERENCES_COLUMN).type
    ):
        raise ConfigError(
            f"{where}: not a Parquet file of references: it has no numbers in a column `{REFERENCES_COLUMN}`"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
