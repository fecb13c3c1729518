"""A linear probe, from images to a card that scores."""

import numpy as np
import pytest

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.licences import require_accepted
from ray_app.errors import ConfigError
from ray_app.storage import Store
from ray_app.training.embeddings import embed_images
from ray_app.training.fit_head import load_backbone_detector
from ray_app.training.head import fit_head
from ray_app.training.run import train
from tests.make.networks.small_clip import small_card
from tests.training.trainings import config, facts_of

pytestmark = pytest.mark.slow


def probe(labelled, out, **changes):
    """Settings of a linear probe on a small CLIP, and the path of its card."""
    _, card = small_card(out.parent)
    given = config(
        labelled,
        method="linear-probe",
        detector=str(card),
        initial={"start": "card"},
        card=None,
        augmentation={"policy": "none", "arguments": {}},
        loop={"batch": 32},
        out=str(out),
        **changes,
    )
    return given, card


def test_head_is_fitted_to_features_of_every_row_once(labelled, tmp_path):
    out = tmp_path / "out"
    given, card = probe(labelled, out)
    facts = train(given).facts
    rows = facts["data"]["splits"]["train"]["images"]
    blocks = sorted((out / "features/train").iterdir())
    parts = [np.load(path) for path in blocks]
    assert np.concatenate([part["rows"] for part in parts]).tolist() == list(range(rows))
    assert facts["probe"]["images"] == rows
    assert len(facts["probe"]["cross_validated_auc"]) == 5
    assert facts == facts_of(out)

    features, labels = (
        np.concatenate([part[name] for part in parts]) for name in ("features", "labels")
    )
    head = fit_head(features, labels).as_log_odds()
    exported = load_detector(out / "card.yaml").network.fc
    np.testing.assert_allclose(exported.weight.detach().numpy(), head.weight, rtol=1e-6)
    np.testing.assert_allclose(exported.bias.item(), head.bias, rtol=1e-6)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)
    backbone = load_backbone_detector(load_card(card))
    vectors = np.stack([vector for _, vector in embed_images(backbone, enumerate(pixels))])
    scores = load_detector(out / "card.yaml").score(pixels)
    np.testing.assert_allclose(scores, head.score(vectors), atol=1e-4)

    # After an interruption, it computes only the block that is missing.
    store = Store.open(str(out))
    lost, *kept = blocks
    times = {path: path.stat().st_mtime_ns for path in kept}
    lost.unlink()
    store.delete("metrics.json")
    store.clear("checkpoints")
    assert train(given).facts["validation"] == facts["validation"]
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert lost.exists()


def test_card_of_a_training_needs_no_consent_of_its_user(labelled, tmp_path):
    """The user has accepted the licence of the initial weights, and states that of the data."""
    out = tmp_path / "out"
    given, _ = probe(labelled, out, data={"licence": "Terms of the agency"})
    train(given)
    trained = load_card(out / "card.yaml")
    assert trained.terms == "restricted"
    require_accepted(trained)


def test_linear_probe_rejects_another_family(labelled, tmp_path):
    given = config(labelled, method="linear-probe", out=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="family clip-linear or frozen-linear"):
        train(given)
