"""What is said of one image among several that was refused: the same line in a multi-file answer and in a job. Knows no route."""

from collections.abc import Mapping

from ray_app.errors import InputError
from ray_app.images import ImageFacts as Facts
from ray_app.images import ImageRefused, inspect_bytes
from ray_app.serving.http.errors import Refusal
from ray_app.serving.http.schemas import EnsembleName, Error, ImageAnswer, ImageFacts, Timings


def refused_answer(
    refused: InputError | Refusal, name: str | None, data: bytes | None, ensemble: EnsembleName, request_id: str
) -> ImageAnswer:
    """The answer for an image that has no verdict: `status` is the refusal's code, `error` its usual JSON.

    `data` None: its bytes were never had (a URL that was not fetched); then `sha256` is empty and `image` null.
    """
    refusal = refused if isinstance(refused, Refusal) else Refusal.of(refused)
    facts = refused.facts if isinstance(refused, ImageRefused) else inspect_bytes(data or b"")
    return ImageAnswer(
        name=name,
        status=refusal.code,
        error=Error.model_validate(refusal.body(request_id)),
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
        timings=Timings(decode=0.0, wait=0.0, score=0.0, total=0.0),
        request_id=request_id,
    )


def facts_answer(facts: Facts, size_bytes: int, metadata: Mapping[str, str] | None = None) -> ImageFacts:
    """The file's facts as the API words them; what was not reached is null."""
    return ImageFacts(
        format=facts.format,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
        frames=facts.frames,
        orientation=facts.orientation,
        icc=facts.icc,
        flags=list(facts.flags),
        decoder=facts.decoder,
        size_bytes=size_bytes,
        metadata=dict(metadata or {}),
    )
