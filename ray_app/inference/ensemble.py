"""The ensemble as a Python object (`load_ensemble`): bytes, paths or PIL images in, verdicts out; no cluster, no files written."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_app.detectors import DetectorCard, licences
from ray_app.ensembles import EnsembleCard, ensemble_of, load_ensemble_card
from ray_app.errors import InputError, Reason, Status
from ray_app.images import BatchLimits, ImageFileFacts, ImageLimits
from ray_app.images.limits import worst_bytes
from ray_app.inference import decision, decoder, scorer, second_pass, spec
from ray_app.inference.batch import Batch, DecodeResult, Pixels, StageClock
from ray_app.inference.decoder_pool import IsolatedDecoders, PreparedFile
from ray_app.inference.outputs import CAPTIONS, MASKS
from ray_app.storage import Fetcher, node_budget

_log = logging.getLogger(__name__)

Source = bytes | str | Path | Image.Image | PreparedFile | InputError


@dataclass(frozen=True)
class Result:
    """What the ensemble says of one image. `score` and `scores` are log-odds of fake; all are None where `status` is not `ok`.

    `probability` is the plain sigmoid of the score unless `calibrated`. `masks`: per detector that localizes, (H, W) uint8 at the
    network's own size, stretched over the whole image, 255 = surely altered. `verdict_reason`: why a verdict is `abstain`, and
    `verdict_detail` what varies in that (names, figures). `second_look`: of a cascade, why all its detectors looked
    (`band`, `audit`); None where the first of them sufficed. What a profile adds is called as in a run's rows (see `runs.schema`), and
    None where the ensemble has none, or nothing was said of this image.
    """

    status: Status
    detail: str | None
    verdict: str | None
    verdict_reason: Reason | None
    probability: float | None
    calibrated: bool
    score: float | None
    scores: Mapping[str, float | None]
    facts: ImageFileFacts | None
    masks: Mapping[str, Pixels | None]
    second_look: str | None = None
    verdict_detail: str | None = None
    predicted_generator: str | None = None
    generator_family: str | None = None
    generator_probability: float | None = None
    generator_confidence: float | None = None
    generator_ranking: tuple[str, ...] | None = None
    predicted_prompt: str | None = None
    prompt_likelihood: float | None = None


class Ensemble:
    """Detectors loaded on one device, ready to score. `accept_licences`: detectors, or licences, whose terms you accept. `children`: what
    has to be decoded is decoded in these processes, which others close; else in this one.

    As a callable it takes a Ray Data batch with a column `bytes` (or `image_column`) and adds verdict columns, so that
    `dataset.map_batches(Ensemble, fn_constructor_args=("default",), …)` needs nothing else.
    """

    def __init__(
        self,
        name_or_path: str | Path | EnsembleCard = "default",
        *,
        device: str = "cpu",
        precision: spec.RequestedPrecision = "auto",
        resize: spec.RequestedResize = "auto",
        limits: ImageLimits | None = None,
        image_column: str = "bytes",
        accept_licences: Sequence[str] = (),
        waive_guarantee: bool = False,
        children: IsolatedDecoders | None = None,
    ) -> None:
        card = name_or_path if isinstance(name_or_path, EnsembleCard) else load_ensemble_card(name_or_path)
        self.spec: spec.ScoringSpec = spec.make_spec(
            card, device=device, precision=precision, resize=resize, limits=limits or BatchLimits(), waive_guarantee=waive_guarantee
        )
        for detector in self.spec.cards.values():
            licences.require_accepted(detector, accept_licences)
        decision.require_embeddings(self.spec)
        self._image_column = image_column
        clock = StageClock()
        # Beside others of its kind large images take turns, as in a run; but none is too large for the machine of whoever asks.
        most = max(node_budget.budget_of(node_budget.node_memory()), worst_bytes(self.spec.limits))
        budget = node_budget.NodeBudget(decoder.BUDGET, most)
        careful = decoder.CarefulDecoder(self.spec.limits, None, decoder.WALL_LIMIT_S, budget, children=children)
        self._is_late = children is not None  # what keeps its size is decoded when it is read
        self._decoder = decoder.BatchDecoder(
            self.spec.early, clock, keeps_files=self.spec.looks_again, hand_over=self._is_late, careful=careful
        )
        describing = scorer.Describing(self.spec, clock) if self.spec.describer else None
        self._fetcher = Fetcher()
        self._loaded = scorer.LoadedDetectors(self.spec)
        detectors = scorer.EnsembleScorer(self.spec, clock, loaded=self._loaded)
        self._scorer = second_pass.CascadeScorer(self.spec, detectors, self._decoder, clock, describing=describing).simplest

    @property
    def cards(self) -> Mapping[str, DetectorCard]:
        """The detector cards, by name."""
        return self.spec.cards

    def score(self, images: Iterable[Source]) -> list[Result]:
        """Score images given as encoded bytes, paths (any fsspec URL) or PIL images; one result each, in order. Also of what was prepared
        for `spec.early` in a child process (`PreparedFile`), and of why there is nothing of it.

        An image that cannot be scored is a result whose `status` says why, never an exception.
        """
        return _results(self._scored(images))

    def twin(self) -> "Ensemble":
        """One for another thread: the same weights, in memory once, and its own of whatever else a network keeps while it runs."""
        held = {id(self._decoder.careful): self._decoder.careful}
        for network in self._networks():
            held |= {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
        other = copy.copy(self)
        other._scorer = copy.deepcopy(self._scorer, held)  # its second argument: what is taken as it is
        return other

    def _networks(self) -> Iterator[Any]:
        return (detector.network for detector in self._loaded.by_name.values())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add `status`, `verdict`, `probability`, `score` and `score_<detector>` columns to a Ray Data batch; with an identifier
        `predicted_generator` and `generator_probability`, with a describer `predicted_prompt` and `prompt_likelihood`.
        """
        scored = self._scored(batch[self._image_column])
        results = _results(scored)
        columns: dict[str, Any] = {
            "status": [result.status.value for result in results],
            "verdict": [result.verdict for result in results],
            "probability": [result.probability for result in results],
            "score": [result.score for result in results],
        }
        profiled: tuple[str, ...] = ("predicted_generator", "generator_probability") if self.spec.identifier else ()
        profiled += ("predicted_prompt", "prompt_likelihood") if self.spec.describer else ()
        columns |= {name: [getattr(result, name) for result in results] for name in profiled}
        columns |= {f"score_{name}": column for name, column in scored.scores.items()}
        texts = ("status", "verdict", "predicted_generator", "predicted_prompt")
        return {**batch, **{name: np.array(column, object if name in texts else np.float64) for name, column in columns.items()}}

    def _scored(self, images: Iterable[Source]) -> decision.BlockResult:
        outcomes: list[DecodeResult] = []
        outputs = self._scorer.score(self._batches(iter(images), outcomes))
        return decision.judge(self.spec, outcomes, outputs)

    def _batches(self, images: Iterator[Source], outcomes: list[DecodeResult]) -> Iterator[Batch]:
        """One batch after another, so that no more than one is in memory; its outcomes are noted."""
        while chunk := list(islice(images, self.spec.slots)):
            batch = self._decoder.decode(zip(repeat(0), map(self._read, chunk), strict=False))
            for place, outcome in enumerate(batch.outcomes, start=len(outcomes)):
                if outcome.failure is not None:
                    _log.error("image %d of this call: this is a bug in Touchstone; please report it\n%s", place, outcome.failure)
            outcomes += batch.outcomes
            yield self._decoder.complete(batch) if self._is_late else batch

    def _read(self, image: Source) -> bytes | Image.Image | PreparedFile | InputError:
        if not isinstance(image, str | Path):
            return image
        place = str(image)
        fetcher = Fetcher(signed=[place]) if "://" in place else self._fetcher
        try:
            return fetcher.fetch(place, "", self.spec.limits.max_bytes)
        except InputError as refused:
            return refused


def load_ensemble(name_or_path: str | Path = "default", **options: Any) -> Ensemble:
    """A shipped ensemble by name, or any by the path of its card. Options as for `Ensemble`.

    Raises ConfigError for an unknown name and DetectorError where weights are missing or a licence is not accepted.
    """
    return Ensemble(name_or_path, **options)


def load_detector(name_or_path: str | Path, **options: Any) -> Ensemble:
    """One detector as an ensemble of its own: the same `.score`, with verdicts split at log-odds 0."""
    return Ensemble(ensemble_of([str(name_or_path)]), **options)


def _results(scored: decision.BlockResult) -> list[Result]:
    decisions, masks = scored.decisions, scored.outputs.of(MASKS)
    has_profile = scored.identified is not None or bool(scored.outputs.of(CAPTIONS))
    results = []
    for row, outcome in enumerate(scored.outcomes):
        scores: dict[str, float | None] = dict.fromkeys(scored.scores)
        if outcome.status is not Status.OK:
            empty = Result(outcome.status, outcome.detail, None, None, None, decisions.calibrated, None, scores, outcome.facts, {})
            results.append(empty)
            continue
        for name, column in scored.scores.items():
            scores[name] = decision.finite(column[row])
        results.append(Result(
            outcome.status, None, decisions.verdict[row], decisions.reason[row], decision.finite(decisions.probability[row]),
            decisions.calibrated, decision.finite(decisions.score[row]), scores, outcome.facts,
            {name: drawn[row] for name, drawn in masks.items()} if masks else {},
            decisions.second_look[row] if decisions.second_look else None, decisions.detail[row],
            **_profile(scored, row) if has_profile else {},
        ))  # fmt: skip
    return results


def _profile(scored: decision.BlockResult, row: int) -> dict[str, Any]:
    """What a profile says of one image, by the names of a result's fields."""
    identified, captions = scored.identified, scored.outputs.captions
    words = captions[row] if captions else None
    found: dict[str, Any] = {} if words is None else {"predicted_prompt": words.text, "prompt_likelihood": words.likelihood}
    if identified is None or not np.isfinite(identified.confidence[row]):
        return found
    code = identified.codes[row]
    return found | {
        "predicted_generator": identified.classes[code] if code >= 0 else None,
        "generator_family": identified.families[code] if code >= 0 else None,
        "generator_probability": float(identified.probability[row]),
        "generator_confidence": float(identified.confidence[row]),
        "generator_ranking": tuple(identified.classes[place] for place in identified.ranking[row]),
    }


__all__: Sequence[str] = ["Ensemble", "Result", "load_ensemble", "load_detector"]
