"""Another head on the embeddings that a run has kept: a new run directory, of rows and vectors alone. Nothing is fetched."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.licences import require_accepted
from ray_app.ensembles import EnsembleCard, ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFacts, ImageLimits
from ray_app.inference import Outcome, Readings, ScoringSpec, StageClock, judge, make_spec
from ray_app.inference.describing import Describing
from ray_app.inference.identified import require_embeddings
from ray_app.inference.settings import departures
from ray_app.runs import RunDirectory, block_features, block_tables, kept_features, vectors_of
from ray_app.runs.identity import differing_keys
from ray_app.runs.rows import FACTS
from ray_app.scoring.copying import finished, missing_blocks
from ray_app.scoring.preparing import scoring_identity
from ray_app.scoring.references import keep_references, references_beside
from ray_app.scoring.session import Session
from ray_app.storage import Lease

if TYPE_CHECKING:
    from ray_app.detectors.embeddings import LinearHead

# What a run's identity says of its source; all else is of what looked at the images.
OF_THE_SOURCE = ("source", "include", "exclude", "limit", "limits", "columns", "container_limits")
_MEMBERS = ("image_id", "uri", "member", "occurrence", "input")


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
        raise ConfigError("name the heads by --detector, or an ensemble card of heads by --ensemble", hint="one of the two")
    source, run = RunDirectory.open(url), RunDirectory.open(out)
    identity = source.describe_settled()["identity"]
    card = load_ensemble_card(ensemble) if ensemble is not None else ensemble_of(list(detectors))
    spec, heads = _heads(source, identity, card, accept_licences)
    references = None if ensemble is None else references_beside(ensemble)
    with Lease(run.store, unguarded=unguarded) as lease:
        identity = {key: identity[key] for key in OF_THE_SOURCE if key in identity} | scoring_identity(spec)
        run.claim(identity, list(spec.cards), spec.ensemble.model_dump(mode="json"))
        keep_references(run, references)
        session = Session(run, {"rescored": source.store.url, "detectors": [head.card.name for head in heads]}, start, noted=lease.facts())
        clock = StageClock()
        describing = Describing(spec, clock) if spec.describer else None
        _Rescoring(source, run, spec, heads, session, clock, describing).all()
        return finished(run, spec, session)


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
    from ray_app.detectors.embeddings import LinearHead

    kept = kept_features(source)
    if not kept:
        raise ConfigError(
            f"{source.store.url}: this run kept no embeddings",
            hint="`touchstone score … --features NAME` keeps them; images are read once more",
        )
    cards = [load_card(member.detector) for member in ensemble.members]
    for card in cards:
        require_accepted(card, accepted)
    suited = {card.name: _suited(card, kept, identity["resize"]) for card in cards}
    ways = {name: kept[found]["precision"] for name, found in suited.items()}
    if said := departures(ensemble.settings, ways, identity["resize"]):
        raise ConfigError(
            f"{source.store.url}: the calibration of {ensemble.name} does not hold for embeddings made with {' and '.join(said)}",
            hint="score the archive anew with that card",
        )
    spec = make_spec(ensemble, limits=ImageLimits(**identity["limits"]), resize=identity["resize"], slots=identity["batch_slots"])
    if spec.words_seen is not None and spec.describer is not None:
        raise ConfigError(f"{spec.describer.name} looks at images, which a run does not keep", hint="score the archive anew with that card")
    require_embeddings(spec)
    heads = [_Head(card, LinearHead(card), suited[card.name], kept[suited[card.name]]["width"]) for card in cards]
    return replace(spec, precision=ways), heads


def _suited(card: DetectorCard, kept: dict[str, dict[str, Any]], resize: Any) -> str:
    """The detector whose embeddings a card's head takes. Raises ConfigError that says what differs from the nearest."""
    from ray_app.detectors.embeddings import embedding_facts

    facts = json.loads(json.dumps(embedding_facts(card, precision="fp32", resize=resize)))
    differing: list[tuple[str, list[tuple[str, str, str]]]] = []
    for name, one in kept.items():
        can = card.precision == "auto" or one["precision"] == "fp32"
        found = differing_keys(facts | ({"precision": one["precision"]} if can else {}), one)
        if not found:
            return name
        differing.append((name, found))
    name, found = min(differing, key=lambda pair: len(pair[1]))
    told = "\n  ".join(f"{key}: the head needs {ours}, the run kept {theirs}" for key, ours, theirs in found)
    raise ConfigError(
        f"{card.name}: its head does not fit the embeddings of {name}:\n  {told}",
        hint="a head is of one backbone, preprocessing and precision; score the archive anew with this detector",
    )


@dataclass(frozen=True)
class _Rescoring:
    """All blocks of a run through some heads into another run, one block in memory."""

    source: RunDirectory
    run: RunDirectory
    spec: ScoringSpec
    heads: list[_Head]
    session: Session
    clock: StageClock
    describing: Describing | None

    def all(self) -> None:
        """Copy the listings, and score the blocks that the new run does not have yet, each committed when it is done."""
        for ref, rows in missing_blocks(self.source, self.run):
            self._block(ref, rows)

    def _block(self, ref: BlockRef, rows: pa.Table) -> None:
        with self.clock("score"):
            outcomes = _outcomes(rows)
            readings = self._readings(ref, rows["image_id"].to_numpy(), outcomes)
        readings = readings if self.describing is None else self.describing.after(outcomes, readings)
        with self.clock("write"):
            scored = judge(self.spec, outcomes, readings, self.clock)
            members = rows.select([name for name in _MEMBERS if name in rows.column_names])
            hashed = "phash" in rows.column_names
            made = block_tables(members, scored, attempt=self.session.number, scored_at=datetime.now(UTC), perceptual_hash=hashed)
            self.run.write_part(ref.manifest, ref.block, made.rows)
        facts = {"counts": {}, "peak_bytes": 0, "seconds": self.clock.take(), "failures": made.failures}
        self.session.committed({"members": ref.members, **facts})

    def _readings(self, ref: BlockRef, ids: npt.NDArray[np.int64], outcomes: Sequence[Outcome]) -> Readings:
        """What the heads say, and the vectors that a profile reads."""
        widths = {head.kept: head.width for head in self.heads}
        vectors = {
            name: vectors_of(block_features(self.source, ref.manifest, ref.block, name), ids, width) for name, width in widths.items()
        }
        sizes = [(0, 0) if one.facts is None else (one.facts.width or 0, one.facts.height or 0) for one in outcomes]
        scores = {head.card.name: head.layer.score(vectors[head.kept]) for head in self.heads}
        for name, column in scores.items():
            column[[not self.spec.is_scored(name, *size) for size in sizes]] = np.nan
        return Readings(
            scores, embeddings={head.card.name: vectors[head.kept] for head in self.heads if head.card.name in self.spec.embedded}
        )


def _outcomes(rows: pa.Table) -> list[Outcome]:
    """What became of the members before any detector saw them."""
    columns = [name for name in ("status", "detail", *FACTS, "phash", "provenance") if name in rows.column_names]
    return [_outcome(row) for row in rows.select(columns).to_pylist()]


def _outcome(row: dict[str, Any]) -> Outcome:
    status = Status(row["status"])
    has_pixels = status in (Status.OK, Status.DETECTOR_FAILED)
    facts = {name: row.get(name) for name in FACTS} | {"flags": tuple(row["flags"] or ())}
    return Outcome(
        Status.OK if has_pixels else status,
        None if has_pixels else row["detail"],
        None if row["sha256"] is None else ImageFacts(**facts),
        phash=row.get("phash"),
        provenance=row.get("provenance"),
    )
