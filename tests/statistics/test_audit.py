"""Audits of archives whose every image is known: how often an interval has the truth outside.

Strata are the product's (`plan_strata`), of scores as calibrated detectors give them; which images
are drawn follows from them at random.
"""

from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
import pytest
from scipy.stats import norm

from ray_app.evaluation.audit.estimate import AuditLabels, build_document
from ray_app.evaluation.audit.sample import Audit, RunVerdicts, plan_strata, stratum_codes
from ray_app.metrics.survey_sampling import LabelledStratum, archive_figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS, ARCHIVES = 1000, 20
PROMISED, BOUND = 0.07, 0.05  # an interval of 95 %, at least 93 %; a bound of 95 %


@dataclass(frozen=True)
class Setting:
    """An archive of `images` of which a share is fake, and a detector: reals score so that a share
    `fpr` is flagged, fakes higher by what makes this AUC, but for a share `hidden` of them, of
    another generator, which score as reals do. `ties`: scores are multiples of it.
    """

    prevalence: float
    labels: int
    auc: float
    images: int = 20_000
    fpr: float = 0.01
    hidden: float = 0.0
    ties: float = 0.0
    only_flagged: bool = False

    @property
    def words(self):
        share = f"{100 * self.prevalence:.4g} % of {self.images:,} fake"
        said = [f"{share}, {self.labels} labels, AUC {self.auc}"]
        said += [f"{100 * self.hidden:.0f} % of the fakes score as reals do"] if self.hidden else []
        said += [f"scores are multiples of {self.ties}"] if self.ties else []
        return "; ".join(said)


def archive_of(setting, rng):
    """Whether each image is fake, its score (log-odds at equal shares), and its verdict's place in
    VERDICTS.
    """
    fake = np.arange(setting.images) < round(setting.prevalence * setting.images)
    apart = np.sqrt(2) * norm.ppf(setting.auc)
    found = fake & (np.arange(setting.images) >= setting.hidden * fake.sum())
    looks = rng.normal(size=setting.images) + apart * found
    score = looks * max(apart, 0.1) - apart**2 / 2
    limits = np.array([norm.isf(setting.fpr) if setting.fpr else np.inf, apart - 1.645])
    above, below = limits * max(apart, 0.1) - apart**2 / 2
    if setting.ties:
        score = np.round(score / setting.ties) * setting.ties
    return fake, score, np.where(score >= above, 0, np.where(score <= min(below, above), 2, 1))


def strata_of_archive(setting, rng):
    """The product's strata of an archive, and how many fakes each has."""
    fake, score, verdict = archive_of(setting, rng)
    verdicts = RunVerdicts(np.arange(len(score)), verdict, score, {})
    strata = plan_strata(verdicts, setting.labels, only_flagged=setting.only_flagged)
    codes = stratum_codes(verdicts, strata)
    return strata, np.bincount(codes[fake], minlength=len(strata))


def labels_drawn(strata, fakes, rng):
    """The labelled strata of each audit of one archive with these fakes (strata,)."""
    sizes, drawn = (np.array([getattr(one, name) for one in strata]) for name in ("size", "drawn"))
    audits = SEEDS // ARCHIVES, len(strata)
    for labelled in rng.hypergeometric(fakes, sizes - fakes, drawn, size=audits).tolist():
        yield tuple(
            LabelledStratum(one.size, one.verdict == "fake", hits, one.drawn - hits)
            for one, hits in zip(strata, labelled, strict=True)
        )


@cache
def audits_of(setting):
    """Figures and truths of SEEDS audits, of ARCHIVES archives in turn."""
    rng, found = np.random.default_rng(22), []
    for _ in range(ARCHIVES):
        strata, fakes = strata_of_archive(setting, rng)
        sizes = np.array([one.size for one in strata])
        flagged = np.array([one.verdict == "fake" for one in strata])
        truth = truth_of(fakes, sizes, flagged)
        found += [(archive_figures(labels), truth) for labels in labels_drawn(strata, fakes, rng)]
    return found


def truth_of(fakes, sizes, flagged):
    """Return the figures of an archive with these numbers of fakes in its strata."""
    reals = sizes - fakes
    return {
        "prevalence": fakes.sum() / sizes.sum(),
        "precision": fakes[flagged].sum() / max(sizes[flagged].sum(), 1),
        "recall": fakes[flagged].sum() / fakes.sum(),
        "false_positive_rate": reals[flagged].sum() / reals.sum(),
    }


def misses(setting, name):
    """Whether the interval of each audit that states the figure has its truth outside, and the
    share of audits that state it.
    """
    stated = [
        (figures[name].interval, truth[name])
        for figures, truth in audits_of(setting)
        if figures[name].interval
    ]
    wrong = np.array([not low - 1e-12 <= value <= high + 1e-12 for (low, high), value in stated])
    return wrong, len(stated) / SEEDS


RARE = Setting(0.001, 300, 0.9, images=1_000_000)
INTERVALS = [
    (RARE, "prevalence"),
    (RARE, "false_positive_rate"),
    (Setting(0.001, 50, 0.99, images=1_000_000), "prevalence"),
    (Setting(0.003, 1000, 0.9, ties=1.0), "prevalence"),
    (Setting(0.003, 300, 0.99, hidden=0.5), "prevalence"),
    (Setting(0.003, 300, 0.99, hidden=0.5), "recall"),
    (Setting(0.03, 300, 0.99, hidden=0.9), "prevalence"),
    (Setting(0.01, 50, 0.9), "prevalence"),
    (Setting(0.01, 300, 0.99), "prevalence"),
    (Setting(0.01, 300, 0.99), "precision"),
    (Setting(0.1, 300, 0.7), "prevalence"),
]


@pytest.mark.parametrize(("setting", "name"), INTERVALS)
def test_intervals_contain_the_truth(simulated, setting, name):
    wrong, stated = misses(setting, name)
    assert stated > 0.95
    claim = f"4. audit: interval of {name.replace('_', ' ')} misses the truth"
    simulated(claim, setting.words, PROMISED, wrong)


ALSO = [
    Setting(0.001, 100, 0.5, fpr=0),
    Setting(0.1, 100, 0.7, images=2000),
    Setting(0.5, 300, 0.9),
    Setting(0.01, 300, 0.9, fpr=0.0005),
]


@pytest.mark.parametrize("setting", [*dict(INTERVALS), *ALSO], ids=lambda setting: setting.words)
def test_every_figure_is_covered_in_every_setting(setting):
    for name in ("prevalence", "precision", "recall", "false_positive_rate"):
        assert misses(setting, name)[0].sum() <= PROMISED * SEEDS, name


def documents_of(setting, target=None):
    """Answers of SEEDS audits, and of each archive how many reals are flagged, and their share of
    the reals; `target`: of that share, what the card promises.
    """
    rng = np.random.default_rng(23)
    for _ in range(ARCHIVES):
        strata, fakes = strata_of_archive(setting, rng)
        reals = np.array([one.size for one in strata]) - fakes
        flagged = reals[[one.verdict == "fake" for one in strata]].sum()
        rate = flagged / reals.sum()
        facts = dict.fromkeys(("run", "fingerprint", "listing", "ensemble", "made_at", "unscored"))
        facts |= {"seed": 0, "target_fpr": None if target is None else target * rate}
        audit = Audit(facts, tuple(strata), ())
        for labels in labels_drawn(strata, fakes, rng):
            yield build_document(audit, AuditLabels(labels, 0, 0)), flagged, rate


def test_labels_of_flagged_images_bound_the_reals(simulated):
    setting = Setting(0.1, 30, 0.99, only_flagged=True)
    found = [(document["flagged_reals"], reals) for document, reals, _ in documents_of(setting)]
    wrong = [bound["most"] < reals for bound, reals in found]
    claim = "3. `audit --flagged`: more reals are flagged than the bound"
    simulated(claim, setting.words, BOUND, wrong)
    assert np.median([bound["most"] / bound["flagged"] for bound, _ in found]) < 0.3


def test_false_statement_about_a_promise_is_rare(simulated):
    """The true rate is a thousandth beside what the card promises, where this is hardest; half of
    the audits to either side.
    """
    setting = Setting(0.01, 300, 0.9)
    wrong = [
        document["promise"]["kept"] is said
        for target, said in ((0.999, True), (1.001, False))
        for document, _, _ in islice(documents_of(setting, target), SEEDS // 2)
    ]
    claim = "3. audit: a broken promise is said to be kept, or a kept one broken"
    simulated(claim, setting.words, BOUND, wrong)
