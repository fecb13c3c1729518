"""One finding per file (`find`): a word, and the grounds that it rests on, strongest first, each
with its error rate.

Grounds are what the file states of its own origin (`images.provenance`) and the detectors' verdict.
The finding is the word of the strongest ground that has one (`Strength`); a ground that speaks
against it stays in the list and says so. Nothing of this changes a verdict, a score or a rate that
was measured: a statement that anybody can write or remove has no error rate.
"""

from collections.abc import Iterator
from enum import IntEnum, auto
from functools import lru_cache
from typing import Literal, NamedTuple

from pydantic import Field

from ray_app.config import Frozen
from ray_app.ensembles.card import EnsembleCard, Thresholds
from ray_app.errors import DETECTOR_FINDINGS
from ray_app.images.provenance.statement import (
    AI_SOURCE_TYPES,
    ContentCredentials,
    Provenance,
    standing,
)

Source = Literal["credentials", "watermark", "declaration", "camera", "detectors"]
UNSIGNED = "unsigned claim"

# https://cv.iptc.org/newscodes/digitalsourcetype: what a camera took; and, of `AI_SOURCE_TYPES`,
# what a model made as a whole.
_CAPTURED = frozenset(
    {"digitalCapture", "computationalCapture", "compositeCapture", "negativeFilm", "positiveFilm"}
)
_WHOLE = frozenset({"trainedAlgorithmicMedia", "trainedAlgorithmicData"})
_LONGEST_NAME, _LONGEST_PLACE = 80, 160
_NO_PROOF = "“no evidence found” does not say that a picture is genuine"
USUAL_CONFIDENCE = 0.95  # of upper bounds, unless a guarantee has another
_AI, _NOT_AI, _NEITHER = 1, -1, 0
_SEEN = {
    "fake": "detectors see the traces of a model",
    "abstain": "detectors leave it open",
    "real": "detectors found no evidence of a model",
}


class Strength(IntEnum):
    """What a ground is worth; the lowest is the strongest. Whoever claims to be a camera gains by
    it, so that a signature by nobody known is worth less there than what was measured; who admits
    to a model has no such reason. What was changed after it was signed counts as if it had no
    signature.
    """

    TRUSTED = auto()
    WATERMARK = auto()
    VALID_AI = auto()
    DECLARED = auto()
    FLAGGED = auto()
    VALID_CAMERA = auto()
    BROKEN_AI = auto()
    NOT_FLAGGED = auto()
    WITHOUT_WORD = auto()
    CAMERA = auto()


class Ground(Frozen):
    """What one source says of a picture's origin."""

    source: Source
    says: str = Field(
        examples=["its Content Credentials, signed by Example, say that a model made it"]
    )
    error: str = Field(
        description="the error rate as it was measured, or why there is none", examples=[UNSIGNED]
    )


class Finding(NamedTuple):
    """`finding`: None where nothing was scored and the file says nothing."""

    finding: str | None
    grounds: tuple[Ground, ...]


class _Said(NamedTuple):
    strength: Strength
    speaks: int  # for a model, against it, or neither
    word: str | None
    ground: Ground


@lru_cache(maxsize=1024)  # most files say nothing of themselves
def find(provenance: str | None, verdict: str | None, thresholds: Thresholds) -> Finding:
    """The finding on one file: by its statements (JSON, as `Provenance.row` has it), the ensemble's
    verdict (None: it has no score), and the rates that the ensemble's thresholds were measured
    with.
    """
    said = (
        [] if provenance is None else list(_statements(Provenance.model_validate_json(provenance)))
    )
    if verdict is not None:
        strength, speaks = (
            (Strength.FLAGGED, _AI)
            if verdict == "fake"
            else (Strength.NOT_FLAGGED, _NOT_AI * (verdict == "real"))
        )
        said.append(
            _Said(
                strength,
                speaks,
                DETECTOR_FINDINGS[verdict],
                Ground(source="detectors", says=_SEEN[verdict], error=rates(thresholds)),
            )
        )
    said.sort(key=lambda one: one.strength)
    leading = next((one for one in said if one.word is not None), None)
    if leading is None:
        return Finding(None, tuple(one.ground for one in said))
    return Finding(
        leading.word,
        tuple(
            _against(one.ground) if one.speaks * leading.speaks < 0 else one.ground for one in said
        ),
    )


def rates(thresholds: Thresholds) -> str:
    """How often the detectors flagged real and generated pictures when their threshold was chosen,
    in words.
    """
    measured = [
        f"{100 * rate:.3g} % of {f'{count:,} ' if count else ''}{kind} pictures"
        for rate, count, kind in (
            (thresholds.false_positive_rate, thresholds.n_real, "real"),
            (thresholds.true_positive_rate, thresholds.n_fake, "generated"),
        )
        if rate is not None
    ]
    return f"flagged {' and '.join(measured)} when measured" if measured else "not measured"


def describe_error_rates(card: EnsembleCard) -> str:
    """Return the sentences of `error_rates` for a card."""
    confidence = card.guarantee.confidence if card.guarantee else None
    return error_rates(card.name, card.thresholds, confidence)


def error_rates(
    ensemble: str, thresholds: Thresholds | None, confidence: float | None = None
) -> str:
    """Return the sentences that are shown next to verdicts: how often the ensemble flags real
    images and how many generated ones it finds, or that nobody measured it.

    Args:
        ensemble: Name of the ensemble. "" if it has none.
        thresholds: The thresholds with their rates. None if they are unknown.
        confidence: The confidence of the upper bound. Defaults to 95 %.
    """
    cuts = thresholds or Thresholds()
    point, the, this = "", "The", "This"
    if cuts.target_fpr is not None:
        point, the, this = f"Operating point {100 * cuts.target_fpr:.3g} %: ", "the", "this"
    name = point + (f"{the} ensemble {_name(ensemble)}" if ensemble else f"{this} ensemble")
    if (cuts.false_positive_rate, cuts.true_positive_rate) == (None, None):
        return (
            f"{name} has no measured error rates, so a flag is no proof, and {_NO_PROOF}; `touchstone detectors calibrate` measures "
            "them on labelled pictures of yours."
        )
    wrong = f"{_about(cuts.false_positive_rate)} of real pictures"
    if cuts.upper_bound is not None:
        sure = _percent(confidence or USUAL_CONFIDENCE)
        wrong += f" (at most {100 * cuts.upper_bound:.3g} %, with {sure} confidence)"
    flags = f"{name} flags {wrong} and finds {_about(cuts.true_positive_rate)} of generated ones"
    left_open = " and ".join(
        f"{_percent(share)} of {pictures}"
        for share, pictures in (
            (cuts.abstain_real, "real pictures"),
            (cuts.abstain_fake, "generated ones"),
        )
        if share is not None
    )
    if left_open:
        return f"{flags}{_where_measured(cuts)}. It leaves {left_open} open, and {_NO_PROOF}."
    return f"{flags}, so {_NO_PROOF}{_where_measured(cuts)}."


def _where_measured(cuts: Thresholds) -> str:
    counts = " and ".join(
        f"{n:,} {kind}" for n, kind in ((cuts.n_real, "real"), (cuts.n_fake, "generated")) if n
    )
    parts = (
        f"{counts} ones" if counts else "",
        cuts.measured_on and _name(cuts.measured_on, _LONGEST_PLACE),
    )
    measured = ", ".join(filter(None, parts))
    return f" (measured on {measured})" if measured else ""


def _about(rate: float | None) -> str:
    if rate is None:
        return "an unmeasured share"
    return f"about {_percent(rate)}" if 0 < rate < 1 else _percent(rate)


def _percent(rate: float) -> str:
    percent = 100 * rate
    if 9.5 <= percent <= 99:
        return f"{percent:.0f} %"
    return f"{percent:.1g} %" if percent < 0.1 else f"{round(percent, 1):g} %"


def _against(ground: Ground) -> Ground:
    return ground.model_copy(update={"says": f"against this, {ground.says}"})


def _statements(said: Provenance) -> Iterator[_Said]:
    """What a file says of itself, in no order."""
    if said.c2pa is not None:
        yield _credentials(said.c2pa)
    if said.watermark is not None:
        mark, name = said.watermark, _name(said.watermark.of)
        says = f"its pixels carry the watermark of {name}: {mark.bits} of {mark.length} bits"
        error = f"by chance in {mark.chance:.0e} of unmarked pictures"
        yield _Said(
            Strength.WATERMARK,
            _AI,
            f"carries the watermark of {name}",
            Ground(source="watermark", says=says, error=error),
        )
    if said.generator is not None:
        name, models = (
            _name(said.generator.tool),
            said.generator.model or ", ".join(said.generator.models),
        )
        made = f"says that {name} made it"
        yield _declared(
            made, f"its metadata {made}" + (f", with {_name(models)}" if models else "")
        )
    codes = [code for code in said.digital_source_type if code in AI_SOURCE_TYPES]
    if codes:
        made = f"says that a model made {_how_much(codes)}"
        yield _declared(made, f"its metadata {made} (IPTC: {', '.join(codes)})")
    if said.camera is not None and (said.camera.make or said.camera.model):
        named = " ".join(dict.fromkeys(filter(None, (said.camera.make, said.camera.model))))
        ground = Ground(
            source="camera", says=f"its EXIF names a camera, {_name(named)}", error=UNSIGNED
        )
        yield _Said(Strength.CAMERA, _NOT_AI, None, ground)
    if said.unread:
        ground = Ground(
            source="declaration",
            says=f"not all of its metadata was read: {'; '.join(said.unread)}",
            error="not checked",
        )
        yield _Said(Strength.WITHOUT_WORD, _NEITHER, None, ground)


def _declared(word: str, says: str) -> _Said:
    return _Said(
        Strength.DECLARED, _AI, word, Ground(source="declaration", says=says, error=UNSIGNED)
    )


def _credentials(c2pa: ContentCredentials) -> _Said:
    """What Content Credentials say, and how far that can be believed."""
    codes = [code for code in c2pa.source_types if code in AI_SOURCE_TYPES]
    speaks = _AI if codes else _NEITHER if _CAPTURED.isdisjoint(c2pa.source_types) else _NOT_AI
    claim = {
        _AI: f"that a model made {_how_much(codes)}",
        _NOT_AI: "that a camera took it",
        _NEITHER: "neither who nor what made it",
    }[speaks]
    signer = _name(c2pa.signer)
    if c2pa.state == "unreadable":
        where = "lie elsewhere and were not fetched" if c2pa.remote else "could not be checked"
        ground = Ground(
            source="credentials", says=f"its Content Credentials {where}", error="not checked"
        )
        return _Said(Strength.WITHOUT_WORD, _NEITHER, None, ground)
    if c2pa.state == "invalid":
        made = f"says that {_name(c2pa.claim_generator or c2pa.signer)} made {_how_much(codes)}"
        says = f"it was signed by {signer}, then changed; its Content Credentials say {claim}"
        strength = Strength.BROKEN_AI if codes else Strength.WITHOUT_WORD
        return _Said(
            strength,
            speaks,
            made if codes else None,
            Ground(source="credentials", says=says, error=UNSIGNED),
        )
    is_trusted = c2pa.state == "trusted"
    by = f"signed by {signer}" + ("" if is_trusted else " (valid, signer unknown)")
    says = f"its Content Credentials, {by}, say {claim}"
    error = f"signature sound, signer {standing(c2pa.state, c2pa.trust_lists)}"
    ground = Ground(source="credentials", says=says, error=error)
    if codes:
        part = "" if _how_much(codes) == "it" else " in part"
        return _Said(
            Strength.TRUSTED if is_trusted else Strength.VALID_AI,
            speaks,
            f"made by AI{part}, {by}",
            ground,
        )
    if speaks == _NOT_AI:
        return _Said(
            Strength.TRUSTED if is_trusted else Strength.VALID_CAMERA,
            speaks,
            f"camera, {by}",
            ground,
        )
    return _Said(Strength.WITHOUT_WORD, speaks, None, ground)


def _how_much(codes: list[str]) -> str:
    return "part of it" if _WHOLE.isdisjoint(codes) else "it"


def _name(name: str | None, limit: int = _LONGEST_NAME) -> str:
    """A stranger's name, short enough for a line."""
    if not name:
        return "somebody without a name"
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
