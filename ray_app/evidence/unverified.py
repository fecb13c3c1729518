"""What of a record a verification did not look at, and why, so that nobody takes it for verified. Knows names of fields and checks."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ray_app.evidence.checks import Check
from ray_app.runs.rows import FACTS
from ray_app.runs.schema import DESCRIBED, IDENTIFIED, STABILITY

_PLACE = ("image_id", "uri", "member", "occurrence", "input", "attempt", "scored_at", "reused")
_FILE = ("status", *FACTS)  # what decoding the image gives again
_NEVER = ("detail", "phash", "provenance")
_SAID = ("scores",)
_SEEN = ("views", STABILITY, "mask_area", "mask_peak", "replies")
_PREDICTED = ("predicted_generator", *IDENTIFIED, "predicted_prompt", *DESCRIBED)
# The row's other columns (score, verdict, …) follow from its scores, which `decision` and `sections` check.
_NO_IMAGE = "no image was given (--image)"
_WRITTEN = "written down when the run, or the record, was made; nothing in the record could contradict it"


class Unverified(NamedTuple):
    """Fields that were not verified, by their dotted names."""

    fields: tuple[str, ...]
    why: str


def not_verified(told: Mapping[str, Any], checks: Sequence[Check], *, image: bool, signer: bool) -> list[Unverified]:
    """What `checks`, made with or without an image and a signer's key, say nothing of."""
    return [Unverified(fields, why) for fields, why in _untold(told, checks, image=image, signer=signer) if fields]


def _untold(told: Mapping[str, Any], checks: Sequence[Check], *, image: bool, signer: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    record = told["record"]
    row, agrees = record["row"], {check.name for check in checks if check.outcome == "agrees"}
    if "signature" in told and not signer:
        yield ("signature",), "no key was given (--signer)"
    yield ("made_at", "made_by", "found_by", "cards_here_depart"), _WRITTEN
    yield tuple(f"run.{name}" for name in record["run"] if name != "identity"), _WRITTEN
    yield (
        ("run.identity", "ensemble", *(f"detectors.{name}.card" for name in record["detectors"]), "guarantee.run"),
        ("they agree with one another; the run's own directory and published cards were not looked at"),
    )
    yield _of_row(row, _PLACE), _WRITTEN
    yield _of_row(row, _NEVER), "words, trust lists and hashes of the machine that made the run"
    yield from _of_image(record, agrees, image=image)
    if "sentences" not in agrees:
        yield ("guarantee.words", "limits", "verify"), "sentences of another version of Touchstone, or changed"
    yield tuple(f"hashes.{name}" for name in ("population", "references") if record["hashes"].get(name)), "that file is not in the record"


def _of_image(record: Mapping[str, Any], agrees: Collection[str], *, image: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    row = record["row"]
    was_scored = image and "verdict" in agrees
    why = "the image that was given is not the recorded one, or gave something else" if image else _NO_IMAGE
    yield _of_row(row, [name for name in _FILE if not (name == "sha256" and "file" in agrees) and "decoding" not in agrees]), why
    yield _of_row(row, () if was_scored else _SAID), why
    yield (() if was_scored else tuple(f"hashes.weights.{name}" for name in record["hashes"]["weights"])), "weights were not looked at"
    yield _of_row(row, _SEEN), "views, masks and replies are not made again"
    predicted = [name for name in _PREDICTED if name.startswith(("prompt", "predicted_prompt"))] * ("prompt" not in agrees)
    predicted += [name for name in _PREDICTED if "generator" in name] * ("generator" not in agrees)
    yield _of_row(row, predicted), "the run had no profile, or its cards are not here" if image else why


def _of_row(row: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Those of them that are columns of the row."""
    return tuple(f"row.{name}" for name in names if name in row)
