"""Outputs → the API's answers: `scored_answer` for an image with a verdict, `refused_answer` for
one without, `ensemble_infos`.
"""

import base64
from collections.abc import Collection, Sequence
from functools import reduce
from typing import cast

import numpy as np

from ray_app.detectors.card import blind_to
from ray_app.ensembles import error_rates, is_calibrated
from ray_app.ensembles.decision import calibrate, doubt, sigmoid
from ray_app.errors import InputError, Status
from ray_app.identification.generators import family_title, title_of
from ray_app.images import ImageFileFacts, ImageRefused, inspect_bytes
from ray_app.images.provenance import Provenance
from ray_app.inference import DecodeResult, DetectorOutputs, ScoringSpec, batch, judge, remarks_on
from ray_app.inference.decision import (
    MASKS,
    REPLIES,
    facts_of,
    finite,
    rows_to_describe,
    second_stage_rows,
)
from ray_app.inference.spec import decoders_here, departures, guarantee_departures, other_decoders
from ray_app.runs.artifacts import mask_area, mask_png
from ray_app.serving import profiles, release, replica
from ray_app.serving.http import errors, schemas

NOT_REQUESTED = "not used: the image needed no second look"


def outputs_of(replies: Sequence[replica.ScoreResponse]) -> DetectorOutputs:
    """The outputs of all groups for one image: one row."""
    return reduce(DetectorOutputs.joined, (reply.outputs for reply in replies))


def scored_answer(
    generation: release.Release,
    ensemble: str,
    outputs: DetectorOutputs,
    facts: ImageFileFacts,
    *,
    name: str | None,
    size_bytes: int,
    provenance: Provenance | None,
    masks: bool,
    timings: schemas.Timings,
    request_id: str,
    profiled: profiles.ProfileResponse | None = None,
) -> schemas.ImageAnswer:
    """The ensemble's decision and what each detector gave; those that the ensemble does not have
    are beside it.

    Raises InputError DETECTOR_FAILED where no detector of the ensemble gave a score although it
    should have.
    """
    spec = generation.ensembles[ensemble]
    said = None if provenance is None else provenance.row()
    judged = judge(
        spec,
        [DecodeResult(Status.OK, None, facts, provenance=said)],
        _whole(spec, outputs),
        names=False,
    )
    outcome, decisions = judged.outcomes[0], judged.decisions
    if outcome.status is not Status.OK:
        raise InputError(outcome.status, outcome.detail or "")
    [(finding, grounds)] = judged.findings
    named = [key for key in generation.spec.cards if key in outputs.scores or key in spec.cards]
    detectors = {
        key: _detector_answer(generation, ensemble, key, outputs, facts, masks) for key in named
    }
    return schemas.ImageAnswer(
        name=name,
        status=str(outcome.status),
        finding=finding,
        grounds=list(grounds),
        verdict=cast(schemas.Verdict, decisions.verdict[0]),
        verdict_reason=decisions.reason[0],
        verdict_detail=decisions.detail[0],
        second_look=cast(schemas.SecondLook, decisions.second_look[0])
        if decisions.second_look
        else None,
        error_rates=error_rates(spec.ensemble.name, spec.ensemble.thresholds),
        probability=finite(decisions.probability[0]),
        calibrated=decisions.calibrated,
        score=finite(decisions.score[0]),
        scores={key: answer.score for key, answer in detectors.items()},
        detectors=detectors,
        profile=_profile(profiled or profiles.ProfileResponse())
        if profiles.profile_cards(spec)
        else None,
        sha256=facts.sha256,
        image=facts_answer(facts, size_bytes, provenance),
        ensemble=ensemble_name(generation, ensemble),
        timings=timings,
        request_id=request_id,
    )


def refused_answer(
    refused: InputError | errors.Refusal,
    name: str | None,
    data: bytes | None,
    ensemble: schemas.EnsembleName,
    request_id: str,
) -> schemas.ImageAnswer:
    """The answer for an image that has no verdict: `status` is the refusal's code, `error` its
    usual JSON.

    `data` None: its bytes were never had (a URL that was not fetched); then `sha256` is empty and
    `image` null.
    """
    refusal = refused if isinstance(refused, errors.Refusal) else errors.Refusal.of(refused)
    facts = refused.facts if isinstance(refused, ImageRefused) else inspect_bytes(data or b"")
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
        sha256="" if data is None else facts.sha256,
        image=None if data is None else facts_answer(facts, len(data)),
        ensemble=ensemble,
        timings=schemas.Timings(decode=0.0, wait=0.0, score=0.0, total=0.0),
        request_id=request_id,
    )


def facts_answer(
    facts: ImageFileFacts, size_bytes: int, provenance: Provenance | None = None
) -> schemas.ImageFacts:
    """The file's facts as the API words them; what was not reached is null."""
    read = ("format", "width", "height", "mode", "frames", "orientation", "icc", "decoder")
    return schemas.ImageFacts(
        **{name: getattr(facts, name) for name in read},
        flags=list(facts.flags),
        size_bytes=size_bytes,
        provenance=provenance,
        metadata={} if provenance is None else provenance.lines(),
    )


def ensemble_name(generation: release.Release, ensemble: str) -> schemas.EnsembleName:
    """Name and fingerprint of one ensemble."""
    return schemas.EnsembleName(name=ensemble, fingerprint=generation.fingerprints[ensemble])


def ensemble_infos(generation: release.Release) -> list[schemas.EnsembleInfo]:
    """What there is to ask for, the default first."""
    return [
        schemas.EnsembleInfo(
            name=name,
            title=spec.ensemble.title,
            fingerprint=generation.fingerprints[name],
            default=name == generation.default,
            rule=spec.ensemble.rule,
            detectors=list(spec.cards),
            calibrated=is_calibrated(spec.ensemble, spec.calibrations),
            fake_above=spec.ensemble.thresholds.fake_above,
            real_below=spec.ensemble.thresholds.real_below,
            demonstration=any(card.demonstration for card in spec.cards.values()),
            blind_to=list(blind_to(spec.cards.values())),
            guarantee=_guarantee(spec),
        )
        for name, spec in generation.ensembles.items()
    ]


def _guarantee(spec: ScoringSpec) -> schemas.GuaranteeInfo | None:
    card, promise = spec.ensemble, spec.ensemble.guarantee
    if promise is None:
        return None
    scored, unknown = (
        departures(card.settings, spec.precision, spec.resize),
        other_decoders(card.settings, decoders_here(card)),
    )
    why = "; ".join(guarantee_departures(scored, unknown))
    return schemas.GuaranteeInfo(
        **promise.model_dump(include={"target_fpr", "confidence", "upper_bound", "n_real"}),
        population=card.population.what if card.population else None,
        holds=not why,
        why=why or None,
    )


def detector_infos(generation: release.Release) -> list[schemas.DetectorInfo]:
    """The detectors of all ensembles, then the optional ones."""
    return [
        schemas.DetectorInfo(
            name=name, title=card.title, licence=card.licence, terms=card.terms, source=card.source,
            precision=generation.spec.precision[name], localizes=card.masks, optional=name in generation.optional,
        )
        for name, card in generation.spec.cards.items()
    ]  # fmt: skip


def stage_detectors(
    generation: release.Release, ensemble: str, beside: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The detectors that a request needs at once, and those that it needs only for images that go
    on, both in the generation's order.

    The latter are none unless the ensemble is a cascade; a detector that is asked for `beside` it
    is asked at once.
    """
    spec = generation.ensembles[ensemble]
    at_once, every = {*spec.first, *beside}, generation.spec.cards
    return tuple(name for name in every if name in at_once), tuple(
        name for name in every if name in spec.late and name not in at_once
    )


def needs_second_stage(
    spec: ScoringSpec, replies: Sequence[replica.ScoreResponse], facts: ImageFileFacts
) -> bool:
    """Whether an image goes on to a cascade's second stage, by the first's outputs and by its
    bytes.
    """
    return bool(
        second_stage_rows(spec, [DecodeResult(Status.OK, None, facts)], outputs_of(replies))
    )


def is_described(
    spec: ScoringSpec, replies: Sequence[replica.ScoreResponse], facts: ImageFileFacts
) -> bool:
    """Whether an ensemble's profile wants words for an image with these outputs."""
    return bool(
        rows_to_describe(
            spec, [DecodeResult(Status.OK, None, facts)], _whole(spec, outputs_of(replies))
        )
    )


def _profile(profiled: profiles.ProfileResponse) -> schemas.Profile:
    """Return the profile as the API has it, without a name for an image like no known generator."""
    named = None if profiled.identified is None else profiled.identified.name_image(0)
    generator, prompt = None, None
    if named is not None:
        name, family = named.predicted_generator, named.generator_family
        generator = schemas.ProfileGenerator(
            name=name,
            title=title_of(name) if name else None,
            family=family,
            family_title=family_title(family) if family else None,
            probability=named.generator_probability,
            confidence=named.generator_confidence,
            known=name is not None,
            ranking=list(named.generator_ranking),
            nearest=title_of(named.generator_ranking[0]),
        )
    if profiled.described is not None:
        caption = profiled.described
        prompt = schemas.ProfilePrompt(text=caption.text, likelihood=caption.likelihood)
    return schemas.Profile(generator=generator, prompt=prompt)


def _whole(spec: ScoringSpec, outputs: DetectorOutputs) -> DetectorOutputs:
    """What an ensemble's members say, in its order; nothing (NaN) of those that did not run."""
    nothing = np.array([np.nan], np.float32)
    return DetectorOutputs.clean(scores=dict.fromkeys(spec.cards, nothing)).joined(
        outputs.among(spec.cards)
    )


def _detector_answer(
    generation: release.Release,
    ensemble: str,
    name: str,
    outputs: DetectorOutputs,
    facts: ImageFileFacts,
    masks: bool,
) -> schemas.DetectorAnswer:
    """What one detector says, calibrated as the ensemble has it, or, beside it, as its own card
    does.
    """
    spec = generation.ensembles[ensemble]
    calibration = {**generation.spec.calibrations, **spec.calibrations}[name]
    if name not in outputs.scores:
        return schemas.DetectorAnswer(
            score=None,
            probability=None,
            calibrated=calibration is not None,
            abstained=NOT_REQUESTED,
        )
    column = outputs.scores[name].astype(np.float64)
    score = finite(column[0])
    bounded = facts_of(generation.spec, [facts])
    outside = (
        generation.spec.doubt(name, facts.width, facts.height, bounded)
        if facts.width and facts.height
        else None
    )
    mask = outputs.of(MASKS).get(name, [None])[0] if masks else None
    why = doubt(score is not None, outside, remarks_on(outputs.of(REPLIES)).get(name, [None])[0])
    return schemas.DetectorAnswer(
        score=score,
        probability=finite(sigmoid(calibrate(column, calibration))[0]),
        calibrated=calibration is not None,
        abstained=why and why.detail,
        beside=name not in spec.cards,
        reply=outputs.of(REPLIES).get(name, [None])[0],
        mask=None if mask is None else _mask(mask),
    )


def _mask(mask: batch.Pixels) -> schemas.Mask:
    height, width = mask.shape
    png = base64.b64encode(mask_png(mask)).decode()
    return schemas.Mask(
        png=png, width=width, height=height, area=mask_area(mask), peak=float(mask.max()) / 255
    )
