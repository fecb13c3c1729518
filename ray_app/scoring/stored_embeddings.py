"""Score the embeddings that a finished run stores instead of images: the source `features::RUN`.

Use it to apply another head (the last layer of a detector) to an archive without reading its
images. A worker computes the scores of a block from the stored embeddings. It does not need the
backbone's weights.

The new run gets the manifests (lists of files) of RUN: the same members and ids in the same blocks,
the same lists of vanished files, and the same retries. So both runs have results for the same
files.

A member whose status in RUN is not `ok` keeps its status and its detail. If RUN lacks the embedding
of another member for a detector, that detector gives no score. A member that no detector scores
gets the status `detector_failed`, unless no detector scores images of its size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_app.archives import BlockRef, Ids, copy_manifest, list_complete_manifests
from ray_app.archives.sources import EMBEDDINGS
from ray_app.detectors import DetectorCard, RequestedResize
from ray_app.errors import ConfigError
from ray_app.inference import DecodeResult, DetectorOutputs, ScoringSpec, StageClock
from ray_app.inference.embedding_scorer import EmbeddingScorer
from ray_app.inference.spec import Precision, departures
from ray_app.runs import RunDirectory
from ray_app.runs.artifacts import read_feature_facts, read_features
from ray_app.runs.block_rows import BlockRows
from ray_app.runs.directory import LAYOUT, differing_keys
from ray_app.runs.rows import OUTCOME_COLUMNS, read_outcomes
from ray_app.scoring.config import ScoreConfig
from ray_app.storage.urls import split_kind

if TYPE_CHECKING:
    from ray_app.detectors.linear_head import LinearHead

# Settings that select files or need their pixels.
_EXCLUDED = {
    "include": "--include",
    "exclude": "--exclude",
    "limit": "--limit",
    "follow": "--follow",
    "rescore": "--retry",
    "perturb": "--perturb",
    "features": "--features",
}


@dataclass(frozen=True)
class StoredEmbeddings:
    """The embeddings that a finished run stores, as the source of another run.

    Attributes:
        run: The run that stores the embeddings.
        facts: For each detector that computed embeddings, the settings that determine them, such as
            the precision.
    """

    run: RunDirectory
    facts: Mapping[str, Mapping[str, Any]]

    def adapt(self, config: ScoreConfig) -> ScoreConfig:
        """Return a config adapted to a run that reads these embeddings instead of images.

        The run needs no GPU, and its report has no images.
        """
        return config.model_copy(
            update={"device": "cpu", "thumbnails": False, "limits": self.run.limits()}
        )

    def is_listed(self, target: RunDirectory) -> bool:
        """Return whether the run `target` already has all files whose embeddings are stored.

        This is true if `target` has each finished manifest (list of files) of the run that stores
        the embeddings.
        """
        return len(list_complete_manifests(target.store)) > self.run.last_finished()

    def copy_manifests(self, target: RunDirectory) -> None:
        """Copy to `target` the finished manifests of the run that stores the embeddings.

        A manifest is a list of files. Manifests that `target` already has are not copied.
        """
        for number in range(
            len(list_complete_manifests(target.store)), self.run.last_finished() + 1
        ):
            copy_manifest(self.run.store, number, target.store)


def reads_embeddings(config: ScoreConfig) -> bool:
    """Return whether a source of a config is `features::RUN`, the stored embeddings of a run."""
    return EMBEDDINGS in [split_kind(source)[0] for source in config.source]


def open_embeddings(config: ScoreConfig) -> StoredEmbeddings | None:
    """Return the stored embeddings that a config has as its source, in the form `features::RUN`.

    Args:
        config: The config.

    Returns:
        The embeddings; None if the source has another form.

    Raises:
        ConfigError: If the run is missing, is not finished, or stores no embeddings. Also if the
            config has another source, or a setting that needs images or selects files, such as
            `limit`.
    """
    if not reads_embeddings(config):
        return None
    options = ["another source"] if len(config.source) > 1 else []
    options += [option for key, option in _EXCLUDED.items() if getattr(config, key)]
    if options:
        raise ConfigError(
            f"{EMBEDDINGS}::RUN cannot be combined with {', '.join(options)}",
            hint=f"leave out {', '.join(options)}: the new run has the files of RUN",
        )
    run = RunDirectory.open(split_kind(config.source[0])[1])
    if config.out and RunDirectory.open(config.out).store.url == run.store.url:
        raise ConfigError(
            f"--out {run.store.url} is the run that keeps the embeddings", hint="set another --out"
        )
    if run.describe_finished().get("layout", 1) < LAYOUT:
        raise ConfigError(
            f"{run.store.url}: a version of Touchstone before 0.25 wrote this run",
            hint=f"run touchstone runs compact {run.store.url} NEW, and use {EMBEDDINGS}::NEW",
        )
    facts = read_feature_facts(run)
    if not facts:
        raise ConfigError(
            f"{run.store.url}: this run keeps no embeddings",
            hint="score the images with --features NAME, and use the embeddings of that run",
        )
    return StoredEmbeddings(run, facts)


@dataclass(frozen=True)
class StoredHead:
    """The head (last layer) of a detector, and the stored embeddings that it scores.

    Attributes:
        layer: The head.
        detector: The name of the detector that computed the embeddings. It may differ from the
            detector of the head.
        facts: The settings that determine the embeddings, such as the precision.
    """

    layer: "LinearHead"
    detector: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class StoredHeads:
    """The heads (last layers) of an ensemble's detectors, to score the embeddings of a run.

    They are sent to workers together with their weights.

    Attributes:
        run: The run that stores the embeddings.
        heads: The heads, by the name of the detector.
    """

    run: RunDirectory
    heads: Mapping[str, StoredHead]

    def adapt(self, spec: ScoringSpec, *, waived: bool) -> ScoringSpec:
        """Return the specification of an ensemble, changed so that it scores stored embeddings.

        Each detector is replaced by its head, which is its last layer.

        Args:
            spec: The specification of the ensemble.
            waived: Whether the user waives the guarantee of the ensemble.

        Returns:
            The changed specification.

        Raises:
            ConfigError: If the ensemble was calibrated on other embeddings, or needs images.
        """
        precision = {name: head.facts["precision"] for name, head in self.heads.items()}
        modes = {head.facts["resize"] for head in self.heads.values()}
        resize: RequestedResize = modes.pop() if len(modes) == 1 else "auto"
        departing = departures(spec.ensemble.settings, precision, resize)
        if departing and not waived:
            raise ConfigError(
                f"{spec.ensemble.name}: its calibration is not valid for these embeddings, made with other settings: {' and '.join(departing)}",
                hint="score the images with this card, or add --set waive_guarantee=true to give up its guarantee",
            )
        if spec.describer is not None:
            raise ConfigError(
                f"{spec.ensemble.name}: its describer cannot predict prompts from stored embeddings",
                hint="remove `describer` from the section `profile` of the card, or score the images",
            )
        return spec.for_embeddings(precision, resize)


def match_heads(
    stored: StoredEmbeddings, cards: tuple[DetectorCard, ...], config: ScoreConfig
) -> StoredHeads:
    """Find for each detector the stored embeddings that its head can score.

    A head is the last layer of a detector. It can score only embeddings with the settings of those
    on which it was fitted.

    Args:
        stored: The stored embeddings.
        cards: The cards of the detectors.
        config: The settings of the run.

    Returns:
        The heads, each with its embeddings.

    Raises:
        ConfigError: If no stored embeddings match those on which a head was fitted. The message
            names the differences.
        DetectorError: If a detector has no linear head, or the weights of the head are missing.
    """
    from ray_app.detectors.linear_head import LinearHead

    heads = {}
    for card in cards:
        detector = _find_embeddings(stored, card, config)
        heads[card.name] = StoredHead(LinearHead(card), detector, stored.facts[detector])
    return StoredHeads(stored.run, heads)


def _find_embeddings(stored: StoredEmbeddings, card: DetectorCard, config: ScoreConfig) -> str:
    """Return the detector whose stored embeddings the head of a card reads."""
    from ray_app.detectors.linear_head import embedding_facts

    candidates: list[tuple[str, list[tuple[str, str, str]]]] = []
    for name, facts in stored.facts.items():
        precision: Precision = "fp32" if card.precision == "fp32" else facts["precision"]
        needed = embedding_facts(
            card,
            precision=precision if config.precision == "auto" else config.precision,
            resize=facts["resize"] if config.resize == "auto" else config.resize,
        )
        differing = differing_keys(json.loads(json.dumps(needed)), facts)
        if not differing:
            return name
        candidates.append((name, differing))
    name, differing = min(candidates, key=lambda candidate: len(candidate[1]))
    lines = [
        f"{key}: the head needs {fitted}, the run has {stored_fact}"
        for key, fitted, stored_fact in differing
    ]
    raise ConfigError(
        f"{card.name}: its head was not fitted on embeddings like those of {name} in {stored.run.store.url}:\n  "
        + "\n  ".join(lines),
        hint="use a head that was fitted on these embeddings, or score the images with this detector",
    )


class StoredBlocks:
    """Read the stored embeddings of one block after another, and score them.

    Args:
        spec: The ensemble.
        stored: The heads (last layers) of its detectors.
        clock: Counts the seconds of reading and of scoring.
    """

    def __init__(self, spec: ScoringSpec, stored: StoredHeads, clock: StageClock) -> None:
        self._stored, self._clock = stored, clock
        self._rows = BlockRows(stored.run, ("image_id", *OUTCOME_COLUMNS))
        layers = {name: head.layer for name, head in stored.heads.items()}
        self._scorer = EmbeddingScorer(spec, layers)

    def score(self, ref: BlockRef, image_ids: Ids) -> tuple[list[DecodeResult], DetectorOutputs]:
        """Score the stored embeddings of a block.

        Args:
            ref: The block.
            image_ids: The ids of its members.

        Returns:
            The stored results of decoding its members, and the outputs of the detectors.

        Raises:
            ConfigError: If the run with the embeddings was changed.
        """
        run = self._stored.run
        with self._clock("fetch"):
            rows = self._rows.read(ref)
            if not np.array_equal(rows["image_id"].to_numpy(), image_ids):
                raise ConfigError(
                    f"{run.store.url}: the run with the embeddings has changed: block {ref.block} of listing {ref.manifest} has other images",
                    hint="set another --out, to score from the changed run",
                )
            heads = self._stored.heads
            facts = {head.detector: head.facts for head in heads.values()}
            vectors = {
                name: read_features(run, ref, image_ids, name, facts[name]) for name in facts
            }
        with self._clock("score"):
            outcomes = read_outcomes(rows)
            by_detector = {name: vectors[head.detector] for name, head in heads.items()}
            return outcomes, self._scorer.score(outcomes, by_detector)
