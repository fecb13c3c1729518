"""`--reuse sha256`: whether it can be had, and what a run knows already, indexed as tasks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ray_app.detectors import DetectorCard
from ray_app.errors import ConfigError
from ray_app.inference import ScoringSpec
from ray_app.runs import RunDirectory
from ray_app.runs.reusing import build_index

if TYPE_CHECKING:
    from ray_app.scoring.config import ScoreConfig


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
    from ray_app.scoring.tasks import on_ray

    build_index(run, spec, each=on_ray)
    return run
