"""Score the images of an endpoint's requests (`Engine`), without HTTP and Ray.

An endpoint is the scoring server of `touchstone serve`.

Images are decoded in child processes and scored in this process. The code for decoding, scoring,
and deciding is that of a batch run, so with equal settings an image gets the same score.
"""

import gc
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from PIL import Image

from ray_app.detectors import Preprocessing
from ray_app.ensembles import Finding
from ray_app.errors import DetectorError, InputError, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import BlockResult, DecodeResult, DetectorOutputs, StageClock, judge
from ray_app.inference.batch import Batch, Pixels
from ray_app.inference.decision import (
    EMBEDDINGS,
    MASKS,
    REPLIES,
    SCORES,
    require_embeddings,
    second_stage_rows,
)
from ray_app.inference.decoder import WALL_LIMIT_S, CrashSafeDecoder
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import IsolatedDecoders, PreparedImage
from ray_app.serving import answers
from ray_app.serving.config import ServeConfig
from ray_app.serving.ensembles import EnsemblePlan, ServedEnsemble, load_ensembles
from ray_app.serving.http import schemas
from ray_app.serving.refusal import Refusal

MAX_SILENT_IMAGES = 20
# The reason for a failure of a detector is not sent to clients.
_SENT = (SCORES, MASKS, REPLIES, EMBEDDINGS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """One image to score, and the options that the client set for this image.

    Attributes:
        fpr: Decide with the thresholds that the ensemble has for this false-positive rate. None for
            its main thresholds.
        detectors: Names of optional detectors that also score the image. They have no part in the
            verdict.
        is_alone: Whether the HTTP request has no other image. If the image is refused, the whole
            request is then answered with an error status.
        arrived_s: The time at which the image arrived, from `time.monotonic`.
    """

    data: bytes
    name: str | None = None
    ensemble: str | None = None
    fpr: float | None = None
    detectors: tuple[str, ...] = ()
    masks: bool = False
    request_id: str = ""
    is_alone: bool = True
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class EncodedAnswer:
    """The answer for one image, as JSON for the HTTP process.

    An image is refused if it cannot be scored, for example because its file is corrupt.

    Attributes:
        body: The JSON of an `ImageAnswer`. If a refused image is alone in its request, or after an
            internal error, the JSON of an `Error`.
        refused: The reason for the refusal as a code, such as `corrupt_image`. None for a scored
            image.
        timings: Seconds for decoding, waiting, and scoring. None for a refused image.
    """

    status: int
    body: bytes
    ensemble: str
    verdict: str | None = None
    refused: str | None = None
    timings: schemas.Timings | None = None


@dataclass
class PendingImage:
    """An image of a request, which is decoded and waits to be scored.

    Attributes:
        pixels: The pixels of the image by preprocessing. None for a preprocessing that does not
            resize. The image is then decoded when a detector reads it.
    """

    request: ScoreRequest
    ensemble: ServedEnsemble
    prepared: PreparedImage | None = None
    pixels: dict[Preprocessing, Pixels | None] = field(default_factory=dict)
    refused: InputError | Refusal | None = None
    decode_s: float = 0.0

    @property
    def facts(self) -> ImageFileFacts:
        """The properties of the image file, which must have been decoded."""
        assert self.prepared is not None
        return self.prepared.facts


class Engine:
    """Score encoded images with the ensembles of an endpoint, in one process.

    Call `decode` for each image, and then `answer` for a batch of decoded images. Several threads
    may call `decode` at the same time, but only one may call `answer`. Call `close` at the end.
    `plan` has the settings of the ensembles, whose cards are otherwise read. Raises ConfigError if
    the ensembles cannot be served together, and DetectorError if a licence is not accepted, weights
    are missing, or a detector gives no score for the built-in test image.
    """

    def __init__(self, config: ServeConfig, plan: EnsemblePlan | None = None) -> None:
        self._decoders = IsolatedDecoders(
            config.images,
            processes=config.decoders,
            wall_limit_s=config.limits.decode_limit_s,
            formats=config.limits.formats,
        )
        self._provenance = config.provenance.policy()
        self.silent_images = 0
        try:
            self._load(config, plan)
        except BaseException:
            self.close()
            raise
        gc.collect()
        # Freeze the networks, so that the garbage collector does not scan them again.
        gc.freeze()

    def _load(self, config: ServeConfig, plan: EnsemblePlan | None) -> None:
        served = load_ensembles(config, plan)
        spec = served.plan.spec
        with ThreadPoolExecutor(1) as starting:
            started = starting.submit(self._decoders.start, spec.preprocessings)
            # These imports load torch while the decoders start.
            from ray_app.inference.scorer import ImageDescriber
            from ray_app.inference.worker import open_scorer

            clock = StageClock()
            # A child process decodes a file that keeps its size when a detector reads the file.
            careful = CrashSafeDecoder(
                spec.limits, None, WALL_LIMIT_S, None, children=self._decoders
            )
            self.served, self._spec = served, spec
            self._decoder, self._scorer = open_scorer(
                spec, spec.device, clock, careful=careful, hand_over=True
            )
            self._describing = {
                name: ImageDescriber(ensemble, clock)
                for name, ensemble in served.plan.ensembles.items()
                if ensemble.describer is not None
            }
            for ensemble in served.plan.ensembles.values():
                require_embeddings(ensemble)
            started.result()
        self._require_golden_scores()

    @property
    def slots(self) -> int:
        """The maximum number of images in a batch."""
        return self._spec.slots

    def close(self) -> None:
        """End the decoder processes."""
        self._decoders.close()

    def decode(self, request: ScoreRequest) -> PendingImage:
        """Decode the image of a request, and prepare it for the detectors that score every image.

        These detectors are the first stage of the ensemble, and the optional detectors that the
        request names. The second stage of a cascade, which scores only undecided images, is not
        included. If decoding fails, the reason is in `refused`, and no exception is raised. Raises
        KeyError if the ensemble, a detector, or the false-positive rate is not served.
        """
        image = PendingImage(request, self.served.find(request.ensemble, request.fpr))
        spec = image.ensemble.spec
        preprocessings = (
            *spec.stages[0].preprocessings,
            *(self._spec.inputs[name] for name in request.detectors),
        )
        self._decode(image, preprocessings, with_provenance=True)
        return image

    def answer(self, images: Sequence[PendingImage]) -> list[EncodedAnswer]:
        """Score decoded images, and return their answers.

        Images whose requests have equal options are scored as one batch. These options are the
        ensemble, the false-positive rate, and the optional detectors. There are up to `slots`
        images, and the answers have their order.
        """
        answer_by_row: dict[int, EncodedAnswer] = {}
        for rows in _group_alike(images):
            answered = self._answer_group([images[row] for row in rows])
            answer_by_row |= dict(zip(rows, answered, strict=True))
        return [
            answer_by_row[row] if row in answer_by_row else _refuse(image)
            for row, image in enumerate(images)
        ]

    def _decode(
        self,
        image: PendingImage,
        preprocessings: Sequence[Preprocessing],
        *,
        with_provenance: bool = False,
    ) -> None:
        """Add the pixels of some preprocessings to an image, or the error that refuses it."""
        decode_request = DecodeRequest(
            preprocessings=tuple(dict.fromkeys(preprocessings)),
            provenance=self._provenance if with_provenance else None,
            measured=bool(self._spec.measured),
        )
        started = time.monotonic()
        try:
            prepared = self._decoders.prepare(image.request.data, decode_request)
        except InputError as error:
            image.refused = error
            return
        except Exception:
            _log.exception("request %s failed", image.request.request_id)
            image.refused = Refusal("internal_error")
            return
        finally:
            image.decode_s += time.monotonic() - started
        image.prepared = image.prepared or replace(prepared, data=image.request.data)
        assert decode_request.preprocessings is not None
        image.pixels |= dict(zip(decode_request.preprocessings, prepared.pixels, strict=True))

    def _answer_group(self, images: Sequence[PendingImage]) -> list[EncodedAnswer]:
        """Return answers for images of the same ensemble and optional detectors.

        A bug in Touchstone affects only the image that triggers it.
        """
        try:
            return self._score_group(images)
        except Exception:
            if len(images) > 1:
                return [answer for image in images for answer in self._answer_group([image])]
            _log.exception("request %s failed", images[0].request.request_id)
            images[0].refused = Refusal("internal_error")
            return [_refuse(images[0])]

    def _score_group(self, images: Sequence[PendingImage]) -> list[EncodedAnswer]:
        started = time.monotonic()
        ensemble = images[0].ensemble
        outcomes = [_make_outcome(image) for image in images]
        outputs = self._score_stages(images, outcomes)
        block = judge(ensemble.spec, outcomes, self._select_members(images, outcomes, outputs))
        findings = block.findings
        score_s = time.monotonic() - started
        for image, outcome in zip(images, block.outcomes, strict=True):
            if image.refused is None and outcome.status is not Status.OK:
                image.refused = InputError(outcome.status, outcome.detail or "")
        return [
            self._encode(image, block, findings[row], outputs, row, score_s)
            if image.refused is None
            else _refuse(image)
            for row, image in enumerate(images)
        ]

    def _score_stages(
        self, images: Sequence[PendingImage], outcomes: Sequence[DecodeResult]
    ) -> DetectorOutputs:
        """Return the outputs of all detectors that score the images.

        The first stage and the optional detectors score all images, the second stage of a cascade
        only undecided images.
        """
        names = {*images[0].ensemble.spec.first, *images[0].request.detectors}
        outputs = self._score(images, [name for name in self._spec.cards if name in names])
        return outputs.merge(self._score_late(images, outcomes, outputs, names))

    def _select_members(
        self,
        images: Sequence[PendingImage],
        outcomes: Sequence[DecodeResult],
        outputs: DetectorOutputs,
    ) -> DetectorOutputs:
        """Return the outputs of the ensemble's detectors, and captions if it has a describer."""
        spec = images[0].ensemble.spec
        # Without an undecided image, the second stage of a cascade has no column.
        no_scores = np.full(len(images), np.nan, np.float32)
        members = DetectorOutputs.clean(scores=dict.fromkeys(spec.cards, no_scores)).merge(
            outputs.among(spec.cards)
        )
        describing = self._describing.get(images[0].ensemble.name)
        if describing is None:
            return members
        describer_images = [
            image.pixels.get(spec.describer_preprocessing) if spec.describer_preprocessing else None
            for image in images
        ]
        return describing.add_captions(outcomes, members, describer_images)

    def _encode(
        self,
        image: PendingImage,
        block: BlockResult,
        finding: Finding,
        outputs: DetectorOutputs,
        row: int,
        score_s: float,
    ) -> EncodedAnswer:
        assert image.prepared is not None
        timings = _make_timings(image, score_s)
        answer = answers.make_scored_answer(
            self.served.plan,
            image.ensemble,
            block,
            finding,
            outputs,
            row,
            name=image.request.name,
            size_bytes=len(image.request.data),
            provenance=image.prepared.provenance,
            masks=image.request.masks,
            timings=timings,
            request_id=image.request.request_id,
        )
        return EncodedAnswer(
            200,
            answer.model_dump_json().encode(),
            image.ensemble.name,
            verdict=answer.verdict,
            timings=timings,
        )

    def _score_late(
        self,
        images: Sequence[PendingImage],
        outcomes: Sequence[DecodeResult],
        outputs: DetectorOutputs,
        scored: set[str],
    ) -> DetectorOutputs:
        """Return the outputs of the second stage of a cascade for undecided images."""
        spec = images[0].ensemble.spec
        names = [name for name in spec.late if name not in scored]
        rows = second_stage_rows(spec, outcomes, outputs)
        if not rows or not names:
            return DetectorOutputs()
        for row in rows:
            self._decode(images[row], [spec.inputs[name] for name in names])
        rows = [row for row in rows if images[row].refused is None]
        if not rows:
            return DetectorOutputs()
        return self._score([images[row] for row in rows], names).spread(rows, len(images))

    def _score(self, images: Sequence[PendingImage], names: Sequence[str]) -> DetectorOutputs:
        """Return the outputs of some detectors.

        If a detector raises an exception for an image, that image has no scores. The other images
        keep theirs.
        """
        try:
            outputs = self._scorer.score([self._make_batch(images)], only=names)
        except Exception:
            if len(images) > 1:
                parts = [self._score([image], names) for image in images]
                return DetectorOutputs.concatenate(parts)
            _log.exception(
                "a detector of %s failed on the image with sha256 %s",
                ", ".join(names),
                images[0].facts.sha256,
            )
            no_scores = np.array([np.nan], np.float32)
            return DetectorOutputs.clean(scores=dict.fromkeys(names, no_scores))
        self._count_silent(outputs, len(images))
        return DetectorOutputs.clean(**{kind: outputs.get(kind) for kind in _SENT})

    def _make_batch(self, images: Sequence[PendingImage]) -> Batch:
        prepared = [
            replace(image.prepared, pixels=tuple(map(image.pixels.get, self._spec.preprocessings)))
            for image in images
            if image.prepared is not None
        ]
        return self._decoder.complete(self._decoder.decode((0, image) for image in prepared))

    def _count_silent(self, outputs: DetectorOutputs, count: int) -> None:
        """Count the images in a row without a score of any detector."""
        has_score = np.any(np.isfinite(list(outputs.scores.values())), axis=0)
        self.silent_images = 0 if has_score.any() else self.silent_images + count

    def _require_golden_scores(self) -> None:
        """Raise DetectorError unless weights, precision, and device work together."""
        spec = self._spec
        image = PendingImage(ScoreRequest(golden_image()), self.served.find(None, None))
        self._decode(image, spec.preprocessings)
        if image.refused is not None:
            raise DetectorError(f"the built-in test image cannot be decoded: {image.refused}")
        outputs = self._scorer.score([self._make_batch([image])])
        silent = [
            name
            for name in spec.cards
            if not np.isfinite(outputs.scores[name][0]) and name not in outputs.get(REPLIES)
        ]
        if silent:
            raise DetectorError(
                f"no finite score for a golden image (a built-in test image) from: {', '.join(silent)}",
                hint=f"run touchstone detectors verify {silent[0]} on device {spec.device}",
            )
        for name in self.served.points:
            decoded = self.decode(ScoreRequest(golden_image(), ensemble=name))
            (answer,) = self.answer([decoded])
            if answer.refused is not None:
                raise DetectorError(
                    f"{name}: the built-in test image was refused: {answer.refused}"
                )


def _group_alike(images: Sequence[PendingImage]) -> Iterator[list[int]]:
    """Yield the rows of images that the same detectors score for the same ensemble."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, image in enumerate(images):
        if image.refused is None:
            key = (image.ensemble.name, image.ensemble.fpr, frozenset(image.request.detectors))
            groups.setdefault(key, []).append(row)
    yield from groups.values()


def _make_outcome(image: PendingImage) -> DecodeResult:
    assert image.prepared is not None
    provenance = image.prepared.provenance
    return DecodeResult(
        Status.OK,
        None,
        image.facts,
        provenance=None if provenance is None else provenance.row(),
    )


def _make_timings(image: PendingImage, score_s: float) -> schemas.Timings:
    total = time.monotonic() - image.request.arrived_s
    waited = max(total - image.decode_s - score_s, 0.0)
    return schemas.Timings(decode=image.decode_s, wait=waited, score=score_s, total=total)


def _refuse(image: PendingImage) -> EncodedAnswer:
    request, error = image.request, image.refused
    assert error is not None
    refusal = Refusal.from_error(error) if isinstance(error, InputError) else error
    if isinstance(error, InputError) and not request.is_alone:
        body = answers.make_refused_answer(
            error, request.name, request.data, image.ensemble, request.request_id
        ).model_dump_json()
        return EncodedAnswer(200, body.encode(), image.ensemble.name, refused=refusal.code)
    body = json.dumps(refusal.body(request.request_id))
    return EncodedAnswer(refusal.status, body.encode(), image.ensemble.name, refused=refusal.code)


@cache
def golden_image() -> bytes:
    """Return the test image with which an endpoint checks its detectors, as a PNG file.

    A formula generates its 640 × 480 pixels of smooth colour and texture.
    """
    y, x = np.mgrid[0:480, 0:640]
    planes = [
        127 + 90 * np.sin(x / 37 + phase) * np.cos(y / 53) + 30 * np.sin(x * y / 997 + phase)
        for phase in (0.0, 1.0, 2.0)
    ]
    file = io.BytesIO()
    Image.fromarray(np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
