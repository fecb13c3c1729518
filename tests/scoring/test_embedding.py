"""Which detectors `--features` means; no Ray, no image."""

import pytest
import yaml

from benchmarks.seeded import seeded_card, write_card
from ray_app.ensembles import ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError, DetectorError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.scoring.embedding import kept_by
from tests.scoring.eight import small_cards


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """Two heads on one backbone, one on another, and one without an embedding."""
    folder = tmp_path_factory.mktemp("cards")
    small = {card.name: card for card in small_cards()}
    base = seeded_card(small["unifd"], folder / "base")
    own = seeded_card(small["own-head"], folder / "own", seed=1).model_copy(update={"backbone": base.backbone})
    clip_d, maskclip = (seeded_card(small[name], folder / name, seed=2) for name in ("clip-d-10k-plus", "maskclip"))
    return {card.name: str(write_card(card, folder / f"{card.name}.yaml")) for card in (base, own, clip_d, maskclip)}


def spec_of(*paths):
    return make_spec(ensemble_of(list(paths)), limits=ImageLimits(), precision="fp32")


def test_a_detector_is_named_by_itself(cards):
    spec = spec_of(cards["unifd"], cards["own-head"], "touchstone-tiny")
    assert list(kept_by(spec, ["touchstone-tiny"])) == ["touchstone-tiny"]
    assert list(kept_by(spec, ["own-head", "unifd"])) == ["unifd", "own-head"]
    assert kept_by(spec, []) == {}


def test_a_backbone_is_kept_once_for_all_that_would_keep_the_same(cards):
    spec = spec_of(cards["own-head"], cards["unifd"], cards["clip-d-10k-plus"])
    kept = kept_by(spec, ["openai-clip-vit-l14"])
    assert list(kept) == ["own-head"]


@pytest.mark.parametrize(
    ("name", "error", "told"), [("nobody", ConfigError, "none of the detectors"), ("maskclip", DetectorError, "no embedding")]
)
def test_what_has_none_is_refused(cards, name, error, told):
    with pytest.raises(error, match=told):
        kept_by(spec_of(cards["unifd"], cards["maskclip"]), [name])


def test_of_a_cascade_only_what_looks_at_everything_is_kept(cards, tmp_path):
    card = {"name": "two", "title": "a cascade", "rule": "cascade", "cascade": {"first": 1, "band": [-1, 1]},
            "members": [{"detector": "touchstone-tiny"}, {"detector": cards["unifd"]}]}  # fmt: skip
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(card))
    spec = make_spec(load_ensemble_card(tmp_path / "two.yaml"), limits=ImageLimits(), precision="fp32")
    assert list(kept_by(spec, ["touchstone-tiny"])) == ["touchstone-tiny"]
    for name in ("unifd", "openai-clip-vit-l14"):
        with pytest.raises(ConfigError, match="looks only at images that go on"):
            kept_by(spec, [name])
