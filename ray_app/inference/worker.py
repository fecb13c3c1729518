"""Create the decoder and the scorer of a process (`open_scorer`).

The command line, the workers of a run, the estimate of a run's cost, the Python API, and the
endpoint (the scoring server of `touchstone serve`) use this module.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ray_app.inference.decoder import BatchDecoder, CrashSafeDecoder, StageClock
from ray_app.inference.groups import Group
from ray_app.inference.spec import ScoringSpec

if TYPE_CHECKING:
    from ray_app.inference.cascade import CascadeScorer
    from ray_app.inference.group_scorer import GroupScorer
    from ray_app.inference.scorer import ImageDescriber, LoadedDetectors


class OpenScorer(NamedTuple):
    """The decoder and the scorer of a process.

    Attributes:
        decoder: Turns encoded images into batches for the detectors that score every image.
        scorer: Turns batches into outputs of all detectors of the process, and captions.
    """

    decoder: BatchDecoder
    scorer: "CascadeScorer"


def open_decoder(
    spec: ScoringSpec,
    clock: StageClock,
    *,
    careful: CrashSafeDecoder | None = None,
    hand_over: bool = False,
) -> BatchDecoder:
    """Create a decoder that prepares images for the first stage of an ensemble.

    Args:
        spec: The spec of the whole ensemble. For a cascade, batches also contain the files, which
            the second stage decodes again.
        clock: Counts the seconds of decoding.
        careful: Decodes single images, and protects the process from files that crash it. If it is
            None, images are decoded in this process. Decoding then has no wall limit, and large
            images do not wait for memory of the node.
        hand_over: Whether images that are not resized stay encoded in a batch. The process that
            scores the batch must then call `BatchDecoder.complete`, and decodes these images.

    Returns:
        The decoder.
    """
    return BatchDecoder(
        spec.for_stage(spec.stages[0]),
        clock,
        hand_over=hand_over,
        keeps_files=spec.is_cascade,
        careful=careful,
    )


def open_scorer(
    spec: ScoringSpec,
    device: str,
    clock: StageClock,
    *,
    pool: Sequence[str] | None = None,
    careful: CrashSafeDecoder | None = None,
    hand_over: bool = False,
    kept_bytes: float | None = None,
    loaded: "LoadedDetectors | None" = None,
    describing: "ImageDescriber | None" = None,
) -> OpenScorer:
    """Load detectors, and create the decoder and the scorer for their images.

    Args:
        spec: The spec of the whole ensemble.
        device: The PyTorch device on which networks run. It does not change the precision of the
            spec.
        clock: Counts the seconds of all stages.
        pool: The names of the detectors to load. None loads all detectors and the describer of the
            spec.
        careful: See `open_decoder`.
        hand_over: See `open_decoder`.
        kept_bytes: Maximum size in bytes of the files for the second stage of a cascade, and of the
            images for the describer, that are kept at a time. None is the default limit.
        loaded: Detectors that are already in memory. None loads them.
        describing: A describer that is already in memory. None loads it if `pool` is None and the
            spec has a describer.

    Returns:
        The decoder and the scorer.

    Raises:
        DetectorError: Weights are missing.
    """
    from ray_app.inference.cascade import KEPT_BYTES, CascadeScorer
    from ray_app.inference.scorer import EnsembleScorer, ImageDescriber

    device_spec = spec if device == spec.device else replace(spec, device=device)
    if describing is None and pool is None and device_spec.describer is not None:
        describing = ImageDescriber(device_spec, clock)
    decoder = open_decoder(device_spec, clock, careful=careful, hand_over=hand_over)
    scorer = CascadeScorer(
        device_spec,
        EnsembleScorer(device_spec, clock, pool, loaded=loaded),
        decoder,
        clock,
        kept_bytes=KEPT_BYTES if kept_bytes is None else kept_bytes,
        describing=describing,
    )
    return OpenScorer(decoder, scorer)


def open_group_scorer(
    spec: ScoringSpec,
    groups: Sequence[Group],
    clock: StageClock,
    *,
    careful: CrashSafeDecoder,
    kept_bytes: float,
    block_members: int | None = None,
) -> "tuple[BatchDecoder, GroupScorer]":
    """Create a scorer for more detectors than fit into memory together, and its decoder.

    The detectors are in groups, of which one at a time is in memory. The first group is loaded.

    Args:
        spec: The spec of the whole ensemble.
        groups: The groups of detectors (see `DetectorGroups`).
        clock: Counts the seconds of all stages.
        careful: Decodes single images, and protects the process from files that crash it.
        kept_bytes: Memory for decoded batches (see `GroupScorer`).
        block_members: On a GPU, the number of images that one task scores (see `GroupScorer`).

    Returns:
        The decoder and the scorer.

    Raises:
        DetectorError: Weights are missing.
    """
    from ray_app.inference.group_scorer import GroupScorer

    decoder = open_decoder(spec, clock, careful=careful, hand_over=True)
    scorer = GroupScorer(
        spec, groups, decoder, clock, kept_bytes=kept_bytes, block_members=block_members
    )
    return decoder, scorer
