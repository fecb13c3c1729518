"""Whose a training's directory is."""

import json

import pytest

from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Store
from ray_app.training.claiming import claim_data, claim_recipe
from tests.training.conftest import config

FINDINGS = {"splits": {"train": {"digest": "aa"}, "validation": {"digest": "bb"}}}


def test_the_same_recipe_may_come_again_with_other_workers(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    claim_data(out, told, FINDINGS)
    again = claim_recipe(out, config(labelled, workers={"count": 2}, faults={"keep": 5}, export={"onnx": True}, title="another"))
    claim_data(out, again, FINDINGS)
    assert again["created_at"] == told["created_at"]
    assert again["environment"]["torch"]


def test_urls_lose_their_keys_and_may_come_again_with_others(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    places = [f"https://someone:secret@host/a.tar?X-Amz-Signature=secret{number}&part=1" for number in range(2)]
    for place in places:
        claim_recipe(out, config(labelled, data={"train": [{"at": place}], "validation": {"groups": 0.5}}))
    told = (tmp_path / "train.json").read_text()
    assert "secret" not in told
    assert "https://host/a.tar?part=1" in told


def test_another_recipe_is_refused_with_what_differs(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    claim_recipe(out, config(labelled))
    with pytest.raises(IdentityError, match=r"recipe\.loop\.batch: this command 16, the run 8"):
        claim_recipe(out, config(labelled, loop={"batch": 16}))


def test_other_images_are_refused(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    claim_data(out, claim_recipe(out, config(labelled)), FINDINGS)
    changed = {"splits": {**FINDINGS["splits"], "train": {"digest": "cc"}}}
    with pytest.raises(IdentityError, match=r"data\.train"):
        claim_data(out, claim_recipe(out, config(labelled)), changed)


def test_a_scoring_run_is_not_trained_into(tmp_path, labelled):
    (tmp_path / "run.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="holds a scoring run"):
        claim_recipe(Store.open(str(tmp_path)), config(labelled))
