import pytest

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card
from ray_app.detectors.card import Platt
from ray_app.ensembles import EnsembleCard, Guarantee, LabelledPart, Population, load_ensemble_card
from tests.evaluation.evidence.real_run import score_here, write_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def plain_run(photos, tmp_path_factory):
    """Scored by the shipped ensemble, which promises nothing."""
    return score_here(load_ensemble_card("tiny"), photos, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="session")
def promised():
    """A card as `touchstone detectors calibrate` writes it: calibrated, guaranteed, with its population."""
    card, sizes = load_ensemble_card("tiny"), {"fit": 300, "calibrate": 200, "choose": 500}
    parts = tuple(LabelledPart(name=name, n_real=n, n_fake=n, groups=n, sha256=f"{n:064x}") for name, n in sizes.items())
    told = {"target_fpr": 0.01, "n_real": 500, "false_positives": 1, "upper_bound": 0.0094}
    population = Population(what="simulated pictures", prevalence=0.5, parts=parts, generators=("sd", "flux"))
    return card.model_copy(
        update={
            "calibration": Platt(slope=0.8, intercept=-0.3),
            "guarantee": Guarantee(**told, references="card.reals.parquet", references_sha256="a" * 64),
            "population": population,
        }
    )


@pytest.fixture(scope="session")
def promised_run(photos, promised, tmp_path_factory):
    """Scored by that card; its summary says that the guarantee carries over."""
    unseen = {"standard_deviations": None, "false_positive_rate": 1.0, "flagged": 3}
    holds = {"guarantee": {"holds": True, "target_fpr": 0.01, "shifts": [], "why": None, "unseen": unseen}}
    return score_here(promised, photos, tmp_path_factory.mktemp("promised") / "run", summary=holds)


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory):
    """A cascade of the shipped detector and a small one with seeded weights; its audit draws every image, so that all of them look."""
    folder = tmp_path_factory.mktemp("cards")
    second = seeded_card(load_card("tiny-ladeda").model_copy(update={"terms": "permissive"}), folder / "weights", seed=1)
    write_card(second, folder / "second.yaml")
    members = [{"detector": "touchstone-tiny"}, {"detector": str(folder / "second.yaml")}]
    cascade = {"first": 1, "band": (-1, 1), "audit_share": 1.0}
    return EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade=cascade)
