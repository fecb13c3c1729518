"""The image of a record once more: its hash, and its scores by the recorded cards on this machine. Loads torch and weights."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.detectors import weights_digest
from ray_app.detectors.cards import default_slots
from ray_app.detectors.licences import require_accepted
from ray_app.ensembles import EnsembleCard, Member
from ray_app.errors import ConfigError, Status
from ray_app.evidence.canonical import plain
from ray_app.evidence.cards import require_here
from ray_app.evidence.checks import Check, hashed
from ray_app.evidence.profiling import check_profile
from ray_app.evidence.redeciding import decide_again
from ray_app.inference import BatchDecoder, Outcome, ScoringSpec, StageClock
from ray_app.runs.rows import FACTS

# How far a score may be from the recorded one, in log-odds, times the recorded score's size where that is above 1. fp32: other kernels,
# batch sizes and decoders round otherwise. bf16: each product keeps 8 bits, and kernels sum them in another order.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}

Scores = dict[str, float | None]


def check_image(record: Mapping[str, Any], spec: ScoringSpec, image: Path, accepted: Collection[str] = ()) -> Iterator[Check]:
    """Compare a file with the record's and, if it is the same, score it again. Raises ConfigError where the file cannot be read, and
    DetectorError where weights are missing or their licence is not `accepted`.
    """
    row = record["row"]
    data = _read(image, spec.limits.max_bytes)
    asked = replace(spec, slots=min(spec.slots, default_slots(spec.device)))
    outcome = _decoded(asked, data)
    if row["sha256"] is None or outcome.facts is None:
        yield Check("file", "not checked", f"the run never read the file ({row['status']}), so that no hash of it is recorded")
        return
    here = hashed("file", outcome.facts.sha256, row["sha256"], f"SHA-256 of {image}")
    yield here
    if here.outcome == "differs":
        yield Check("scores", "not checked", "this is not the recorded file, so it was not scored")
        return
    yield from _check_decoding(row, outcome)
    named = [name for name, score in (row["scores"] or {}).items() if score is not None and name in spec.cards]
    if outcome.status is not Status.OK or not named:
        return
    for name in named:
        require_here(spec.cards[name], record["detectors"][name]["asked_as"])
        require_accepted(spec.cards[name], accepted)
        yield _weights(name, weights_digest(spec.cards[name]), record["hashes"]["weights"][name])
    scores = _scores(_among(asked, named), data)
    for name in named:
        yield _compared(name, scores[name], row["scores"][name], spec)
    yield _verdict(record, spec, scores)
    yield from check_profile(record, asked, data)


def _read(image: Path, most: int) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"--image {image}: {error.strerror}") from None


def _decoded(spec: ScoringSpec, data: bytes) -> Outcome:
    with closing(BatchDecoder(spec, StageClock())) as decoder:
        return decoder.decode([(0, data)]).outcomes[0]


def _check_decoding(row: Mapping[str, Any], outcome: Outcome) -> Iterator[Check]:
    if outcome.status.value != row["status"]:
        yield Check("decoding", "differs", f"here {outcome.status.value} ({outcome.detail}), recorded {row['status']}")
        return
    here = outcome.facts.decoder if outcome.facts else None
    if here != row["decoder"]:
        yield Check(
            "decoding", "not checked", f"{row['status']}, but by {here}; recorded by {row['decoder']}: pixels and scores may differ"
        )
        return
    found = {name: plain(getattr(outcome.facts, name)) for name in FACTS if name in row} if outcome.facts else {}
    if other := [f"{name}: here {value!r}, recorded {row[name]!r}" for name, value in found.items() if value != row[name]]:
        yield Check("decoding", "differs", "; ".join(other))
    else:
        yield Check("decoding", "agrees", f"{row['status']}, by {here or 'no decoder'}")


def _weights(name: str, here: str, recorded: str | None) -> Check:
    if recorded is None:
        return Check(name, "not checked", f"weights here: {here}; the run noted none")
    return hashed(name, here, recorded, "weights here")


def _among(spec: ScoringSpec, named: list[str]) -> ScoringSpec:
    """The spec of these detectors alone, all of which look at the image whatever the others said."""
    asked = {name: member.detector for name, member in zip(spec.cards, spec.ensemble.members, strict=True)}
    card = EnsembleCard(name="again", title="", members=tuple(Member(detector=asked[name]) for name in named))
    return replace(spec, ensemble=card, cards={name: spec.cards[name] for name in named}, stability=None)


def _scores(spec: ScoringSpec, data: bytes) -> Scores:
    from ray_app.inference.scoring import EnsembleScorer

    clock = StageClock()
    with closing(BatchDecoder(spec, clock)) as decoder:
        readings = EnsembleScorer(spec, clock).score([decoder.decode([(0, data)])])
    return {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in readings.scores.items()}


def _compared(name: str, here: float | None, recorded: float, spec: ScoringSpec) -> Check:
    if here is None:
        return Check(name, "differs", f"no score here, recorded {recorded:+.6f}")
    precision = spec.precision[name]
    tolerance = TOLERANCE[precision] * max(1.0, abs(recorded))
    apart = abs(here - recorded)
    told = f"score {here:+.6f} here, {recorded:+.6f} recorded: {apart:.2g} apart, {tolerance:.2g} allowed ({precision}, {spec.device})"
    return Check(name, "agrees" if apart <= tolerance else "differs", told)


def _verdict(record: Mapping[str, Any], spec: ScoringSpec, scores: Scores) -> Check:
    row = record["row"]
    again = decide_again(spec, row | {"scores": row["scores"] | scores}, record["guarantee"]["run"]).row
    told = f"{again['verdict']} from the scores made here, {row['verdict']} recorded"
    return Check("verdict", "agrees" if again["verdict"] == row["verdict"] else "differs", told)
