"""One finished run into another by the embeddings that it kept, block by block; nothing is fetched or decoded.

`rescore_run` scores by other heads; `name_run` copies the rows and names generators by another identifier.

Other rules or thresholds on stored scores: `decide_run` writes verdict columns anew; nothing is fetched, decoded or scored.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import BlockRef, copy_manifest, cut_blocks, manifests, read_blocks
from ray_app.attribution.cards import IdentifierCard
from ray_app.config import find_config
from ray_app.detectors import DetectorCard, licences, load_card
from ray_app.ensembles import EnsembleCard, ensemble_of, load_ensemble_card
from ray_app.ensembles.card import EnsembleProfile
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, ScoringSpec, StageClock, decision, judge, make_spec, scorer
from ray_app.inference.spec import departures
from ray_app.runs import RunDirectory, artifacts, block_tables, directory, document, reader, schema, settled_state
from ray_app.runs.retry import begun_retry
from ray_app.runs.rows import FACTS, as_array, identified_columns
from ray_app.scoring import guarantee, report, stages
from ray_app.scoring.identity import decision_identity, promises, scoring_identity
from ray_app.scoring.session import ScoringSession
from ray_app.storage import Lease

if TYPE_CHECKING:
    from ray_app.detectors.linear_head import LinearHead


def decide_run(url: str, ensemble: str, *, waive_guarantee: bool = False, unguarded: bool = False) -> dict[str, Any]:
    """Apply an ensemble card to a finished run; returns the new summary.

    The directory then belongs to a `score` command with that ensemble. Interrupted, the same command finishes it; until then
    the run says that its verdicts are mixed. Names of generators and words stay as they are: what the new card calls fake and the old one
    did not has no words, and the summary's `profile` counts how many have. Raises ConfigError when a detector of the card was not run, the
    card has another profile, the run is unfinished, or it scored otherwise than the card was calibrated, unless `waive_guarantee`: then
    verdicts stand that the card does not answer for.
    """
    run = RunDirectory.open(url)
    run.describe_finished()  # a lease would make a directory of a misspelt name
    with Lease(run.store, unguarded=unguarded):
        described = run.describe_finished()
        run.check_known()
        if run.read_json("summary.json")["listing"] != max(manifests(run.store)):
            raise ConfigError(f"{url}: a newer listing is still being scored", hint="finish it with its `touchstone score` command first")
        if begun_retry(run) is not None:
            raise ConfigError(f"{url}: a retry is not finished", hint="finish it with its `touchstone score` command first")
        card = load_ensemble_card(ensemble)
        identity = described["identity"]
        spec = make_spec(card, limits=ImageLimits(**identity["limits"]))
        missing = [name for name in spec.cards if name not in described["detectors"]]
        if missing:
            raise ConfigError(f"{url}: the run has no scores of {', '.join(missing)}", hint=f"it has {', '.join(described['detectors'])}")
        _check_settings(url, card, identity, waive_guarantee)
        _check_profile(url, spec, identity)
        references = guarantee.references_beside(ensemble, card)
        facts = card.model_dump(mode="json") | {"profile": described["ensemble"].get("profile")}
        changed = described | {"identity": _identity(identity, spec, waive_guarantee), "ensemble": facts}
        run.write_json("run.json", changed | {"deciding": True})
        guarantee.keep_references(run, references)
        was_settled = settled_state.read_settled(run, manifests(run.store)) is not None
        run.store.delete(directory.SETTLED)
        run.remove_replaced()
        run.rewrite_all(lambda rows: guarantee.decided(rows, spec))
        rows = settled_state.NewRows.all_of(run)
        found = guarantee.compare(run, spec, rows)
        if (unlike := found.unlike if found else None) is not None:
            run.rewrite_all(lambda rows: guarantee.unlike_rows(rows, unlike, card.thresholds))
        run.write_json("run.json", guarantee.noted(changed, unlike))
        summary = _summary(run, spec, found, rows)
        if was_settled:
            settled_state.settle(run, rows.found)  # no row came or went
        return summary


def _check_settings(url: str, card: EnsembleCard, identity: Mapping[str, Any], waived: bool) -> None:
    differing = departures(card.settings, identity["precision"], identity["resize"])
    if differing and not waived:
        raise ConfigError(
            f"{url}: the calibration of {card.name} does not hold for scores made with {' and '.join(differing)}",
            hint="score the archive with that card, or give up its guarantee: --waive-guarantee",
        )


def _check_profile(url: str, spec: ScoringSpec, identity: Mapping[str, Any]) -> None:
    """A card without a profile leaves the run's alone; one with a profile must have the run's."""
    had = identity.get("profile", {})
    for kind, card in (("identifier", spec.identifier), ("describer", spec.describer)):
        before = had.get(kind, {}).get("name")
        if spec.ensemble.profile is not None and (card and card.name) != before:
            raise ConfigError(
                f"{url}: its {kind} is {before or 'none'}, that of {spec.ensemble.name} is {card.name if card else 'none'}",
                hint="new verdicts do not change generators and prompts: leave `profile` out of the card, or score the archive with it",
            )


def _identity(identity: Mapping[str, Any], spec: ScoringSpec, waived: bool) -> dict[str, Any]:
    kept = {key: value for key, value in identity.items() if key != guarantee.WAIVED}
    return kept | ({guarantee.WAIVED: True} if waived and promises(spec.ensemble) else {}) | decision_identity(spec)


def _summary(
    run: RunDirectory, spec: ScoringSpec, promised: document.GuaranteeSummary | None, rows: settled_state.NewRows
) -> dict[str, Any]:
    before = {key: value for key, value in run.read_json("summary.json").items() if key not in ("guarantee", schema.SECOND_LOOK)}
    summary = document.RunSummary.model_validate(before | report.counted(run, spec, promised, rows) | {"run": run.store.url}).written()
    run.write_json("summary.json", summary)
    report.write_report(run, thumbnails=False)  # which would fetch images
    return summary


# What a run's identity says of its source; all else is of what looked at the images.
OF_THE_SOURCE = ("source", "include", "exclude", "limit", "limits", "columns", "container_limits")
_MEMBERS = ("image_id", "uri", "member", "occurrence", "input")
_NAME = "predicted_generator"


def rescore_run(
    url: str,
    out: str,
    detectors: Sequence[str],
    ensemble: str | None = None,
    *,
    accept_licences: Sequence[str] = (),
    unguarded: bool = False,
) -> dict[str, Any]:
    """Score what a finished run has kept by the heads of these detectors, or of an ensemble card, into `out`; returns the summary.

    The new directory belongs to a `score` command with these detectors on the same source. Interrupted, the same command goes on.
    Raises ConfigError where the run is unfinished or keeps no embedding that suits a head, IdentityError where `out` is another's.
    """
    start = time.monotonic()
    if bool(detectors) == (ensemble is not None):
        raise ConfigError("name the heads by --detector, or an ensemble card of heads by --ensemble", hint="give one of the two")
    source = RunDirectory.open(url)
    settled = source.describe_settled()
    identity = settled["identity"]
    card = load_ensemble_card(ensemble) if ensemble is not None else ensemble_of(list(detectors))
    spec, heads = _heads(source, identity, card, accept_licences)
    clock = StageClock()
    describing = scorer.Describing(spec, clock) if spec.describer else None

    def score(run: RunDirectory, attempt: int, ref: BlockRef, rows: pa.Table) -> stages.BlockReport:
        with clock("score"):
            columns = [name for name in ("status", "detail", *FACTS, "phash", "provenance") if name in rows.column_names]
            outcomes = [_outcome(row) for row in rows.select(columns).to_pylist()]
            outputs = _outputs(source, spec, heads, ref, rows["image_id"].to_numpy(), outcomes)
        outputs = outputs if describing is None else describing.after(outcomes, outputs)
        with clock("write"):
            members = rows.select([name for name in _MEMBERS if name in rows.column_names])
            hashed = "phash" in rows.column_names
            tables = block_tables(members, judge(spec, outcomes, outputs, clock), attempt=attempt, scored_at=datetime.now(UTC),
                                  perceptual_hash=hashed, measured=spec.measured)  # fmt: skip
            run.write_part(ref.manifest, ref.block, tables.rows)
        return stages.BlockReport(ref, tables.bad, stages.BlockWork(clock.take()), tables.failures)

    return _made_of(
        source,
        out,
        spec,
        {key: identity[key] for key in OF_THE_SOURCE if key in identity} | scoring_identity(spec),
        score,
        references=None if ensemble is None else guarantee.references_beside(ensemble, card),
        settings={"rescored": source.store.url, "detectors": [head.card.name for head in heads]},
        unguarded=unguarded,
        start=start,
    )


def _made_of(
    source: RunDirectory,
    out: str,
    spec: ScoringSpec,
    identity: dict[str, Any],
    block: Callable[[RunDirectory, int, BlockRef, pa.Table], stages.BlockReport],
    *,
    references: bytes | None,
    settings: dict[str, Any],
    unguarded: bool,
    start: float,
) -> dict[str, Any]:
    """The run at `out` that `block` makes of the rows of `source`, one block in memory, from wherever an earlier command stopped; its
    summary. Its reports have pictures where those of `source` have some.

    `block`: the new run, the session's number, and a block with its rows in `source` → the report of the committed part. `start`: when the
    command began, by the monotonic clock.
    """
    run = RunDirectory.open(out)
    with Lease(run.store, unguarded=unguarded) as lease:
        run.claim(identity, list(spec.cards), spec.ensemble.model_dump(mode="json"))
        guarantee.keep_references(run, references)
        session = ScoringSession(run, settings, start, noted=lease.facts())
        for ref, rows in missing_blocks(source, run):
            session.committed(block(run, session.number, ref, rows))
        run.publish_all()
        reader.publish_vanished(run)
        reader.check_conservation(run)
        new = settled_state.NewRows.all_of(run)
        thumbnails = source.read_json("summary.json").get("thumbnails", True)
        summary = report.write_summary(run, spec, session, guarantee.settle_guarantee(run, spec, new), new, thumbnails=thumbnails)
        settled_state.settle(run, new.found)
        report.write_report(run, thumbnails=False)  # which would fetch images
        session.log("finished")
        return summary


@dataclass(frozen=True)
class _Head:
    """A detector's head, and the detector of the old run whose embeddings it takes."""

    card: DetectorCard
    layer: "LinearHead"
    kept: str
    width: int


def _heads(
    source: RunDirectory, identity: dict[str, Any], ensemble: EnsembleCard, accepted: Sequence[str]
) -> tuple[ScoringSpec, list[_Head]]:
    from ray_app.detectors.linear_head import LinearHead

    kept = _features_of(source, "NAME")
    cards = [load_card(member.detector) for member in ensemble.members]
    for card in cards:
        licences.require_accepted(card, accepted)
    suited = {card.name: _suited(card, kept, identity["resize"]) for card in cards}
    ways = {name: kept[found]["precision"] for name, found in suited.items()}
    if differing := departures(ensemble.settings, ways, identity["resize"]):
        raise ConfigError(
            f"{source.store.url}: the calibration of {ensemble.name} does not hold for embeddings made with {' and '.join(differing)}",
            hint="score the archive anew with that card",
        )
    spec = make_spec(ensemble, limits=ImageLimits(**identity["limits"]), resize=identity["resize"], slots=identity["batch_slots"])
    if spec.words_seen is not None and spec.describer is not None:
        raise ConfigError(
            f"{spec.describer.name} needs the images, which a run does not keep", hint="score the archive anew with that card"
        )
    decision.require_embeddings(spec)
    heads = [_Head(card, LinearHead(card), suited[card.name], kept[suited[card.name]]["width"]) for card in cards]
    return replace(spec, precision=ways), heads


def _suited(card: DetectorCard, kept: dict[str, dict[str, Any]], resize: Any) -> str:
    """The detector whose embeddings a card's head takes. Raises ConfigError that says what differs from the nearest."""
    from ray_app.detectors.linear_head import embedding_facts

    facts = json.loads(json.dumps(embedding_facts(card, precision="fp32", resize=resize)))
    differing: list[tuple[str, list[tuple[str, str, str]]]] = []
    for name, one in kept.items():
        can = card.precision == "auto" or one["precision"] == "fp32"
        found = directory.differing_keys(facts | ({"precision": one["precision"]} if can else {}), one)
        if not found:
            return name
        differing.append((name, found))
    name, found = min(differing, key=lambda pair: len(pair[1]))
    message = "\n  ".join(f"{key}: the head needs {ours}, the run kept {theirs}" for key, ours, theirs in found)
    raise ConfigError(
        f"{card.name}: its head does not fit the embeddings of {name}:\n  {message}",
        hint="a head is of one backbone, preprocessing and precision; score the archive anew with this detector",
    )


def _outputs(
    source: RunDirectory,
    spec: ScoringSpec,
    heads: Sequence[_Head],
    ref: BlockRef,
    ids: npt.NDArray[np.int64],
    outcomes: Sequence[DecodeResult],
) -> DetectorOutputs:
    """What the heads say of a block, and the vectors that a profile reads."""
    widths = {head.kept: head.width for head in heads}
    vectors = {
        name: artifacts.vectors_of(artifacts.block_features(source, ref.manifest, ref.block, name), ids, width)
        for name, width in widths.items()
    }
    sizes = [(0, 0) if one.facts is None else (one.facts.width or 0, one.facts.height or 0) for one in outcomes]
    scores = {head.card.name: head.layer.score(vectors[head.kept]) for head in heads}
    for name, column in scores.items():
        column[[not spec.is_scored(name, *size) for size in sizes]] = np.nan
    embeddings = {head.card.name: vectors[head.kept] for head in heads if head.card.name in spec.embedded}
    return DetectorOutputs.clean(scores=scores, embeddings=embeddings)


def _outcome(row: dict[str, Any]) -> DecodeResult:
    """What became of a member before any detector saw it."""
    status = Status(row["status"])
    has_pixels = status in (Status.OK, Status.DETECTOR_FAILED)
    facts = {name: row.get(name) for name in FACTS} | {"flags": tuple(row["flags"] or ())}
    return DecodeResult(
        Status.OK if has_pixels else status,
        None if has_pixels else row["detail"],
        None if row["sha256"] is None else ImageFileFacts(**facts),
        phash=row.get("phash"),
        provenance=row.get("provenance"),
    )


def name_run(url: str, out: str, identifier: str, *, unguarded: bool = False) -> dict[str, Any]:
    """Copy a finished run into `out` with the names that an identifier's card gives its images; returns the summary.

    The new run is what `touchstone score --features …` with that identifier in the ensemble's profile would have made of the same images:
    scores, verdicts, words, masks and embeddings are those of the old one. Interrupted, the same command goes on. Raises ConfigError where
    the run is unfinished or keeps no embeddings that suit the identifier, IdentityError where `out` is another's, DetectorError where
    weights are missing.
    """
    start = time.monotonic()
    source = RunDirectory.open(url)
    described = source.describe_settled()
    spec = _spec(described, identifier)
    card = spec.identifier
    assert card is not None
    kept, beside = _kept(source, card), ["masks", *map(artifacts.folder_of, artifacts.kept_features(source))]
    decision.require_embeddings(spec)

    def name(run: RunDirectory, attempt: int, ref: BlockRef, rows: pa.Table) -> stages.BlockReport:
        began = time.perf_counter()
        vectors = artifacts.vectors_of(
            artifacts.block_features(source, ref.manifest, ref.block, kept), rows["image_id"].to_numpy(), card.embedding["width"]
        )
        named = named_rows(rows, spec, vectors)
        named_s = time.perf_counter() - began
        for folder in beside:
            if (found := source.beside(folder, ref.manifest, ref.block)) is not None:
                run.write_beside(folder, ref.manifest, ref.block, found)
        run.write_part(ref.manifest, ref.block, named)
        seconds = {"identify": named_s, "write": time.perf_counter() - began - named_s}
        return stages.BlockReport(ref, 0, stages.BlockWork(seconds))

    identity = described["identity"]
    return _made_of(
        source,
        out,
        spec,
        # The run's own, which also says how its words were found, with another identifier.
        identity | {"profile": {"describe": None, **identity.get("profile", {}), "identifier": card.facts()}},
        name,
        references=source.store.read(guarantee.REFERENCES) if source.store.exists(guarantee.REFERENCES) else None,
        settings={"renamed": source.store.url, "identifier": card.name},
        unguarded=unguarded,
        start=start,
    )


def named_rows(rows: pa.Table, spec: ScoringSpec, vectors: np.ndarray) -> pa.Table:
    """Result rows with what the spec's identifier says of their embeddings (n, width), NaN where there is none."""
    assert spec.identifier is not None
    found = decision.identified(spec, {spec.identifier.detector: vectors})
    assert found is not None
    has_score = pc.equal(rows["status"].cast(pa.string()), "ok").to_numpy()
    rows = rows.drop_columns([name for name in schema.IDENTIFIED if name in rows.column_names])
    place = rows.schema.get_field_index(_NAME)
    fields = [rows.schema.field(place), *(pa.field(name, kind) for name, kind in schema.IDENTIFIED.items())]
    columns = identified_columns(found, has_score)
    rows = rows.remove_column(place)
    for step, field in enumerate(fields):
        rows = rows.add_column(place + step, field, as_array(columns[field.name], field, len(rows)))
    return rows


def _spec(described: dict[str, Any], identifier: str) -> ScoringSpec:
    """The run's own ensemble with this identifier in its profile."""
    identity = described["identity"]
    card = EnsembleCard.model_validate(described["ensemble"])
    place = str(Path(find_config("identifiers", identifier)).resolve())
    profile = EnsembleProfile(identifier=place) if card.profile is None else card.profile.model_copy(update={"identifier": place})
    spec = make_spec(
        card.model_copy(update={"profile": profile}),
        limits=ImageLimits(**identity["limits"]),
        resize=identity["resize"],
        slots=identity["batch_slots"],
        waive_guarantee=True,  # it was settled when the run was made; `identity` says whether it holds
    )
    return replace(spec, precision=identity["precision"])


def _kept(source: RunDirectory, card: IdentifierCard) -> str:
    """The detector whose kept embeddings are those that an identifier was fitted on. Raises ConfigError that says what differs."""
    kept = _features_of(source, card.detector)
    wanted = {key: json.loads(json.dumps(value)) for key, value in card.embedding.items() if key != "precision"}
    differing = {name: [key for key, value in wanted.items() if one.get(key) != value] for name, one in kept.items()}
    for name, keys in differing.items():
        if not keys:
            return name
    message = "; ".join(f"those of {name} differ in {', '.join(keys)}" for name, keys in differing.items())
    raise ConfigError(
        f"{card.name} was fitted on embeddings of {card.detector}, and {source.store.url} did not keep those: {message}",
        hint="train it on the detector that the run has, or score the archive anew with this one in the ensemble's profile",
    )


def _features_of(source: RunDirectory, detector: str) -> dict[str, dict[str, Any]]:
    """What decides the embeddings that a run kept, by detector. Raises ConfigError where it kept none, with how those of one are kept."""
    kept = artifacts.kept_features(source)
    if not kept:
        raise ConfigError(
            f"{source.store.url}: this run kept no embeddings",
            hint=f"`touchstone score … --features {detector}` keeps them, and has to read the images again",
        )
    return kept


def missing_blocks(source: RunDirectory, run: RunDirectory) -> Iterator[tuple[BlockRef, pa.Table]]:
    """Copy the listings, and give each block that `run` does not have yet with its rows in `source`; one block in memory."""
    had, numbers = manifests(run.store), manifests(source.store)
    files = source.row_files(numbers)
    rows = cut_blocks.TableStream(table for path in files for table in source.rows_in(path))
    for manifest in numbers:
        if manifest not in had:
            copy_manifest(source.store, manifest, run.store)
        done = run.done_blocks(manifest)
        for ref in read_blocks(source.store, manifest):
            of_block = rows.take(ref.members)
            if ref.block not in done:
                yield ref, of_block
