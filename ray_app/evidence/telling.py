"""What a record promises and what it does not, in sentences. Knows cards and rows; knows no page and no terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.detectors import DetectorCard
from ray_app.ensembles import EnsembleCard, Guarantee, logit
from ray_app.reports.wording import stated

PRIORS = (0.001, 0.01, 0.1, 0.5)  # shares of fakes at which a calibrated probability is told again


def guarantee_words(card: EnsembleCard, of_run: Mapping[str, Any] | None) -> list[str]:
    """What is known of the rate at which real images reach the threshold, and whether it holds in this run's archive."""
    if card.guarantee is not None:
        return [*_guaranteed(card.guarantee), *_carried_over(of_run)]
    cuts = card.thresholds
    if cuts.false_positive_rate is None:
        return ["There is no guarantee: nobody measured how many real images reach this threshold."]
    among = f" of {cuts.n_real:,} real images" if cuts.n_real else " of real images"
    where = f" ({cuts.measured_on})" if cuts.measured_on else ""
    return [f"There is no guarantee. When the threshold was chosen, {stated(cuts.false_positive_rate)}{among} reached it{where}."]


def limits_of(card: EnsembleCard, cards: Mapping[str, DetectorCard], row: Mapping[str, Any]) -> list[str]:
    """What must not be read into the record."""
    return [
        *_of_the_verdict(row),
        *_of_the_probability(card, row),
        *_of_the_detectors(cards),
        "A score is of these bytes alone. A copy that was compressed, resized or cropped again is another file and may score otherwise.",
        "What a file says of its own origin can be written or removed by anybody, and entered no score. A C2PA manifest can be checked; "
        "only a trust list says whose signature counts.",
        "The digest shows that a record was changed by accident or without care. It is no signature: who changes a record can compute "
        "another digest. To prove when and by whom it was made, sign the file or keep its digest where it cannot be changed.",
    ]


def at_other_priors(score: float | None, card: EnsembleCard, *, calibrated: bool) -> list[dict[str, float]]:
    """A calibrated probability at other shares of fakes than the calibration's; nothing where either is not known.

    Bayes' rule on log-odds: the score moves by logit(share) less logit(the calibration's).
    """
    if score is None or not calibrated or card.population is None:
        return []
    shares = sorted({*PRIORS, card.population.prevalence})
    moved = [(share, score + logit(share) - logit(card.population.prevalence)) for share in shares]
    return [{"prevalence": share, "probability": 1 / (1 + math.exp(-moved)) if moved > -700 else 0.0} for share, moved in moved]


def _guaranteed(known: Guarantee) -> Iterator[str]:
    yield (
        f"With {stated(known.confidence)} confidence, no more than {stated(known.target_fpr)} of real images like those of the "
        f"calibration reach this threshold: of {known.n_real:,} that nothing else was fitted on, {known.false_positives:,} did, and the "
        f"exact binomial upper bound (Clopper and Pearson) of that is {stated(known.upper_bound)}."
    )
    yield (
        "That is a rate over many real images. It is not the chance that this image is real, and among few fakes even a low rate makes "
        "many flags false."
    )


def _carried_over(of_run: Mapping[str, Any] | None) -> Iterator[str]:
    if of_run is None:
        yield "Whether the run's archive is like the images of the calibration was not examined."
    elif of_run.get("holds"):
        yield "The run's archive was compared with the images of the calibration, and no difference was noticed."
    elif of_run.get("holds") is None:
        yield f"Whether the run's archive is like the images of the calibration is not known: {of_run.get('why')}."
    else:
        yield f"In the run's archive the guarantee does not hold: {of_run.get('why')}."
        if of_run.get("waived"):
            yield "Its verdicts stand all the same, since whoever ran it waived the guarantee."
        elif of_run.get("unlike"):
            yield "That is beyond the limit, so every verdict of the run was withdrawn to “abstain”."


def _of_the_verdict(row: Mapping[str, Any]) -> Iterator[str]:
    if row["verdict"] == "fake":
        yield (
            "“fake” says that the score reached a threshold. It is no proof, and it says neither who made or altered the image, nor how, "
            "nor to what end."
        )
    elif row["verdict"] == "real":
        yield (
            "“real” says that no evidence was found. It does not say that an image is genuine: a generator may leave no trace that is "
            "known here, and no guarantee speaks of the fakes that are missed."
        )
    elif row["verdict"] == "abstain":
        yield "“abstain” says neither real nor fake, and the score must not be read as either."
    else:
        yield "There is no score and no verdict: the image could not be scored."


def _of_the_probability(card: EnsembleCard, row: Mapping[str, Any]) -> Iterator[str]:
    if row["probability"] is None:
        return
    if not row["calibrated"]:
        yield "The probability is not calibrated: it is the plain sigmoid of the score, and not how often such images are fake."
    elif card.population is not None:
        yield (
            f"The probability is a chance only where {stated(card.population.prevalence)} of the images are fake, as it was calibrated "
            "for. At another share it is another."
        )
    else:
        yield "The probability is calibrated, but the card does not say for which share of fakes."


def _of_the_detectors(cards: Mapping[str, DetectorCard]) -> Iterator[str]:
    shown = [name for name, card in cards.items() if card.demonstration]
    if shown:
        kind = "is a demonstration detector" if len(shown) == 1 else "are demonstration detectors"
        yield f"{_listed(shown)} {kind}: not for decisions about any image."
    unknown = [name for name, card in cards.items() if not card.training_data.complete]
    if unknown:
        yield (
            f"Of {_listed(unknown)} it is not wholly known which generators were seen in training. On one that it never saw, a detector "
            "may find nothing."
        )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
