"""Build the answers of the API from scores and verdicts.

`make_scored_answer` is for an image that was scored, `make_refused_answer` for a refused image.
"""

import base64
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ray_app.detectors.card import blind_to
from ray_app.ensembles import Finding, is_calibrated
from ray_app.ensembles.decision import calibrate, make_abstain_reason, sigmoid
from ray_app.errors import InputError
from ray_app.identification.captions import Caption
from ray_app.identification.generators import family_title, find_title
from ray_app.identification.identifier import Identified
from ray_app.images import ImageFileFacts, ImageRefused, inspect_bytes
from ray_app.images.provenance import Provenance
from ray_app.inference import BlockResult, DetectorOutputs, ScoringSpec, batch, describe_replies
from ray_app.inference.decision import MASKS, REPLIES, collect_bounded_facts, finite
from ray_app.inference.spec import (
    departures,
    describe_guarantee_departures,
    list_decoders,
    list_uncalibrated_decoders,
)
from ray_app.runs.artifacts import mask_area, mask_png
from ray_app.serving.ensembles import EnsemblePlan, ServedEnsemble, ServedEnsembles
from ray_app.serving.http import schemas
from ray_app.serving.refusal import Refusal

NOT_REQUESTED = "not used: the image needed no second look"


def make_scored_answer(
    plan: EnsemblePlan,
    ensemble: ServedEnsemble,
    block: BlockResult,
    finding: Finding,
    outputs: DetectorOutputs,
    row: int,
    *,
    name: str | None,
    size_bytes: int,
    provenance: Provenance | None,
    masks: bool,
    timings: schemas.Timings,
    request_id: str,
) -> schemas.ImageAnswer:
    """Return the answer for one image of a batch that was scored.

    Args:
        plan: The ensembles and optional detectors of the endpoint.
        ensemble: The ensemble that gave the verdict.
        block: The verdicts of the ensemble on all images of the batch.
        finding: The conclusion on the origin of this image, and the evidence for it.
        outputs: Outputs of the ensemble's detectors, and of the optional detectors that the request
            names.
        row: The index of the image in the batch.
        name: The name of the file as the client sent it.
        size_bytes: Size of the file.
        provenance: What the file states about its origin.
        masks: Whether the answer has masks of altered pixels.
        timings: The seconds for decoding, waiting, and scoring.
        request_id: The id of the request.

    Returns:
        The answer.
    """
    spec, decisions = ensemble.spec, block.decisions
    facts = block.outcomes[row].facts
    assert facts is not None, "an image with a verdict was decoded"
    text, grounds = finding
    detectors = {
        key: _make_detector_answer(plan, spec, key, outputs, row, facts, masks)
        for key in plan.spec.cards
        if key in spec.cards or key in outputs.scores
    }
    return schemas.ImageAnswer(
        name=name,
        status=str(block.outcomes[row].status),
        finding=text,
        grounds=list(grounds),
        verdict=cast(schemas.Verdict, decisions.verdict[row]),
        verdict_reason=decisions.reason[row],
        verdict_detail=decisions.detail[row],
        second_look=cast(schemas.SecondLook, decisions.second_look[row])
        if decisions.second_look
        else None,
        error_rates=ensemble.error_rates,
        probability=finite(decisions.probability[row]),
        calibrated=decisions.calibrated,
        score=finite(decisions.score[row]),
        scores={key: answer.score for key, answer in detectors.items()},
        detectors=detectors,
        profile=_make_profile(spec, block, row),
        sha256=facts.sha256,
        image=make_facts(facts, size_bytes, provenance),
        ensemble=make_ensemble_name(ensemble),
        timings=timings,
        request_id=request_id,
    )


def make_refused_answer(
    error: InputError, name: str | None, data: bytes, ensemble: ServedEnsemble, request_id: str
) -> schemas.ImageAnswer:
    """Return the answer for a refused image whose request contains further images.

    An image that is alone in its request gets an HTTP error instead.

    Args:
        error: The error that refused the image.
        name: The name of the file as the client sent it.
        data: The bytes of the file.
        ensemble: The ensemble that the client requested.
        request_id: The id of the request.
    """
    refusal = Refusal.from_error(error)
    facts = error.facts if isinstance(error, ImageRefused) else inspect_bytes(data)
    return schemas.ImageAnswer(
        name=name,
        status=refusal.code,
        error=schemas.Error.model_validate(refusal.body(request_id)),
        verdict=None,
        verdict_reason=None,
        probability=None,
        calibrated=False,
        score=None,
        scores={},
        detectors={},
        sha256=facts.sha256,
        image=make_facts(facts, len(data)),
        ensemble=make_ensemble_name(ensemble),
        timings=schemas.Timings(decode=0.0, wait=0.0, score=0.0, total=0.0),
        request_id=request_id,
    )


def make_facts(
    facts: ImageFileFacts, size_bytes: int, provenance: Provenance | None = None
) -> schemas.ImageFacts:
    """Return the section `image` of an answer.

    Args:
        facts: Properties of the file.
        size_bytes: Size of the file.
        provenance: What the file states about its origin. None if it was not read.

    Returns:
        The properties of the file. An unknown property is None.
    """
    names = ("format", "width", "height", "mode", "frames", "orientation", "icc", "decoder")
    return schemas.ImageFacts(
        **{name: getattr(facts, name) for name in names},
        flags=list(facts.flags),
        size_bytes=size_bytes,
        provenance=provenance,
        metadata={} if provenance is None else provenance.lines(),
    )


def make_ensemble_name(ensemble: ServedEnsemble) -> schemas.EnsembleName:
    """Return the section `ensemble` of an answer, which identifies what gave the verdict.

    It has the name of the ensemble, the SHA-256 of its settings (fingerprint), and the
    false-positive rate of its thresholds.
    """
    return schemas.EnsembleName(
        name=ensemble.name, fingerprint=ensemble.fingerprint, fpr=ensemble.fpr
    )


def list_ensemble_infos(served: ServedEnsembles) -> list[schemas.EnsembleInfo]:
    """Return what `GET /v1/ensembles` states about each ensemble, the default ensemble first."""
    return [
        _make_ensemble_info(points[0], points[1:], is_default=index == 0)
        for index, points in enumerate(served.points.values())
    ]


def _make_ensemble_info(
    ensemble: ServedEnsemble, points: Sequence[ServedEnsemble], *, is_default: bool
) -> schemas.EnsembleInfo:
    spec, card = ensemble.spec, ensemble.spec.ensemble
    return schemas.EnsembleInfo(
        name=ensemble.name,
        title=card.title,
        fingerprint=ensemble.fingerprint,
        default=is_default,
        rule=card.rule,
        detectors=list(spec.cards),
        calibrated=is_calibrated(card, spec.calibrations),
        fpr=ensemble.fpr,
        **_collect_thresholds(ensemble),
        demonstration=any(detector.demonstration for detector in spec.cards.values()),
        blind_to=list(blind_to(spec.cards.values())),
        guarantee=_make_guarantee(spec),
        operating_points=[_make_operating_point(point) for point in points],
    )


def _make_operating_point(point: ServedEnsemble) -> schemas.OperatingPointInfo:
    assert point.fpr is not None, "a point that a request may choose"
    return schemas.OperatingPointInfo(
        fpr=point.fpr, fingerprint=point.fingerprint, **_collect_thresholds(point)
    )


def _collect_thresholds(ensemble: ServedEnsemble) -> dict[str, Any]:
    thresholds = ensemble.spec.ensemble.thresholds
    return {
        "fake_above": thresholds.fake_above,
        "real_below": thresholds.real_below,
        "false_positive_rate": thresholds.false_positive_rate,
        "upper_bound": thresholds.upper_bound,
        "recall": thresholds.true_positive_rate,
        "abstain_real": thresholds.abstain_real,
        "abstain_fake": thresholds.abstain_fake,
    }


def _make_guarantee(spec: ScoringSpec) -> schemas.GuaranteeInfo | None:
    card, guarantee = spec.ensemble, spec.ensemble.guarantee
    if guarantee is None:
        return None
    scored = departures(card.settings, spec.precision, spec.resize)
    unknown = list_uncalibrated_decoders(card.settings, list_decoders(card))
    reasons = "; ".join(describe_guarantee_departures(scored, unknown))
    return schemas.GuaranteeInfo(
        **guarantee.model_dump(include={"target_fpr", "confidence", "upper_bound", "n_real"}),
        population=card.population.what if card.population else None,
        holds=not reasons,
        why=reasons or None,
    )


def list_detector_infos(plan: EnsemblePlan) -> list[schemas.DetectorInfo]:
    """Return what `GET /v1/detectors` states about each detector.

    The detectors of the ensembles come first. Optional detectors, which score only if a request
    names them, are last.
    """
    return [
        schemas.DetectorInfo(
            name=name,
            title=card.title,
            licence=card.licence,
            terms=card.terms,
            source=card.source,
            precision=plan.spec.precision[name],
            localizes=card.masks,
            optional=name in plan.optional,
        )
        for name, card in plan.spec.cards.items()
    ]


def _make_profile(spec: ScoringSpec, block: BlockResult, row: int) -> schemas.Profile | None:
    if spec.identifier is None and spec.describer is None:
        return None
    captions = block.outputs.captions
    return schemas.Profile(
        generator=None if block.identified is None else _make_generator(block.identified, row),
        prompt=_make_prompt(captions[row]) if captions else None,
    )


def _make_generator(identified: Identified, row: int) -> schemas.ProfileGenerator | None:
    """Return the nearest generator, without a name if the image is like no known generator."""
    nearest = identified.name_image(row)
    if nearest is None:
        return None
    name, family = nearest.predicted_generator, nearest.generator_family
    return schemas.ProfileGenerator(
        name=name,
        title=find_title(name) if name else None,
        family=family,
        family_title=family_title(family) if family else None,
        probability=nearest.generator_probability,
        confidence=nearest.generator_confidence,
        known=name is not None,
        ranking=list(nearest.generator_ranking),
        nearest=find_title(nearest.generator_ranking[0]),
    )


def _make_prompt(caption: Caption | None) -> schemas.ProfilePrompt | None:
    if caption is None or not caption.text:
        return None
    return schemas.ProfilePrompt(text=caption.text, likelihood=caption.likelihood)


def _make_detector_answer(
    plan: EnsemblePlan,
    spec: ScoringSpec,
    name: str,
    outputs: DetectorOutputs,
    row: int,
    facts: ImageFileFacts,
    masks: bool,
) -> schemas.DetectorAnswer:
    """Return the answer of one detector.

    A detector of the ensemble has the calibration of the ensemble, an optional detector that of its
    own card.

    Args:
        plan: The ensembles of the endpoint.
        spec: The spec of the ensemble that decided.
        name: The detector.
        outputs: The outputs of all detectors.
        row: The row of the image in the outputs.
        facts: Properties of the file.
        masks: Whether the answer has a mask.
    """
    calibrations = spec.calibrations if name in spec.cards else plan.spec.calibrations
    calibration = calibrations[name]
    if name not in outputs.scores:
        return schemas.DetectorAnswer(
            score=None,
            probability=None,
            calibrated=calibration is not None,
            abstained=NOT_REQUESTED,
        )
    column = outputs.scores[name][row : row + 1].astype(np.float64)
    score = finite(column[0])
    bounded = collect_bounded_facts(plan.spec, [facts])
    range_violation = (
        plan.spec.describe_range_violation(name, facts.width, facts.height, bounded)
        if facts.width and facts.height
        else None
    )
    reply = _get_output(outputs, REPLIES, name, row)
    remark = describe_replies({name: [reply]})[name][0]
    abstain_reason = make_abstain_reason(score is not None, range_violation, remark)
    mask = _get_output(outputs, MASKS, name, row) if masks else None
    return schemas.DetectorAnswer(
        score=score,
        probability=finite(sigmoid(calibrate(column, calibration))[0]),
        calibrated=calibration is not None,
        abstained=abstain_reason and abstain_reason.detail,
        beside=name not in spec.cards,
        reply=reply,
        mask=None if mask is None else _make_mask(mask),
    )


def _get_output(outputs: DetectorOutputs, kind: str, name: str, row: int) -> Any:
    column = outputs.get(kind).get(name)
    return None if column is None else column[row]


def _make_mask(mask: batch.Pixels) -> schemas.Mask:
    height, width = mask.shape
    png = base64.b64encode(mask_png(mask)).decode()
    return schemas.Mask(
        png=png, width=width, height=height, area=mask_area(mask), peak=float(mask.max()) / 255
    )
