"""References of a guarantee: scores of known reals beside a card (`references_beside`) and with its runs (`references_of`)."""

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.config import find_config
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError
from ray_app.metrics.survey_sampling import References
from ray_app.runs import RunDirectory

REFERENCES = "references.parquet"
COLUMN = "score"


def references_beside(ensemble: str, card: EnsembleCard) -> bytes | None:
    """The file beside an ensemble's card that its guarantee names; None where it names none.

    Raises ConfigError where the file is not there, or is not the one that the card was written with.
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
    _check(data, guarantee.references_sha256, str(path))
    return data


def keep_references(run: RunDirectory, data: bytes | None) -> None:
    """Keep with a run the references that its own card promises by; where that card names none, what another one left goes."""
    promise = _promise(run)
    if not promise.get("references"):
        run.store.delete(REFERENCES)
    elif data is not None and promise.get("references_sha256") in (None, _digest(data)):
        run.store.write(REFERENCES, data)


def references_of(run: RunDirectory) -> References:
    """The references that a run keeps, worth what its card says. Raises ConfigError where it has none, or other ones than its card's."""
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
    _check(data, promise.get("references_sha256"), f"{run.store.url}/{REFERENCES}")
    scores = pq.ParquetFile(pa.BufferReader(data)).read([COLUMN])[COLUMN].to_numpy()
    return References.of(scores, promise.get("effective"))


def _promise(run: RunDirectory) -> Mapping[str, Any]:
    """The guarantee of the card that a run was decided by; nothing where it has none."""
    return (run.describe().get("ensemble") or {}).get("guarantee") or {}


def _check(data: bytes, sha256: str | None, where: str) -> None:
    """Raises ConfigError for bytes that are no references, or not those of the card."""
    if sha256 not in (None, _digest(data)):
        raise ConfigError(f"{where}: not the references that the card was written with: sha256 {_digest(data)}, not {sha256}")
    try:
        found = pq.read_schema(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise ConfigError(f"{where}: not a Parquet file of references: {error}") from None
    if COLUMN not in found.names or not pa.types.is_floating(found.field(COLUMN).type):
        raise ConfigError(f"{where}: not a Parquet file of references: it has no numbers in a column `{COLUMN}`")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
