"""Whether a card's guarantee covers an archive: its rows against the images that the card was
calibrated on. `settle_guarantee`, `compare`.

The scores of known reals that it rests on lie beside the card (`references_beside`) and with its
runs (`references_of`).

Differences are reported. Beyond a limit the card knows nothing of such images, and verdicts become
`abstain`.

What such a comparison would not have noticed (`unseen_shift`): a population's fakes may be any
share of an archive, so reals of a new kind that score as fakes do look like more fakes, however
many images there are; only labels see them. A rise of all real scores is seen once it is large
enough for the archive.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives import Each, in_turn
from ray_app.config import find_config
from ray_app.ensembles import (
    EnsembleCard,
    PopulationTally,
    Thresholds,
    decide,
    drawn_by_audit,
    properties_of,
)
from ray_app.errors import ConfigError, Reason
from ray_app.inference import ScoringSpec, is_blank, range_doubts, remarks_on
from ray_app.inference.spec import departures, guarantee_departures, other_decoders
from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.drift import Shift, most_fakes, shift_of
from ray_app.metrics.significance import holm
from ray_app.runs import (
    RunDirectory,
    directory,
    document,
    fingerprint,
    reader,
    score_files,
    settled_state,
)
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
_TALLY = "guarantee"  # the tally of what a comparison counts
REFERENCES, REFERENCES_COLUMN = "references.parquet", "score"
_MOST_NAMED = 3
_STEP, _STEPS = 0.05, 40  # standard deviations of the references, and how many steps are tried
# drawn archives, and in how many of them a shift that is called seen is noticed
_DRAWS, _SURE = 40, 38


def settle_guarantee(
    run: RunDirectory,
    spec: ScoringSpec,
    rows: settled_state.NewRows | None = None,
    *,
    each: Each = in_turn,
) -> document.GuaranteeSummary | None:
    """Compare the run's rows, all published, with what its card was calibrated on, and let verdicts
    abstain where that is to be.

    Returns the `guarantee` of a summary, None where the card promises nothing. Interrupted, the
    same `score` command goes on; until then the run says that its verdicts are mixed. Where a run
    was beyond the limit and is no longer, its verdicts come back: `decided` gives rows those of the
    card alone. `rows`: those that were not compared yet, and what others gave; None: all.
    """
    described = run.describe()
    rows = rows or settled_state.NewRows.all_of(run)
    facts = compare(run, spec, rows)
    unlike = facts.unlike if facts else None
    if unlike or described.get("unlike") or described.get("deciding"):
        run.store.delete(directory.SETTLED)
        rows.count_anew()
        run.write_json("run.json", described | {"deciding": directory.SCORE_DECIDES})
        for _ in each(partial(_rewrite, run, spec, unlike), run.published()):
            pass
        run.write_json("run.json", noted(described, unlike))
    return facts


def noted(described: Mapping[str, Any], unlike: str | None) -> dict[str, Any]:
    """The description of a run whose verdicts are settled, with the reason why they all abstain, if
    they do.
    """
    kept = {key: value for key, value in described.items() if key not in ("deciding", "unlike")}
    return kept | ({"unlike": unlike} if unlike else {})


def compare(
    run: RunDirectory, spec: ScoringSpec, rows: settled_state.NewRows | None = None
) -> document.GuaranteeSummary | None:
    """Stream the current rows of a run and compare them with its card's population; settings and
    decoders too. None where the card promises nothing and has no population; its `unlike`: why all
    verdicts are to abstain. Changes nothing.

    `rows`: as in `settle_guarantee`.
    """
    card, identity = spec.ensemble, run.describe()["identity"]
    if card.guarantee is None and card.population is None:
        return None
    tally, decoders, images, flagged = _counted(rows or settled_state.NewRows.all_of(run), spec)
    scored = departures(card.settings, identity["precision"], identity["resize"])
    unknown = other_decoders(card.settings, decoders)
    shifts = shifts_of(card, tally)
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
        why="; ".join(why) if why else None if is_enough else _why_unknown(card, images),
        unlike=unlike,
        waived=waived,
        target_fpr=card.guarantee.target_fpr if card.guarantee else None,
        confidence=card.guarantee.confidence if card.guarantee else None,
        population=card.population.what if card.population else None,
        images=images,
        shifts=shifts,
        unseen=unseen_shift(card, references_of(run), tally.counts, flagged)
        if is_enough and run.store.exists(REFERENCES)
        else None,
        decoders=unknown,
        settings=scored,
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


def unlike_rows(rows: pa.Table, unlike: str, thresholds: Thresholds) -> pa.Table:
    """Result rows whose verdicts, real or fake, abstain since the whole archive is unlike the
    calibration's images (`unlike`, see `GuaranteeSummary`); others keep theirs. `thresholds`: what
    decided.
    """
    verdicts, reasons = rows["verdict"].cast(pa.string()), rows["verdict_reason"]
    before = pc.fill_null(pc.equal(reasons, Reason.UNLIKE_ARCHIVE.value), False)
    turned = pc.or_(pc.fill_null(pc.is_in(verdicts, pa.array(["real", "fake"])), False), before)
    changed = {
        "verdict": pc.if_else(turned, "abstain", verdicts),
        "verdict_reason": pc.if_else(turned, Reason.UNLIKE_ARCHIVE.value, reasons),
        DETAIL: pc.if_else(turned, unlike.removeprefix(f"{UNLIKE}: "), rows[DETAIL]),
    }
    for name, values in changed.items():
        index = rows.schema.get_field_index(name)
        column = as_array(values.combine_chunks().to_pylist(), rows.schema.field(index), len(rows))
        rows = rows.set_column(index, rows.schema.field(index), column)
    return with_findings(rows, thresholds)


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


def _rewrite(
    run: RunDirectory, spec: ScoringSpec, unlike: str | None, file: score_files.Published
) -> None:
    """One published file with verdicts as they are to be; it may hold any mixture of settled and
    unsettled ones.
    """
    thresholds = spec.ensemble.thresholds
    run.rewrite_file(
        file,
        lambda rows: (
            decided(rows, spec) if unlike is None else unlike_rows(rows, unlike, thresholds)
        ),
    )


def _with_second_look(rows: pa.Table, *, wanted: bool) -> pa.Table:
    """The rows with a column for what goes on in a cascade, or without it: another rule knows none."""
    has = SECOND_LOOK in rows.column_names
    if wanted and not has:
        place = rows.schema.get_field_index(DETAIL) + 1
        return rows.add_column(
            place, SECOND_LOOK, pa.nulls(len(rows), pa.dictionary(pa.int32(), pa.string()))
        )
    return rows.drop_columns([SECOND_LOOK]) if has and not wanted else rows


def _counted(
    new: settled_state.NewRows, spec: ScoringSpec
) -> tuple[PopulationTally, set[str], int, int]:
    """The archive's counts, the decoders of its images in formats that the calibration saw, how
    many images have a score, and how many reach the threshold.
    """
    population = spec.ensemble.population
    tally, decoders, images, flagged = (
        PopulationTally(population.features if population else ()),
        set[str](),
        0,
        0,
    )
    formats = population.seen.formats if population and population.seen else ()
    card = fingerprint({"card": spec.ensemble.model_dump(mode="json"), "late": list(spec.late)})
    earlier = new.earlier.get(_TALLY)
    if earlier is not None and earlier["card"] == card:
        tally.counts = {
            name: np.array(counts, np.int64) for name, counts in earlier["counts"].items()
        }
        decoders, images, flagged = set(earlier["decoders"]), earlier["images"], earlier["flagged"]
    else:
        earlier = None
    # the current rows, whether the run's verdicts are settled or not
    for table in new.tables(earlier, COLUMNS):
        rows = table.filter(pc.is_valid(table["score"]))
        images += len(rows)
        flagged += int((reader.numbers(rows["score"]) >= spec.ensemble.thresholds.fake_above).sum())
        tally.add(
            _properties(
                rows,
                [name.removeprefix("score:") for name in tally.counts if name.startswith("score:")],
                spec.late,
            )
        )
        known = (
            rows.filter(pc.is_in(rows["format"].cast(pa.string()), pa.array(formats)))
            if formats
            else rows
        )
        decoders.update(pc.unique(pc.drop_null(known["decoder"].cast(pa.string()))).to_pylist())
    counts = {name: column.tolist() for name, column in tally.counts.items()}
    new.found[_TALLY] = {
        "card": card,
        "counts": counts,
        "decoders": sorted(decoders),
        "images": images,
        "flagged": flagged,
    }
    return tally, decoders, images, flagged


def _properties(rows: pa.Table, detectors: list[str], late: Sequence[str]) -> Mapping[str, Any]:
    """Of rows, as the card's population has them: a cascade's `late` members count where they were
    to look, and rows that `decide` has found may hold what they say of everything.
    """
    scores = rows["scores"].combine_chunks()
    content = {
        name: reader.numbers(pc.struct_field(scores, name))
        for name in detectors
        if scores.type.get_field_index(name) >= 0
    }
    for name in set(late) & content.keys() if SECOND_LOOK in rows.column_names else ():
        content[name] = np.where(rows[SECOND_LOOK].is_valid().to_numpy(), content[name], np.nan)
    return properties_of(
        score=reader.numbers(rows["score"]),
        scores=content,
        formats=rows["format"].cast(pa.string()).to_pylist(),
        width=reader.numbers(rows["width"]),
        height=reader.numbers(rows["height"]),
        quality=reader.numbers(rows["quality"]) if "quality" in rows.column_names else None,
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
