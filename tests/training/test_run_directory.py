"""Whose a training's directory is."""

import json

import pytest

from ray_app.errors import ConfigError, IdentityError
from ray_app.images import ImageLimits
from ray_app.storage import Store
from ray_app.training.run import train
from ray_app.training.run_directory import (
    check_claim,
    claim_data,
    claim_recipe,
    config_as_begun,
    write_claim,
)
from tests.training.conftest import config

FINDINGS = {"splits": {"train": {"digest": "aa"}, "validation": {"digest": "bb"}}}


def test_the_same_recipe_may_come_again_with_other_workers(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    claim_data(out, told, FINDINGS)
    again = claim_recipe(
        out,
        config(
            labelled,
            workers={"count": 2},
            faults={"keep": 5},
            export={"title": "other"},
            title="another",
        ),
    )
    claim_data(out, again, FINDINGS)
    assert again["created_at"] == told["created_at"]
    assert again["environment"]["torch"]


def test_urls_lose_their_keys_and_may_come_again_with_others(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    places = [
        f"https://someone:secret@host/a.tar?X-Amz-Signature=secret{number}&part=1"
        for number in range(2)
    ]
    for place in places:
        claim_recipe(
            out, config(labelled, data={"train": [{"at": place}], "validation": {"groups": 0.5}})
        )
    told = (tmp_path / "train.json").read_text()
    assert "secret" not in told
    assert "https://host/a.tar?part=1" in told


def test_another_recipe_and_other_images_are_refused_with_what_differs(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    with pytest.raises(IdentityError, match=r"recipe\.loop\.batch: this command 16, the run 8"):
        claim_recipe(out, config(labelled, loop={"batch": 16}))
    claim_data(out, told, FINDINGS)
    with pytest.raises(IdentityError, match=r"data\.train"):
        claim_data(out, told, {"splits": {**FINDINGS["splits"], "train": {"digest": "cc"}}})


def test_a_scoring_run_is_not_trained_into(tmp_path, labelled):
    (tmp_path / "run.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="a scored run"):
        claim_recipe(Store.open(str(tmp_path)), config(labelled))


def test_a_default_that_has_changed_since_is_the_trainings(tmp_path, labelled, capsys):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    told["identity"]["recipe"]["limits"]["max_pixels"] = 7_000_000  # of another version
    write_claim(out, told)
    going_on = config_as_begun(config(labelled), out)
    assert going_on.limits.max_pixels == 7_000_000
    check_claim(out, going_on)
    assert "recipe" not in (said := capsys.readouterr().err)
    assert f"limits.max_pixels 7000000 (today {ImageLimits().max_pixels})" in said
    with pytest.raises(
        IdentityError, match=r"recipe\.limits\.max_pixels: this command 9000000, the run 7000000"
    ):
        check_claim(out, config_as_begun(config(labelled, limits={"max_pixels": 9_000_000}), out))


def test_images_that_cannot_be_divided_leave_the_directory_to_a_better_recipe(tmp_path, labelled):
    source = {"at": [f"list::{labelled}"], "generators": ["double-a"], "split": None}
    given = config(
        labelled,
        out=str(tmp_path),
        data={"train": [source], "validation": {"generators": ["nobody"]}},
    )
    with pytest.raises(ConfigError, match="nobody"):
        train(given)
    assert not (tmp_path / "train.json").exists()
