"""Conclude the origin of a file from the detectors' verdict and its metadata (`find_origin`).

The conclusion is a `Finding`, such as that a model generated the image. It lists the evidence, each
piece as a `Ground`. A ground is the verdict of the detectors, or a statement in the file about its
own origin, such as signed Content Credentials (`images.provenance`).

Each ground states its error rate, or why it has none. A statement that anyone can write or remove
has no error rate. Grounds are sorted by `Strength`, strongest first. The strongest ground that
supports a conclusion decides it. A ground that contradicts the conclusion is marked. A conclusion
changes no verdict, score, or measured rate.
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
    AigcLabel,
    Camera,
    ContentCredentials,
    Provenance,
    describe_signer,
)

Source = Literal["credentials", "watermark", "declaration", "camera", "detectors"]
UNSIGNED = "unsigned claim"

# Codes of https://cv.iptc.org/newscodes/digitalsourcetype for camera images, and those of
# `AI_SOURCE_TYPES` for images that a model generated as a whole.
_CAPTURED = frozenset(
    {"digitalCapture", "computationalCapture", "compositeCapture", "negativeFilm", "positiveFilm"}
)
_FULLY_GENERATED = frozenset({"trainedAlgorithmicMedia", "trainedAlgorithmicData"})
_MAX_NAME_CHARS, _MAX_DATA_CHARS = 80, 160
_NO_PROOF = "“no evidence found” does not mean that an image is real"
DEFAULT_CONFIDENCE = 0.95  # Confidence of upper bounds without a guarantee.
_FOR_MODEL, _AGAINST_MODEL, _NEITHER = 1, -1, 0
_VERDICT_STATEMENTS = {
    "fake": "detectors see the traces of a model",
    "abstain": "detectors leave it open",
    "real": "detectors found no evidence of a model",
}


class Strength(IntEnum):
    """Rank of a piece of evidence about a file's origin. The lowest value is the strongest.

    A forger gains credibility if an image claims to be from a camera. So such a statement by an
    unknown signer ranks below the detectors' verdict fake. A forger gains nothing if an image
    claims that a model generated it. If a file changed after it was signed, its signature does not
    count.

    Attributes:
        TRUSTED: Content Credentials by a trusted signer.
        WATERMARK: The watermark of a generator in the pixels.
        VALID_AI: Valid Content Credentials by an unknown signer, which name a model as the origin.
        DECLARED: Unsigned metadata that names a model as the origin.
        FLAGGED: The detectors' verdict fake.
        VALID_CAMERA: Valid Content Credentials by an unknown signer, which name a camera.
        BROKEN_AI: Content Credentials that name a model, in a file that was changed afterwards.
        NOT_FLAGGED: The detectors' verdict real or abstain.
        WITHOUT_FINDING: A statement that supports no conclusion, such as that some metadata was not
            read.
        CAMERA: A camera named in unsigned EXIF data, which supports no conclusion.
    """

    TRUSTED = auto()
    WATERMARK = auto()
    VALID_AI = auto()
    DECLARED = auto()
    FLAGGED = auto()
    VALID_CAMERA = auto()
    BROKEN_AI = auto()
    NOT_FLAGGED = auto()
    WITHOUT_FINDING = auto()
    CAMERA = auto()


class Ground(Frozen):
    """A piece of evidence about the origin of an image, with its error rate.

    The source is the detectors or a statement in the file, such as Content Credentials.
    """

    source: Source = Field(description="source of the statement")
    says: str = Field(
        examples=["its Content Credentials, signed by Example, say that a model made it"],
        description="the statement, for people",
    )
    error: str = Field(
        description="measured error rate of the source, or why there is none", examples=[UNSIGNED]
    )


class Finding(NamedTuple):
    """The conclusion on the origin of a file, and the evidence for and against it, strongest first.

    The conclusion is None if the file was not scored and no statement in it supports one. Evidence
    that contradicts the finding is marked with "against this".
    """

    finding: str | None
    grounds: tuple[Ground, ...]


class _Statement(NamedTuple):
    strength: Strength
    direction: int  # _FOR_MODEL, _AGAINST_MODEL, or _NEITHER.
    finding: str | None  # None if the ground supports no finding.
    ground: Ground


@lru_cache(maxsize=1024)  # Most files have no statement, so their arguments repeat.
def find_origin(provenance: str | None, verdict: str | None, thresholds: Thresholds) -> Finding:
    """Conclude the origin of a file from its own statements and from the detectors' verdict.

    The statements, such as Content Credentials, are JSON in the form of `Provenance.row`. The
    verdict is None if the image has no score.
    """
    statements = (
        []
        if provenance is None
        else list(_read_statements(Provenance.model_validate_json(provenance)))
    )
    if verdict is not None:
        strength, direction = (
            (Strength.FLAGGED, _FOR_MODEL)
            if verdict == "fake"
            else (Strength.NOT_FLAGGED, _AGAINST_MODEL * (verdict == "real"))
        )
        statements.append(
            _Statement(
                strength,
                direction,
                DETECTOR_FINDINGS[verdict],
                Ground(
                    source="detectors",
                    says=_VERDICT_STATEMENTS[verdict],
                    error=describe_rates(thresholds),
                ),
            )
        )
    statements.sort(key=lambda statement: statement.strength)
    strongest = next((s for s in statements if s.finding is not None), None)
    if strongest is None:
        return Finding(None, tuple(statement.ground for statement in statements))
    return Finding(
        strongest.finding,
        tuple(
            _mark_contradiction(s.ground) if s.direction * strongest.direction < 0 else s.ground
            for s in statements
        ),
    )


def describe_rates(thresholds: Thresholds) -> str:
    """Return a phrase that states which fractions of real and generated images are flagged as fake.

    The fractions were measured when the thresholds were chosen. The phrase is "not measured" if the
    thresholds have no fractions.
    """
    measured = [
        f"{100 * rate:.3g} % of {f'{count:,} ' if count else ''}{kind} images"
        for rate, count, kind in (
            (thresholds.false_positive_rate, thresholds.n_real, "real"),
            (thresholds.true_positive_rate, thresholds.n_fake, "generated"),
        )
        if rate is not None
    ]
    return f"flagged {' and '.join(measured)} when measured" if measured else "not measured"


def describe_error_rates(card: EnsembleCard) -> str:
    """Return sentences on the error rates of an ensemble, which are shown next to verdicts."""
    confidence = card.guarantee.confidence if card.guarantee else None
    return format_error_rates(card.name, card.thresholds, confidence)


def format_error_rates(
    ensemble: str, thresholds: Thresholds | None, confidence: float | None = None
) -> str:
    """Return sentences on error rates, which are shown next to verdicts.

    The sentences state how often the ensemble flags real images and how many generated images it
    finds, or that these rates were not measured. The name "" is an ensemble without a name.
    `confidence` is that of `thresholds.upper_bound`, the upper bound of the false-positive rate, by
    default 0.95.
    """
    measured = thresholds or Thresholds()
    prefix, article, demonstrative = "", "The", "This"
    if measured.target_fpr is not None:
        prefix = f"With thresholds chosen for {100 * measured.target_fpr:.3g} % false positives, "
        article, demonstrative = "the", "this"
    name = prefix + (
        f"{article} ensemble {_name(ensemble)}" if ensemble else f"{demonstrative} ensemble"
    )
    if (measured.false_positive_rate, measured.true_positive_rate) == (None, None):
        return (
            f"{name} has no measured error rates, so a flag is no proof, and {_NO_PROOF}; `touchstone detectors calibrate` measures "
            "them on labelled images of yours."
        )
    false_positives = f"{_approximate(measured.false_positive_rate)} of real images"
    if measured.upper_bound is not None:
        confidence_text = _percent(confidence or DEFAULT_CONFIDENCE)
        false_positives += (
            f" (at most {100 * measured.upper_bound:.3g} %, with {confidence_text} confidence)"
        )
    flags = f"{name} flags {false_positives} and finds {_approximate(measured.true_positive_rate)} of generated ones"
    left_open = " and ".join(
        f"{_percent(rate)} of {kind}"
        for rate, kind in (
            (measured.abstain_real, "real images"),
            (measured.abstain_fake, "generated ones"),
        )
        if rate is not None
    )
    if left_open:
        return f"{flags}{_describe_data(measured)}. It leaves {left_open} open, and {_NO_PROOF}."
    return f"{flags}, so {_NO_PROOF}{_describe_data(measured)}."


def _describe_data(thresholds: Thresholds) -> str:
    counts = " and ".join(
        f"{n:,} {kind}"
        for n, kind in ((thresholds.n_real, "real"), (thresholds.n_fake, "generated"))
        if n
    )
    parts = (
        f"{counts} ones" if counts else "",
        thresholds.measured_on and _name(thresholds.measured_on, _MAX_DATA_CHARS),
    )
    data = ", ".join(filter(None, parts))
    return f" (measured on {data})" if data else ""


def _approximate(rate: float | None) -> str:
    if rate is None:
        return "an unmeasured share"
    return f"about {_percent(rate)}" if 0 < rate < 1 else _percent(rate)


def _percent(rate: float) -> str:
    percent = 100 * rate
    if 9.5 <= percent <= 99:
        return f"{percent:.0f} %"
    return f"{percent:.1g} %" if percent < 0.1 else f"{round(percent, 1):g} %"


def _mark_contradiction(ground: Ground) -> Ground:
    return ground.model_copy(update={"says": f"against this, {ground.says}"})


def _read_statements(provenance: Provenance) -> Iterator[_Statement]:
    """Yield the statements of a file about its origin, in no order."""
    if provenance.c2pa is not None:
        yield _read_credentials(provenance.c2pa)
    if provenance.watermark is not None:
        mark, name = provenance.watermark, _name(provenance.watermark.of)
        says = f"its pixels carry the watermark of {name}: {mark.bits} of {mark.length} bits"
        error = f"by chance in {mark.chance:.0e} of unmarked images"
        yield _Statement(
            Strength.WATERMARK,
            _FOR_MODEL,
            f"carries the watermark of {name}",
            Ground(source="watermark", says=says, error=error),
        )
    if provenance.generator is not None:
        name, models = (
            _name(provenance.generator.tool),
            provenance.generator.model or ", ".join(provenance.generator.models),
        )
        claim = f"says that {name} made it"
        yield _declare(
            claim, f"its metadata {claim}" + (f", with {_name(models)}" if models else "")
        )
    codes = [code for code in provenance.digital_source_type if code in AI_SOURCE_TYPES]
    if codes:
        claim = f"says that a model made {_extent(codes)}"
        yield _declare(claim, f"its metadata {claim} (IPTC: {', '.join(codes)})")
    if provenance.aigc_label is not None:
        yield _read_aigc_label(provenance.aigc_label)
    if provenance.camera is not None and (provenance.camera.make or provenance.camera.model):
        camera = _name(_describe_camera(provenance.camera))
        ground = Ground(source="camera", says=f"its EXIF names a camera, {camera}", error=UNSIGNED)
        yield _Statement(Strength.CAMERA, _AGAINST_MODEL, None, ground)
    if provenance.unread:
        ground = Ground(
            source="declaration",
            says=f"not all of its metadata was read: {'; '.join(provenance.unread)}",
            error="not checked",
        )
        yield _Statement(Strength.WITHOUT_FINDING, _NEITHER, None, ground)


def _declare(finding: str, says: str) -> _Statement:
    return _Statement(
        Strength.DECLARED,
        _FOR_MODEL,
        finding,
        Ground(source="declaration", says=says, error=UNSIGNED),
    )


def _read_credentials(c2pa: ContentCredentials) -> _Statement:
    """Return the statement of Content Credentials. Its strength depends on their signature."""
    codes = [code for code in c2pa.source_types if code in AI_SOURCE_TYPES]
    direction = (
        _FOR_MODEL
        if codes
        else _NEITHER
        if _CAPTURED.isdisjoint(c2pa.source_types)
        else _AGAINST_MODEL
    )
    claim = {
        _FOR_MODEL: f"that a model made {_extent(codes)}",
        _AGAINST_MODEL: "that a camera took it",
        _NEITHER: "neither who nor what made it",
    }[direction]
    signer = _name(c2pa.signer)
    if c2pa.state == "unreadable":
        problem = "lie elsewhere and were not fetched" if c2pa.remote else "could not be checked"
        ground = Ground(
            source="credentials", says=f"its Content Credentials {problem}", error="not checked"
        )
        return _Statement(Strength.WITHOUT_FINDING, _NEITHER, None, ground)
    if c2pa.state == "invalid":
        finding = f"says that {_name(c2pa.claim_generator or c2pa.signer)} made {_extent(codes)}"
        says = f"it was signed by {signer}, then changed; its Content Credentials say {claim}"
        strength = Strength.BROKEN_AI if codes else Strength.WITHOUT_FINDING
        return _Statement(
            strength,
            direction,
            finding if codes else None,
            Ground(source="credentials", says=says, error=UNSIGNED),
        )
    is_trusted = c2pa.state == "trusted"
    signature = f"signed by {signer}" + ("" if is_trusted else " (valid, signer unknown)")
    says = f"its Content Credentials, {signature}, say {claim}"
    error = f"signature sound, signer {describe_signer(c2pa.state, c2pa.trust_lists)}"
    ground = Ground(source="credentials", says=says, error=error)
    if codes:
        extent = "" if _extent(codes) == "it" else " in part"
        return _Statement(
            Strength.TRUSTED if is_trusted else Strength.VALID_AI,
            direction,
            f"made by AI{extent}, {signature}",
            ground,
        )
    if direction == _AGAINST_MODEL:
        return _Statement(
            Strength.TRUSTED if is_trusted else Strength.VALID_CAMERA,
            direction,
            f"camera, {signature}",
            ground,
        )
    return _Statement(Strength.WITHOUT_FINDING, direction, None, ground)


def _read_aigc_label(label: AigcLabel) -> _Statement:
    """Return the statement of a label, which supports a finding only if it is no supposition."""
    if label.level == "generated":
        producer = f"the service {_name(label.producer)}" if label.producer else "a model"
        claim = f"says that {producer} made it"
        return _declare(claim, f"its metadata {claim} (GB 45438-2025)")
    says = f"its metadata says that a model may have made it (GB 45438-2025: {label.level})"
    ground = Ground(source="declaration", says=says, error=UNSIGNED)
    return _Statement(Strength.WITHOUT_FINDING, _FOR_MODEL, None, ground)


def _extent(codes: list[str]) -> str:
    return "part of it" if _FULLY_GENERATED.isdisjoint(codes) else "it"


def _describe_camera(camera: Camera) -> str:
    """Return make and model, or only the model if it repeats the make ("Canon", "Canon EOS 7D")."""
    make, model = camera.make or "", camera.model or ""
    repeats_make = bool(model) and model.split()[0].casefold() in make.casefold().split()
    return model if repeats_make else f"{make} {model}".strip()


def _name(name: str | None, limit: int = _MAX_NAME_CHARS) -> str:
    """Return a name from an untrusted file, shortened for one line."""
    if not name:
        return "an unnamed party"
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
