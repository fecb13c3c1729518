"""What a calibration is worth, measured on images that nothing was fitted on: as chances, generator by generator, by JPEG quality.

Chances are compared at the share of fakes among the very images that they are measured on, whatever prevalence the card is for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ray_app.detectors.card import Calibration
from ray_app.ensembles import EnsembleCard, EnsembleMember, calibrate, combine, logit
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.data import CalibrationData
from ray_app.evaluation.calibrate.division import CHOOSE, PARTS, Division, generators_of
from ray_app.evaluation.calibrate.files import CalibrateConfig
from ray_app.evaluation.calibrate.fit_card import Assembled, CalibratedCard, fit_card, with_thresholds
from ray_app.evaluation.calibrate.thresholds import choose, share_at
from ray_app.metrics.arrays import Bools, Floats, MetricEstimate, ScoreHistogram, undefined
from ray_app.metrics.calibration import debiased_ece, log_loss
from ray_app.metrics.detection import auc_figure
from ray_app.metrics.intervals import proportion
from ray_app.metrics.operating_points import NO_FAKES, NO_REALS, ONE_CLASS
from ray_app.reports.calibration_model import CalibratedCascade, CalibratedSystem, Chances, LeftOutGenerator, LookShares, QualityBand
from ray_app.reports.evaluation.system_model import facts_of

MOST_GENERATORS = 40
QUALITIES = (50, 70, 80, 90, 95)
"""Where bands of JPEG quality begin."""


def systems_before_and_after(
    fitted: CalibratedCard, choosing: CalibrationData, before: EnsembleCard, calibrations: Mapping[str, Calibration | None]
) -> list[CalibratedSystem]:
    """Log-loss and ECE of the ensemble and of every detector: as the run had them, and calibrated; on the same held-out images."""
    fake, own = choosing.fake, float(choosing.fake.mean())
    raw = {name: choosing.scores[name] for name in fitted.names}
    scores = fitted.scores(choosing) + _between(own, fitted.prevalence)
    found = [_system("ensemble", str(fitted.card.calibration), combine(before, raw, calibrations), scores, fake)]
    for name, calibration in fitted.calibrations.items():
        column = raw[name].astype(np.float64)
        earlier, after = calibrate(column, calibrations.get(name)), calibrate(column, calibration)
        found.append(_system(name, str(calibration), earlier, after + _between(own, fitted.detectors_prevalence), fake))
    return found


def generators_left_out(
    division: Division, members: Sequence[EnsembleMember], config: CalibrateConfig, full: Assembled
) -> list[LeftOutGenerator]:
    """Of each generator, the largest first, the rates and chances on its images by a card that never saw one of them.

    Where its images are all among those that thresholds are chosen on, that is the card itself; else all is fitted again without them.
    Where they were the only fakes of a part, the other images are divided anew.
    """
    labelled, parts = division.labelled, division.parts
    names = np.array([name or "" for name in generators_of(labelled)])
    found = []
    for name, n in Counter(names[names != ""].tolist()).most_common(MOST_GENERATORS):
        its: Bools = names == name
        inside = sorted({PARTS[part] for part in parts[its].tolist()})
        again = inside != [PARTS[CHOOSE]]
        try:
            one = full if not again else _without(division, its, members, config)
            figures = _of_generator(one, labelled.take(its))
        except ConfigError as error:
            figures = dict.fromkeys(("found", "auc", "log_loss", "ece"), undefined(f"without it: {error.message}", n))
        found.append(LeftOutGenerator(generator=name, n=n, parts=inside, fitted_again=again, **facts_of(figures)))
    return found


def by_quality(assembled: Assembled, choosing: CalibrationData) -> list[QualityBand]:
    """Rates at the threshold and chances, by the quality of JPEG files; files of other formats are one band."""
    scores, fake = assembled.fitted.scores(choosing), choosing.fake
    chances = scores + _between(float(fake.mean()), assembled.fitted.prevalence)
    bands = np.where(np.isnan(choosing.quality), -1, np.searchsorted(QUALITIES, choosing.quality, "right"))
    found = []
    for band in np.unique(bands).tolist():
        among = bands == band
        flagged = scores >= assembled.card.thresholds.fake_above
        rates = {}
        for key, kind, why in (("false_positives", False, NO_REALS), ("found", True, NO_FAKES)):
            of_class = among & (fake == kind)
            rates[key] = proportion(int(flagged[of_class].sum()), int(of_class.sum()), why)
        figures = rates | _chances(chances[among], fake[among])
        n_real, n_fake = int((among & ~fake).sum()), int((among & fake).sum())
        found.append(QualityBand(quality=_band_name(band), n_real=n_real, n_fake=n_fake, **facts_of(figures)))
    return found


def of_cascade(assembled: Assembled, division: Division, config: CalibrateConfig) -> CalibratedCascade | None:
    """How many images go on, and what is found so and by all detectors on all images; None of other rules."""
    fitted, cascade, band = assembled.fitted, assembled.card.cascade, assembled.fitted.band
    looks = fitted.looks(division.choosing)
    if cascade is None or band is None or looks is None:
        return None
    fake, reasons = division.choosing.fake, np.array([look or "" for look in looks])
    shares = {reason: share_at(reasons == reason, fake, fitted.prevalence) for reason in ("band", "audit")}
    return CalibratedCascade(
        first=cascade.first,
        band=(band.low, band.high),
        share_allowed=config.share,
        share_bound=config.audit + (1 - config.audit) * band.upper_bound,
        prevalence=fitted.prevalence,
        measured=LookShares(**shares, share=sum(shares.values())),
        found=assembled.card.thresholds.true_positive_rate,
        found_by_all_on_all=_found_by_all(fitted, division, config),
    )


def _found_by_all(fitted: CalibratedCard, division: Division, config: CalibrateConfig) -> float | None:
    """The share of fakes found at as good a promise if all detectors looked at every image."""
    cascade, choosing = fitted.card.cascade, division.choosing
    if cascade is None or not choosing.fake.any():
        return None
    widest = float(np.finfo(np.float64).max)
    card = fitted.card.model_copy(update={"cascade": cascade.model_copy(update={"band": (-widest, widest)})})
    scores = replace(fitted, card=card).scores(choosing)
    threshold = choose(scores[division.choosing_reals], config.fpr, config.confidence).fake_above
    return float((scores[choosing.fake] >= threshold).mean())


def _without(division: Division, its: Bools, members: Sequence[EnsembleMember], config: CalibrateConfig) -> Assembled:
    rest = division.without(its, config.seed)
    return with_thresholds(fit_card(rest, members, config), rest, config)


def _of_generator(assembled: Assembled, its: CalibrationData) -> dict[str, MetricEstimate]:
    """Figures of one generator's images against the reals that thresholds were chosen on."""
    scores, reals = assembled.fitted.scores(its), assembled.reals
    found = int((scores >= assembled.card.thresholds.fake_above).sum())
    both, fake = np.concatenate([scores, reals]), np.arange(len(scores) + len(reals)) < len(scores)
    return {
        "found": proportion(found, len(scores), NO_FAKES),
        "auc": auc_figure(ScoreHistogram.of(scores), ScoreHistogram.of(reals)),
        **_chances(both + _between(float(fake.mean()), assembled.fitted.prevalence), fake),
    }


def _system(name: str, calibration: str, before: Floats, after: Floats, fake: Bools) -> CalibratedSystem:
    was, now = (Chances(**facts_of(_chances(scores, fake))) for scores in (before, after))
    return CalibratedSystem(name=name, calibration=calibration, before=was, after=now)


def _chances(scores: Floats, fake: Bools) -> dict[str, MetricEstimate]:
    known = np.isfinite(scores)
    fakes, reals = ScoreHistogram.of(scores[known & fake]), ScoreHistogram.of(scores[known & ~fake])
    loss = log_loss(fakes, reals) if fakes.n and reals.n else undefined(ONE_CLASS, fakes.n + reals.n)
    return {"log_loss": loss, "ece": debiased_ece(fakes, reals)}


def _between(here: float, there: float) -> float:
    """What the log-odds of one share of fakes have over those of another; of a single class nothing is known."""
    return logit(here) - logit(there) if 0 < here < 1 else 0.0


def _band_name(band: int) -> str:
    if band < 0:
        return "not a JPEG"
    ends = (0, *QUALITIES, 101)
    return f"{max(1, ends[band])}–{ends[band + 1] - 1}"
