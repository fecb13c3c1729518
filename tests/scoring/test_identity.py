"""Which detectors `--features` means; no image.

`--stability K`: verdicts near a threshold that views do not share become abstain, and `decide` knows the views.
"""

import numpy as np
import pytest

from benchmarks.seeded import seeded_card, write_card
from ray_app.ensembles import ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError, DetectorError, IdentityError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.inference.stability import Stability
from ray_app.reports import render_run_report, summary_lines
from ray_app.runs.schema import STABILITY
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import identity_of, kept_embeddings_of, resolve
from ray_app.scoring.rescore import decide_run
from ray_app.scoring.run import score_archive
from tests.inference.test_second_pass import FILES
from tests.scoring.conftest import comparable, rows_of, score_here, write_ensemble
from tests.scoring.eight import small_cards


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """One with an embedding, and one without."""
    folder = tmp_path_factory.mktemp("cards")
    found = [seeded_card(card, folder / card.name) for card in small_cards() if card.name in ("unifd", "maskclip")]
    return {card.name: str(write_card(card, folder / f"{card.name}.yaml")) for card in found}


def test_what_has_no_embedding_of_every_image_is_refused(cards, tmp_path):
    both = make_spec(ensemble_of([cards["unifd"], cards["maskclip"]]), limits=ImageLimits(), precision="fp32")
    with pytest.raises(DetectorError, match="no embedding"):
        kept_embeddings_of(both, ["maskclip"])
    cascade = {"rule": "cascade", "cascade": {"first": 1, "band": [-1, 1]}}
    two = write_ensemble(tmp_path / "two.yaml", ("touchstone-tiny", cards["unifd"]), **cascade)
    spec = make_spec(load_ensemble_card(two), limits=ImageLimits(), precision="fp32")
    assert list(kept_embeddings_of(spec, ["touchstone-tiny"])) == ["touchstone-tiny"]
    for name in ("unifd", "openai-clip-vit-l14"):
        with pytest.raises(ConfigError, match="sees only images that go on"):
            kept_embeddings_of(spec, [name])


def written(folder, threshold, margin=0.0):
    """The path of a card that abstains within `margin` of a threshold."""
    thresholds = {"real_below": threshold - margin, "fake_above": threshold + margin}
    return str(write_ensemble(folder / f"at{threshold:.4f}.yaml", name="tiny", thresholds=thresholds))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stability") / "photos"
    folder.mkdir()
    for number, data in FILES:
        (folder / f"{number}.png").write_bytes(data)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def stable(photos, tmp_path_factory):
    """A run that asks three views of everything near 0, and its rows."""
    folder = tmp_path_factory.mktemp("run")
    card = written(folder, 0.0)
    finished, rows = score_here(folder / "run", photos, ensemble=card, stability=3, stability_margin=3.9)
    return folder / "run", finished.summary, rows


def views_say(row, threshold):
    return ["fake" if view["touchstone-tiny"] >= threshold else "real" for view in row[STABILITY]]


def test_rows_and_summary_say_what_did_not_outlive_recompression(stable):
    _, summary, rows = stable
    scored = [row for row in rows.values() if row["status"] == "ok"]
    asked = [row for row in scored if row[STABILITY] is not None]
    assert 0 < len(asked) < len(scored) == len(FILES)
    for row in scored:
        assert (row[STABILITY] is not None) == (abs(row["score"]) <= 3.9)
    for row in asked:
        plain, said = "fake" if row["score"] >= 0 else "real", views_say(row, 0.0)
        assert len(said) == 3
        assert row["verdict"] == (plain if set(said) == {plain} else "abstain")
        assert (row["verdict"] == "abstain") == (row["verdict_reason"] == "unstable") == ("recompressed" in (row["verdict_detail"] or ""))
    unstable = sum(row["verdict"] == "abstain" for row in scored)
    assert unstable > 0
    assert summary["stability"] == {"views": 3, "margin": 3.9, "asked": len(asked), "unstable": unstable, "unasked": 0}
    assert summary["session"]["decoded"] == len(FILES) + 1 + len(asked)
    assert f"{len(asked)} images within 3.9 log-odds of a threshold" in "\n".join(summary_lines(summary))
    assert "recompressed views each" in render_run_report(summary)


def test_decide_counts_the_views_again_and_fetches_nothing(stable, photos, tmp_path):
    out, _, rows = stable
    before = {uri: row[STABILITY] for uri, row in rows.items()}
    moved = float(np.median([view["touchstone-tiny"] for views in before.values() if views for view in views]))
    summary = decide_run(str(out), written(tmp_path, moved))
    after = rows_of(out)
    assert {uri: row[STABILITY] for uri, row in after.items()} == before
    near = {uri for uri, row in after.items() if row["score"] is not None and abs(row["score"] - moved) <= 3.9}
    viewed = {uri for uri in near if after[uri][STABILITY]}
    assert viewed
    for uri in near:
        plain = "fake" if after[uri]["score"] >= moved else "real"
        said = views_say(after[uri], moved) if uri in viewed else [plain]
        assert after[uri]["verdict"] == (plain if set(said) == {plain} else "abstain"), uri
    assert summary["stability"]["unasked"] == len(near - viewed)
    back = decide_run(str(out), written(tmp_path, 0.0))
    assert back["verdicts"] == stable[1]["verdicts"]
    assert {uri: comparable(row) for uri, row in rows_of(out).items()} == {uri: comparable(row) for uri, row in rows.items()}
    config = ScoreConfig(source=(str(photos),), out=str(out), ensemble=written(tmp_path, 0.0), stability=2, stability_margin=3.9)
    with pytest.raises(IdentityError, match="stability"):
        score_archive(config)


def test_stability_is_part_of_the_identity_only_where_it_is_asked_for():
    plain = ScoreConfig(ensemble="tiny")
    usual = identity_of(plain, resolve(plain).spec(gpus=0))
    asked = ScoreConfig(ensemble="tiny", stability=2)
    assert "stability" not in usual
    assert identity_of(asked, resolve(asked).spec(gpus=0)) == usual | {"stability": Stability(2, 2.0).facts()}
