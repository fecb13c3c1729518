"""A small endpoint behind the page: the shipped detector's real answers, and the moods that a test
wants to see the page through.
"""

import asyncio
import base64
import io
import threading
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from fastapi import FastAPI, Query, Request
from PIL import Image

import ray_app
from ray_app.ensembles import Thresholds, find_origin, format_error_rates
from ray_app.errors import InputError, Reason, Status
from ray_app.images.provenance import Provenance, ProvenancePolicy, ProvenanceReader
from ray_app.serving.answers import make_facts
from ray_app.serving.http import schemas
from ray_app.serving.http.app import Envelope, page_router
from ray_app.serving.http.auth import Paths
from ray_app.serving.http.errors import install_handlers
from ray_app.serving.http.uploads import read_images
from ray_app.serving.refusal import Refusal

TINY = "touchstone-tiny"
ERROR_RATES = format_error_rates(
    "default", Thresholds(false_positive_rate=0.01, true_positive_rate=0.4)
)
POINTS = {
    fpr: schemas.OperatingPointInfo(
        fpr=fpr, fingerprint=f"{fpr:g}", fake_above=fake_above, real_below=fake_above - 1,
        false_positive_rate=fpr, recall=recall, upper_bound=2 * fpr,
    )
    for fpr, fake_above, recall in ((0.001, 9.0, None), (0.01, 8.0, 0.4), (0.05, -20.0, 0.74))
}  # fmt: skip
GUARANTEE = schemas.GuaranteeInfo(
    target_fpr=0.01,
    confidence=0.95,
    upper_bound=0.009,
    n_real=500,
    population=None,
    holds=True,
    why=None,
)
LIMITS = schemas.EndpointLimits(
    max_body_bytes=4 * 2**20,
    max_files=4,
    max_file_bytes=2**20,
    max_pixels=50_000_000,
    deadline_s=30,
    formats=["JPEG", "PNG"],
    urls=False,
)


@dataclass
class Mood:
    """How the endpoint behaves; a test changes it between requests."""

    token: str | None = None
    busy: int = 0  # requests that are told to come back
    masks: bool = False
    several: bool = False
    points: bool = False  # the ensemble has operating points, and decides at 1 %
    calibrated: bool = False
    provenance: Provenance | None = None  # instead of what the file says
    profile: schemas.Profile | None = None
    abstained: str | None = None
    blind_to: tuple[str, ...] = ()
    held: threading.Event | None = None  # while set and not yet fired, scoring waits for it
    requests: list[tuple[str, int]] = field(default_factory=list)  # query and number of files

    def reset(self):
        self.__init__()
        return self


@cache
def shipped_ensemble():
    return ray_app.load_ensemble("tiny")


def make_app(mood: Mood) -> FastAPI:
    ensemble = shipped_ensemble()
    app = FastAPI()
    install_handlers(app)
    app.add_middleware(Envelope, page=Paths(("/", "/page/*")), meter=None, echo=True)
    app.include_router(page_router())

    def admitted(request: Request) -> None:
        if mood.token and request.headers.get("authorization") != f"Bearer {mood.token}":
            raise Refusal("unauthorized")

    @app.get("/v1/ensembles")
    async def ensembles(request: Request) -> schemas.Ensembles:
        admitted(request)
        served = [_served("default", mood)] + ([_served("second", mood)] if mood.several else [])
        optional = ["slow-words"] if mood.several else []
        return schemas.Ensembles(
            ensembles=served,
            optional_detectors=optional,
            limits=LIMITS,
            token_needed=bool(mood.token),
        )

    @app.get("/v1/detectors")
    async def detectors(request: Request) -> schemas.Detectors:
        admitted(request)
        title = "Touchstone's demonstration detector"
        tiny = schemas.DetectorInfo(name=TINY, title=title, licence="Apache-2.0", terms="", source="", precision="fp32",
                                    localizes=mood.masks, optional=False)  # fmt: skip
        return schemas.Detectors(detectors=[tiny])

    @app.post("/v1/score")
    async def score(
        request: Request,
        ensemble_name: str = Query("default", alias="ensemble"),
        masks: bool = False,
        fpr: float | None = None,
    ) -> schemas.ImageAnswer | schemas.ImageAnswers:
        admitted(request)
        images = await read_images(
            request, max_files=LIMITS.max_files, max_file_bytes=LIMITS.max_file_bytes
        )
        mood.requests.append((request.url.query, len(images)))
        if mood.held is not None:
            await asyncio.to_thread(mood.held.wait, 20)
        if mood.busy:
            mood.busy -= 1
            raise Refusal("overloaded", headers={"Retry-After": "1"})
        point = POINTS[fpr or 0.01] if mood.points else None
        answers = [
            _answer(ensemble, mood, name, data, ensemble_name, masks, point)
            for name, data in images
        ]
        if len(answers) > 1:
            return schemas.ImageAnswers(results=answers)
        if answers[0].status != "ok":
            raise Refusal(answers[0].status, answers[0].error.message)
        return answers[0]

    return app


def error_rates_at(point):
    """What the page shows of the rates of an operating point."""
    rates = {"target_fpr": point.fpr, "false_positive_rate": point.false_positive_rate}
    return format_error_rates("default", Thresholds(**rates, true_positive_rate=point.recall))


def _served(name, mood):
    info = schemas.EnsembleInfo(
        name=name, title=f"Touchstone's {name} ensemble", fingerprint="f" * 64, default=name == "default", rule="mean-logit",
        detectors=[TINY], calibrated=mood.calibrated, fake_above=0.53, real_below=-1.43, demonstration=name == "default",
        blind_to=list(mood.blind_to),
    )  # fmt: skip
    if not mood.points:
        return info
    known = POINTS[0.01].model_dump(exclude={"fingerprint"})
    return info.model_copy(
        update={**known, "guarantee": GUARANTEE, "operating_points": list(POINTS.values())}
    )


def _answer(ensemble, mood, name, data, ensemble_name, masks, point):
    result = ensemble.score([data])[0]
    error = None
    if result.status is not Status.OK:
        refusal = Refusal.from_error(InputError(result.status, result.detail or ""))
        error = schemas.Error.model_validate(refusal.body("0123456789abcdef"))
    verdict, reason, detail = result.verdict, result.verdict_reason, result.verdict_detail
    if mood.abstained:
        verdict, reason, detail = "abstain", Reason.OUT_OF_RANGE, f"{TINY}: {mood.abstained}"
    said_rates, fpr, fingerprint = ERROR_RATES, None, "f" * 64
    if point is not None and verdict:
        verdict = "fake" if result.score >= point.fake_above else "real"
        said_rates, fpr, fingerprint = error_rates_at(point), point.fpr, point.fingerprint
    profile = mood.profile if error is None else None
    detectors = {
        name: schemas.DetectorAnswer(score=score, probability=result.probability, calibrated=mood.calibrated, abstained=mood.abstained,
                                     mask=_mask(result.facts) if masks and mood.masks else None)
        for name, score in result.scores.items()
    } if error is None else {}  # fmt: skip
    facts = result.facts
    said = mood.provenance or (
        facts and ProvenanceReader(ProvenancePolicy()).read(data, facts.format)
    )
    finding, grounds = find_origin(None if said is None else said.row(), verdict, Thresholds())
    return schemas.ImageAnswer(
        name=name, status=str(result.status), error=error, finding=finding, grounds=list(grounds),
        verdict=verdict, verdict_reason=reason, verdict_detail=detail, error_rates=verdict and said_rates,
        probability=result.probability,
        calibrated=mood.calibrated, score=result.score, scores=dict(result.scores) if error is None else {}, detectors=detectors,
        sha256=facts.sha256 if facts else "", image=make_facts(facts, len(data), said) if facts else None,
        ensemble=schemas.EnsembleName(name=ensemble_name, fingerprint=fingerprint, fpr=fpr),
        timings=schemas.Timings(decode=0.01, wait=0.002, score=0.02, total=0.03), request_id="0123456789abcdef", profile=profile,
    )  # fmt: skip


def _mask(facts):
    """A disc in the upper left quarter of the stored pixels."""
    rows, columns = np.mgrid[0:64, 0:64]
    grey = np.clip(255 - 18 * np.hypot(rows - 18, columns - 18).clip(8) + 144, 0, 255).astype(
        np.uint8
    )
    png = io.BytesIO()
    Image.fromarray(grey).save(png, "PNG")
    return schemas.Mask(png=base64.b64encode(png.getvalue()).decode(), width=64, height=64,
                        area=float((grey > 127).mean()), peak=float(grey.max() / 255))  # fmt: skip
