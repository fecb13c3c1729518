"""Runs with perturbations: every image decoded once, the same views whoever works on them, and
nothing else changed.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card
from ray_app.errors import ConfigError, IdentityError
from ray_app.reports import plan_lines
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.run import score_archive
from ray_app.transforms.perturbations import absent_views, load_perturbations
from tests.make.runs import begin, comparable, score_here
from tests.make.stages import plan_here

STANDARD = [view.name for view in load_perturbations(["standard"])]
TINY = ("touchstone-tiny", "other-tiny", "corvi2023")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photographs of several sizes and a small picture, below what a crop may leave, and one
    file that is none.
    """
    folder = tmp_path_factory.mktemp("views") / "photos"
    for number, size in enumerate([(96, 80), (70, 70), (120, 65)]):
        write_photographs(folder, 1, size=size, start=number)
    Image.new("RGB", (3, 3), (9, 200, 30)).save(folder / "three.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Three small detectors; the last looks at images in their own size."""
    folder = tmp_path_factory.mktemp("tiny")
    corvi = load_card("corvi2023")
    narrow = {"arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
    narrow = {"architecture": corvi.architecture.model_copy(update=narrow), "size": None}
    other = load_card("touchstone-tiny").model_copy(update={"name": "other-tiny"})
    cards = [seeded_card(card, folder) for card in (other, corvi.model_copy(update=narrow))]
    written = (str(write_card(card, folder / f"{card.name}.yaml")) for card in cards)
    return ("touchstone-tiny", *written)


@pytest.fixture(scope="module")
def seen(photos, tiny, tmp_path_factory):
    """The session of a run with perturbations, and its rows."""
    out = tmp_path_factory.mktemp("seen") / "run"
    finished, rows = score_here(out, photos, detectors=tiny, perturb=("standard",))
    return finished.summary["session"], rows


def test_every_detector_scores_every_view_of_an_image(seen):
    session, rows = seen
    assert session["decoded"] == len(rows) == 5
    for uri, row in rows.items():
        if uri.endswith("broken.jpg"):
            assert row["views"] is None
            continue
        assert list(row["views"]) == STANDARD
        assert all(list(scores) == list(TINY) for scores in row["views"].values())
        assert all(scores["other-tiny"] is not None for scores in row["views"].values())
        # Corvi takes 64 pixels and more: not what half the size leaves.
        assert row["views"]["half-size"]["corvi2023"] is None
    photographs = [row["views"] for uri, row in rows.items() if "photo-" in uri]
    values = [views[view]["other-tiny"] for views in photographs for view in STANDARD]
    assert len(np.unique(values)) > 0.9 * len(values)


def test_detector_in_its_own_pool_gives_the_same_views(score, seen, photos, tiny, tmp_path):
    own = yaml.safe_load(Path(tiny[-1]).read_text()) | {"own_pool": True}
    (tmp_path / "corvi2023.yaml").write_text(yaml.safe_dump(own))
    detectors = (*tiny[:2], str(tmp_path / "corvi2023.yaml"))
    finished, split = score(photos, perturb=("standard",), detectors=detectors)
    session = finished.summary["session"]
    assert session["layout"] == "split"
    assert session["decoded"] == 5 + 3, (
        "once for fixed sizes, once where sizes are kept, but for the smallest: not once per view"
    )
    for uri, row in split.items():
        assert row["views"] == seen[1][uri]["views"]


def test_run_without_views_has_the_same_rows_otherwise(score, seen, photos, tiny):
    _, plain = score(photos, detectors=tiny)
    for uri, row in plain.items():
        expected = comparable(seen[1][uri])
        del expected["views"]
        assert comparable(row) == expected
    with pytest.raises(IdentityError, match=r"perturb\.jpeg-95"):
        score(photos, detectors=tiny, perturb=("standard",))


def test_identity_has_perturbations_kinds_and_unavailable_ones(photos):
    perturb = ("jpeg:75", "sidbench", "attacks", "ntire-2026")
    given = ScoreConfig(source=(str(photos),), detectors=("touchstone-tiny",), perturb=perturb)
    plain = given.model_copy(update={"perturb": ()})
    with_views, without = (
        settings.facts(settings.spec(gpus=0)) for settings in (resolve(given), resolve(plain))
    )
    assert with_views["perturb"]["jpeg:75"] == [{"op": "jpeg", "quality": 75}]
    assert {view.name for view in load_perturbations(["sidbench"])} < set(with_views["perturb"])
    kinds, absent = with_views["perturb_kinds"], with_views["perturb_absent"]
    assert (kinds["print-scan"], kinds.get("jpeg:75")) == ("attack", None)
    assert absent.keys() == {view.name for view in absent_views(["ntire-2026"])}
    assert (absent["jpeg-ai"]["kind"], "jpeg-ai" in with_views["perturb"]) == ("degradation", False)
    nothing = {"perturb": {}, "perturb_kinds": {}, "perturb_absent": {}}
    assert without == with_views | nothing


def test_unknown_perturbation_is_refused_before_a_run_begins(photos, tmp_path):
    config = ScoreConfig(source=(str(photos),), out=str(tmp_path / "run"), perturb=("sepia",))
    with pytest.raises(ConfigError, match="no such perturbation"):
        score_archive(config)
    assert not (tmp_path / "run" / "run.json").exists()


def test_plan_counts_every_pass(photos):
    config = ScoreConfig(source=(str(photos),), detectors=("touchstone-tiny",))
    plan = plan_here(config.model_copy(update={"perturb": ("standard",)}), probe=2)
    once = plan_here(config, probe=0)
    assert (plan.views, once.views) == (STANDARD, None)
    assert plan.gmac_per_image == pytest.approx(13 * once.gmac_per_image, rel=0.01)
    assert plan.block_members < once.block_members
    assert plan.process_bytes > once.process_bytes
    assert plan.forecast.images_per_s > 0
    assert "13 passes over every image, decoded once" in "\n".join(plan_lines(plan))
    assert not any("passes" in line for line in plan_lines(once))


def test_perturbation_function_of_another_run_is_not_called(photos, tmp_path):
    steps = [{"op": "call", "path": "os:listdir"}]
    source = {"name": "mine", "source": "me", "perturbations": [{"name": "listed", "steps": steps}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(source))
    out, detectors = str(tmp_path / "run"), ("touchstone-tiny",)
    again = ScoreConfig(source=(str(photos),), out=out, detectors=detectors)
    config = again.model_copy(update={"perturb": (str(tmp_path / "mine.yaml"),)})
    run = begin(**config.model_dump(exclude_unset=True))
    with pytest.raises(
        ConfigError, match="the perturbation listed calls a function that is not part of Touchstone"
    ) as refused:
        resolve(again, run)
    assert refused.value.hint == "give the same --perturb as in the command that made the run"
    assert [view.name for view in resolve(config, run).views] == ["listed"]
