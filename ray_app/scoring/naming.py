"""Another identifier's names for a run, by the embeddings that it has kept: rows are copied, generators named anew. Nothing is fetched."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import BlockRef
from ray_app.config import find_config
from ray_app.ensembles import EnsembleCard
from ray_app.ensembles.cards import Profile
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec, make_spec
from ray_app.inference.identified import identified, require_embeddings
from ray_app.profiling.cards import IdentifierCard
from ray_app.runs import RunDirectory, block_features, kept_features, vectors_of
from ray_app.runs.features import folder_of
from ray_app.runs.rows import as_array, identified_columns
from ray_app.runs.schema import IDENTIFIED
from ray_app.scoring.copying import finished, missing_blocks
from ray_app.scoring.references import REFERENCES, keep_references
from ray_app.scoring.session import Session
from ray_app.scoring.stability import stability_in
from ray_app.storage import Lease

_NAME = "predicted_generator"


def name_run(url: str, out: str, identifier: str, *, unguarded: bool = False) -> dict[str, Any]:
    """Copy a finished run into `out` with the names that an identifier's card gives its images; returns the summary.

    The new run is what `touchstone score --features …` with that identifier in the ensemble's profile would have made of the same images:
    scores, verdicts, words, masks and embeddings are those of the old one. Interrupted, the same command goes on. Raises ConfigError where
    the run is unfinished or keeps no embeddings that suit the identifier, IdentityError where `out` is another's, DetectorError where
    weights are missing.
    """
    start = time.monotonic()
    source, run = RunDirectory.open(url), RunDirectory.open(out)
    described = source.describe_settled()
    spec = _spec(described, identifier)
    assert spec.identifier is not None
    kept = _kept(source, spec.identifier)
    require_embeddings(spec)
    with Lease(run.store, unguarded=unguarded) as lease:
        run.claim(_identity(described["identity"], spec.identifier), list(spec.cards), spec.ensemble.model_dump(mode="json"))
        keep_references(run, source.store.read(REFERENCES) if source.store.exists(REFERENCES) else None)
        session = Session(run, {"renamed": source.store.url, "identifier": spec.identifier.name}, start, noted=lease.facts())
        _Naming(source, run, spec, kept, spec.identifier.embedding["width"], list(kept_features(source)), session).all()
        return finished(run, spec, session)


def named_rows(rows: pa.Table, spec: ScoringSpec, vectors: np.ndarray) -> pa.Table:
    """Result rows with what the spec's identifier says of their embeddings (n, width), NaN where there is none."""
    assert spec.identifier is not None
    said = identified(spec, {spec.identifier.detector: vectors})
    assert said is not None
    has_score = pc.equal(rows["status"].cast(pa.string()), "ok").to_numpy()
    rows = rows.drop_columns([name for name in IDENTIFIED if name in rows.column_names])
    place = rows.schema.get_field_index(_NAME)
    fields = [rows.schema.field(place), *(pa.field(name, kind) for name, kind in IDENTIFIED.items())]
    columns = identified_columns(said, has_score)
    rows = rows.remove_column(place)
    for step, field in enumerate(fields):
        rows = rows.add_column(place + step, field, as_array(columns[field.name], field, len(rows)))
    return rows


@dataclass(frozen=True)
class _Naming:
    """All blocks of a run into another run, one block in memory."""

    source: RunDirectory
    run: RunDirectory
    spec: ScoringSpec
    kept: str
    width: int
    features: list[str]
    session: Session

    def all(self) -> None:
        """Copy the listings, and name the blocks that the new run does not have yet, each committed when it is done."""
        for ref, rows in missing_blocks(self.source, self.run):
            self._block(ref, rows)

    def _block(self, ref: BlockRef, rows: pa.Table) -> None:
        began = time.perf_counter()
        vectors = vectors_of(block_features(self.source, ref.manifest, ref.block, self.kept), rows["image_id"].to_numpy(), self.width)
        made = named_rows(rows, self.spec, vectors)
        named_s = time.perf_counter() - began
        for folder in ("masks", *map(folder_of, self.features)):
            if (beside := self.source.beside(folder, ref.manifest, ref.block)) is not None:
                self.run.write_beside(folder, ref.manifest, ref.block, beside)
        self.run.write_part(ref.manifest, ref.block, made)
        seconds = {"identify": named_s, "write": time.perf_counter() - began - named_s}
        self.session.committed({"members": ref.members, "counts": {}, "peak_bytes": 0, "seconds": seconds})


def _spec(described: dict[str, Any], identifier: str) -> ScoringSpec:
    """The run's own ensemble with this identifier in its profile."""
    identity = described["identity"]
    card = EnsembleCard.model_validate(described["ensemble"])
    place = str(Path(find_config("identifiers", identifier)).resolve())
    profile = Profile(identifier=place) if card.profile is None else card.profile.model_copy(update={"identifier": place})
    spec = make_spec(
        card.model_copy(update={"profile": profile}),
        limits=ImageLimits(**identity["limits"]),
        resize=identity["resize"],
        slots=identity["batch_slots"],
        stability=stability_in(identity),
        waive_guarantee=True,  # it was settled when the run was made; `identity` says whether it holds
    )
    return replace(spec, precision=identity["precision"])


def _identity(identity: dict[str, Any], card: IdentifierCard) -> dict[str, Any]:
    """The run's own, which also says how its words were found, with another identifier."""
    return identity | {"profile": {"describe": None, **identity.get("profile", {}), "identifier": card.facts()}}


def _kept(source: RunDirectory, card: IdentifierCard) -> str:
    """The detector whose kept embeddings are those that an identifier was fitted on. Raises ConfigError that says what differs."""
    kept = kept_features(source)
    if not kept:
        raise ConfigError(
            f"{source.store.url}: this run kept no embeddings",
            hint=f"`touchstone score … --features {card.detector}` keeps them; images are read once more",
        )
    wanted = {key: json.loads(json.dumps(value)) for key, value in card.embedding.items() if key != "precision"}
    differing = {name: [key for key, value in wanted.items() if one.get(key) != value] for name, one in kept.items()}
    for name, keys in differing.items():
        if not keys:
            return name
    told = "; ".join(f"those of {name} differ in {', '.join(keys)}" for name, keys in differing.items())
    raise ConfigError(
        f"{card.name} was fitted on embeddings of {card.detector}, and {source.store.url} kept none such: {told}",
        hint="train it on the detector that the run has, or score the archive anew with this one in the ensemble's profile",
    )
