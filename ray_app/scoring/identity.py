"""A spec and a source → the identity of a run. Hashes weights; loads no network.

The scores of known reals that an ensemble card promises by, kept with the run: what `results --fdr` compares the archive with.

Knows cards, their files and run directories; computes nothing.

`--features`: of which detectors a run keeps embeddings, and what decides them. Reads cards and weights; scores nothing.

`--reuse sha256`: whether it can be had, and what a run knows already, indexed as tasks.

What `--stability K` means for a run: what is asked for, and how many verdicts did not outlive it. Knows rows; loads no network.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives import name_of
from ray_app.config import config_root, find_config
from ray_app.detectors import MIRROR_VARIABLE, DetectorCard, publish_weights, resolve_weights, weights_digest
from ray_app.detectors.weights import publish_part
from ray_app.ensembles import EnsembleCard, decision_facts
from ray_app.ensembles.card import Thresholds
from ray_app.errors import ConfigError, Reason
from ray_app.inference import ScoringSpec
from ray_app.inference.stability import Stability, uncertain
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.document import StabilitySummary
from ray_app.runs.reader import numbers
from ray_app.runs.rows import with_reasons
from ray_app.runs.schema import STABILITY
from ray_app.runs.score_index import build_index
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.guarantee import WAIVED

Digest = Callable[[DetectorCard], str | None]

# How a run was made that does not note it: what came to be noted later, and settings that are noted only where they are others than these.
UNNOTED: Mapping[str, Mapping[str, Any]] = {
    "limits": {"max_whole_pixels": None},
    "columns": {"image": None, "uri": None},
    "container_limits": {"max_members": 10_000_000, "max_ratio": 200.0},
}


def identity_of(config: ScoreConfig, spec: ScoringSpec, *, digest: Digest = weights_digest) -> dict[str, Any]:
    """What another command on the same run directory must match (DESIGN §3). Raises DetectorError where weights are missing."""
    return {
        "source": [name_of(source) for source in config.source],
        "include": list(config.include),
        "exclude": list(config.exclude),
        "limit": config.limit,
        "limits": spec.limits.model_dump(mode="json"),
        **_of_containers(config),
        **({"perturb": {view.name: view.facts() for view in spec.views}} if spec.views else {}),
        **({"stability": spec.stability.facts()} if spec.stability else {}),
        **({"features": list(spec.features)} if spec.features else {}),
        **({WAIVED: True} if config.waive_guarantee and promises(spec.ensemble) else {}),
        **scoring_identity(spec, digest=digest),
    }


def promises(card: EnsembleCard) -> bool:
    """Whether there is a guarantee to give up."""
    return any(known is not None for known in (card.guarantee, card.settings, card.population))


def _of_containers(config: ScoreConfig) -> dict[str, Any]:
    """Settings of containers where they are not those of runs that note none."""
    given = {"columns": config.columns.model_dump(mode="json"), "container_limits": config.container_limits.model_dump(mode="json")}
    return {name: setting for name, setting in given.items() if setting != UNNOTED[name]}


def share_weights(spec: ScoringSpec, run: RunDirectory) -> str | None:
    """Where the workers of a cluster find weights: $TOUCHSTONE_WEIGHTS_MIRROR, else a copy in the run directory, else (shipped ones) None.

    The driver alone fetches; a thousand workers that ask a hub at once would be refused.
    """
    if MIRROR_VARIABLE in os.environ:
        return os.environ[MIRROR_VARIABLE]
    shipped = config_root() / "detectors"
    fetched = [card for card in spec.cards.values() if resolve_weights(card).parent != shipped]
    profiling = [card for card in (spec.identifier, spec.describer) if card is not None]
    if not fetched and not profiling:
        return None
    mirror = f"{run.store.url}/weights"
    for card in fetched:
        publish_weights(card, mirror)
    for part in (part for one in profiling for part in one.parts):
        publish_part(part, mirror)
    return mirror


def scoring_identity(spec: ScoringSpec, *, digest: Digest = weights_digest) -> dict[str, Any]:
    """The part that a served ensemble has too: detectors, settings, decision."""
    return {
        "detectors": {name: {"weights": digest(card), **card.scoring_facts} for name, card in spec.cards.items()},
        "precision": dict(spec.precision),
        "resize": spec.resize,
        "batch_slots": spec.slots,
        **({"profile": profile_identity(spec)} if spec.ensemble.profile else {}),
        **decision_identity(spec),
    }


def profile_identity(spec: ScoringSpec) -> dict[str, Any]:
    """All that decides which generator and which words a row has."""
    identifier, describer, profile = spec.identifier, spec.describer, spec.ensemble.profile
    told: dict[str, Any] = {"describe": profile.describe if profile and describer else None}
    if identifier is not None:
        told["identifier"] = identifier.facts()
    if describer is not None:
        told["describer"] = describer.facts() | {"precision": describer.precision_on(spec.device)}
    return told


def decision_identity(spec: ScoringSpec) -> dict[str, Any]:
    """The part that `touchstone decide` may replace."""
    return {"decision": decision_facts(spec.ensemble)}


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
            hint="keep the file that `touchstone calibrate` wrote beside its card",
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


def references_of(run: RunDirectory) -> npt.NDArray[np.float64]:
    """The references that a run keeps, ascending. Raises ConfigError where it has none, or other ones than its card's."""
    promise = _promise(run)
    try:
        data = run.store.read(REFERENCES) if promise.get("references") else None
    except FileNotFoundError:
        data = None
    if data is None:
        raise ConfigError(
            f"{run.store.url}: no scores of known reals to compare with; the run's ensemble has none",
            hint="`touchstone calibrate RUN --labels FILE --out CARD.yaml` writes a card that has them, and "
            "`touchstone decide RUN --ensemble CARD.yaml` applies it to scores that are there",
        )
    _check(data, promise.get("references_sha256"), f"{run.store.url}/{REFERENCES}")
    scores = pq.read_table(pa.BufferReader(data), columns=[COLUMN])[COLUMN].to_numpy()
    return np.sort(scores.astype(np.float64))


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


def kept_by(spec: ScoringSpec, asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per detector whose embeddings are to be kept, what decides them. `asked`: names of detectors, or of backbones that they share.

    Of detectors with one backbone and equal embeddings the first stands for all. Raises ConfigError for a name that is none of the
    ensemble's and for a detector that does not look at every image, DetectorError where there is no embedding or no weights.
    """
    if not asked:
        return {}
    from ray_app.detectors.embeddings import embedding_facts  # torch: only where something is kept

    chosen = {name: _named(spec, name) for name in asked}
    kept: dict[str, dict[str, Any]] = {}
    for name, card in spec.cards.items():
        named = [word for word, detectors in chosen.items() if name in detectors]
        if named:
            facts = embedding_facts(card, precision=spec.precision[name], resize=spec.resize)
            if name in named or facts not in kept.values():
                kept[name] = facts
    return kept


def _named(spec: ScoringSpec, word: str) -> list[str]:
    """The detectors that a word means."""
    found = [name for name, card in spec.cards.items() if word in (name, card.backbone and card.backbone.name)]
    if not found:
        backbones = dict.fromkeys(card.backbone.name for card in spec.cards.values() if card.backbone)
        raise ConfigError(f"--features {word}: none of the detectors of this run", hint=f"one of {', '.join([*spec.cards, *backbones])}")
    late = [name for name in found if name in spec.late]
    if late == found:
        raise ConfigError(
            f"--features {word}: {', '.join(late)} looks only at images that go on in the cascade, and an embedding of some is none of all",
            hint=f"one of {', '.join(spec.first)}",
        )
    return [name for name in found if name not in late]


def check_reuse(config: "ScoreConfig", cards: Iterable[DetectorCard], *, profiled: bool = False) -> None:
    """Raises ConfigError where a detector draws masks: the pixels of a mask are kept by member, and are not found by digest. So too
    where images are perturbed, since what was known before is scores of the clean pass.
    """
    if config.reuse and config.perturb:
        raise ConfigError("--reuse copies scores of images as they are, not of perturbed ones", hint="leave --reuse or --perturb out")
    if config.reuse and config.stability:
        raise ConfigError("--reuse copies scores of images as they are, not of their views", hint="leave --reuse or --stability out")
    if config.reuse and config.features:
        raise ConfigError("--reuse copies scores, not embeddings", hint="leave --reuse or --features out")
    if config.reuse and profiled:
        raise ConfigError("--reuse copies scores, not profiles", hint="leave --reuse out, or take an ensemble without a profile")
    drawing = [card.name for card in cards if card.masks]
    if config.reuse and drawing:
        raise ConfigError(
            f"--reuse copies scores, not masks, and {', '.join(drawing)} would leave repeated members without one",
            hint="leave --reuse out, or take an ensemble without detectors that draw masks",
        )


def known_scores(run: RunDirectory, spec: ScoringSpec) -> RunDirectory:
    """The run itself, once what it knows is indexed for workers to look up."""
    from ray_app.cluster.ray_cluster import on_ray

    build_index(run, spec, each=on_ray)
    return run


def stability_of(config: ScoreConfig) -> Stability | None:
    """What a config asks for; None = nothing."""
    return Stability(config.stability, config.stability_margin) if config.stability else None


def stability_in(identity: dict[str, Any]) -> Stability | None:
    """What a run was asked for, by its identity; None = nothing."""
    facts = identity.get("stability")
    return None if facts is None else Stability(facts["count"], facts["margin"])


def stability_facts(run: RunDirectory, thresholds: Thresholds) -> StabilitySummary | None:
    """The `stability` section of a summary; None where the run was not asked for it. Streams the run's rows.

    `asked`: images whose views were scored. `unstable`: those that abstain for it. `unasked`: verdicts so near a threshold that they
    would have been asked, of which no view is there: `touchstone decide` moved the threshold to them.
    """
    asked_for = stability_in(run.describe()["identity"])
    if asked_for is None:
        return None
    counts = Counter[str]()
    for table in current_tables(run, ["score", "verdict", "verdict_reason", STABILITY]):
        viewed = table[STABILITY].is_valid().to_numpy()
        near = uncertain(numbers(table["score"]), table["verdict"].to_pylist(), thresholds, asked_for.margin)
        unstable = pc.sum(pc.equal(with_reasons(table)["verdict_reason"], Reason.UNSTABLE.value)).as_py() or 0
        counts.update(asked=int(viewed.sum()), unstable=unstable, unasked=int((~viewed[near]).sum()))
    return StabilitySummary(views=asked_for.count, margin=asked_for.margin, asked=counts["asked"], unstable=counts["unstable"],
                            unasked=counts["unasked"])  # fmt: skip
