"""Precision, resize mode and decoders: what is asked for, what a calibration was made under, what to say where they differ. No torch."""

from collections.abc import Collection, Mapping
from typing import Literal

from ray_app.detectors import ResizeMode
from ray_app.ensembles import EnsembleCard, Settings
from ray_app.errors import ConfigError
from ray_app.images import decoder_name

AskedPrecision = Literal["auto", "bf16", "fp32"]
AskedResize = Literal["auto", "exact", "fast"]
Precisions = Mapping[str, Literal["bf16", "fp32"]]


def under_settings(
    card: EnsembleCard, usual: Precisions, precision: AskedPrecision, resize: AskedResize, *, waived: bool = False
) -> tuple[Precisions, ResizeMode]:
    """Precision per detector and resize mode for an ensemble; `usual`: the precision that holds where its card knows nothing.

    `auto` is what the card was calibrated under. Raises ConfigError where something else is asked for, unless the guarantee is waived.
    """
    settings = card.settings
    if settings is None:
        return usual, "exact" if resize == "auto" else resize
    chosen = {name: settings.precision.get(name, one) for name, one in usual.items()} if precision == "auto" else usual
    mode = settings.resize if resize == "auto" else resize
    said = departures(settings, chosen, mode)
    if said and not waived:
        raise ConfigError(
            f"{card.name}: its calibration does not hold with {' and '.join(said)}",
            hint="leave precision and resize at `auto`, or give up what the card guarantees: --set waive_guarantee=true "
            "(in Python waive_guarantee=True)",
        )
    return chosen, mode


def departures(settings: Settings | None, precision: Precisions, resize: str) -> list[str]:
    """How scores are made otherwise than those of a calibration, in words; none where they are made alike, or where nobody noted how."""
    if settings is None:
        return []
    said = [
        f"{name} in {one} (calibrated in {settings.precision[name]})"
        for name, one in precision.items()
        if settings.precision.get(name, one) != one
    ]
    return said + ([f"resize {resize} (calibrated with {settings.resize})"] if resize != settings.resize else [])


def decoders_here(card: EnsembleCard) -> set[str]:
    """What this process decodes those formats with that the card's calibration saw; none where nobody noted these."""
    seen = card.population and card.population.seen
    return {decoder_name(format) for format in seen.formats} if seen else set()


def other_decoders(settings: Settings | None, decoders: Collection[str]) -> list[str]:
    """Those that a calibration did not have; none where nobody noted its own."""
    return sorted(set(decoders) - set(settings.decoders)) if settings is not None and settings.decoders else []


def otherwise(scored: Collection[str], decoded: Collection[str]) -> list[str]:
    """What `departures` and `other_decoders` found, as reasons why a guarantee does not hold."""
    told = {"scored": scored, "decoded": decoded}
    return [f"{what} otherwise: {', '.join(found)}" for what, found in told.items() if found]
