"""Which detectors `--features` means; no image."""

import pytest

from benchmarks.seeded import seeded_card, write_card
from ray_app.ensembles import ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError, DetectorError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.scoring.embeddings import select_embeddings
from tests.scoring.conftest import write_ensemble
from tests.scoring.eight import small_cards


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """One with an embedding, and one without."""
    folder = tmp_path_factory.mktemp("cards")
    found = [
        seeded_card(card, folder / card.name)
        for card in small_cards()
        if card.name in ("unifd", "maskclip")
    ]
    return {card.name: str(write_card(card, folder / f"{card.name}.yaml")) for card in found}


def test_what_has_no_embedding_of_every_image_is_refused(cards, tmp_path):
    both = make_spec(
        ensemble_of([cards["unifd"], cards["maskclip"]]), limits=ImageLimits(), precision="fp32"
    )
    with pytest.raises(DetectorError, match="no embedding"):
        select_embeddings(both, ["maskclip"])
    cascade = {"rule": "cascade", "cascade": {"first": 1, "band": [-1, 1]}}
    two = write_ensemble(tmp_path / "two.yaml", ("touchstone-tiny", cards["unifd"]), **cascade)
    spec = make_spec(load_ensemble_card(two), limits=ImageLimits(), precision="fp32")
    assert list(select_embeddings(spec, ["touchstone-tiny"])) == ["touchstone-tiny"]
    for name in ("unifd", "openai-clip-vit-l14"):
        with pytest.raises(ConfigError, match="sees only images that go on"):
            select_embeddings(spec, [name])
