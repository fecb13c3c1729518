"""What a plan and a run's identity say of a profile; names and words under new thresholds and new
heads. No Ray.
"""

import pytest
import yaml

from benchmarks.photographs import write_photographs
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.reports import plan_lines
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.decide import decide_run
from ray_app.scoring.identity import resolve, scoring_facts
from tests.make.stages import plan_here
from tests.scoring.kept_run import kept_run
from tests.scoring.profiled import PROMPTS, write_profile


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return tmp_path_factory.mktemp("cards")


def test_plan_names_identifier_and_describer_with_their_time(cards, tmp_path):
    ensemble = write_profile(cards / "apart", "captioner", localizer=False, own_pool=True)
    write_photographs(tmp_path / "photos", 8, size=(320, 240))
    settings = {"ensemble": str(ensemble), "precision": "fp32"}
    planned = plan_here(ScoreConfig(source=(str(tmp_path / "photos"),), **settings), probe=8)
    plan = planned.to_dict()
    assert plan["profile"]["identifier"] == "named"
    assert (plan["profile"]["describer"], plan["profile"]["describe"]) == ("tiny", "flagged")
    assert 0 <= plan["profile"]["share"] <= 1
    assert [tensor["detectors"] for tensor in plan["tensors"]] == [["unifd", "own-head"], ["tiny"]]
    assert (plan["kind"], plan["pools"]) == ("split", [["unifd", "own-head"], ["tiny"]])
    assert {"identify", "describe"} <= {stage["stage"] for stage in plan["stages"]}
    lines = "\n".join(plan_lines(planned))
    assert "named names the generator of every image" in lines
    assert "tiny predicts the prompt of images called fake" in lines


def test_identity_has_what_decides_names_and_captions(cards):
    def identity(**changes):
        ensemble = write_profile(cards / "identity", localizer=False, **changes)
        config = ScoreConfig(ensemble=str(ensemble), precision="fp32")
        return scoring_facts(resolve(config).spec(gpus=0))["profile"]

    plain = identity()
    names = (plain["identifier"]["name"], plain["describer"]["name"], plain["describe"])
    assert names == ("named", "nearest", "flagged")
    assert identity(own_pool=True, gmac=3.0, parameters=7, title="Other") == plain
    assert identity(describe="all") != plain
    assert identity(beams=1) != plain


def test_profile_without_its_files_names_the_command(cards):
    assert load_ensemble_card("profile").profile.identifier == "identifier/identifier.yaml"
    with pytest.raises(ConfigError, match="there is no such file, and no identifier") as refused:
        resolve(ScoreConfig(ensemble="profile")).spec(gpus=0)
    assert "touchstone train configs/train/identify.yaml" in refused.value.hint


@pytest.fixture
def run(cards, tmp_path):
    """A finished run of twelve images by a profile, with its embeddings kept; the images are no
    images.
    """
    ensemble = write_profile(cards / "run", localizer=False)
    config = ScoreConfig(ensemble=str(ensemble), precision="fp32", features=("unifd",))
    names = [f"{number:02}.jpg" for number in range(12)]
    return kept_run(tmp_path / "run", resolve(config).spec(gpus=0), "unifd", names), ensemble


KEPT = ("predicted_generator", "generator_family", "generator_ranking", "predicted_prompt", "prompt_likelihood")  # fmt: skip


def words_of(run):
    return {row["image_id"]: {name: row[name] for name in KEPT} for row in current_rows(run)}


def test_new_thresholds_keep_names_and_captions(run, tmp_path):
    run, ensemble = run
    before = words_of(run)
    described = sum(row["predicted_prompt"] in PROMPTS for row in before.values())
    assert 0 < described < 12
    told = yaml.safe_load(ensemble.read_text())
    told["thresholds"] = {"real_below": -99, "fake_above": -99}
    for name, profile in (("same", told["profile"]), ("none", None)):
        path = ensemble.with_name(f"{name}.yaml")
        path.write_text(yaml.safe_dump(told | {"profile": profile}))
        out = RunDirectory.open(f"{run.store.url}-{name}")
        summary = decide_run(run.store.url, str(path), out.store.url)
        assert words_of(out) == before
        assert (summary["profile"]["flagged"], summary["profile"]["described"]) == (12, described)
        assert out.describe()["ensemble"]["profile"]["describe"] == "flagged"
    other = ensemble.with_name("other.yaml")
    profile = {"identifier": told["profile"]["identifier"]}
    other.write_text(yaml.safe_dump(told | {"profile": profile}))
    with pytest.raises(ConfigError, match="describer nearest, but the card profile has none"):
        decide_run(run.store.url, str(other), f"{run.store.url}-other")
