"""Which training may use a directory."""

import pytest

from ray_app.errors import IdentityError
from ray_app.images import ImageLimits
from ray_app.storage import Store
from ray_app.training.run_directory import (
    check_claim,
    claim_data,
    claim_recipe,
    restore_config,
    write_claim,
)
from tests.training.trainings import config

FINDINGS = {"splits": {"train": {"digest": "aa"}, "validation": {"digest": "bb"}}}


def test_recipe_may_resume_with_other_workers(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    claim_data(out, told, FINDINGS)
    changed = config(
        labelled,
        workers={"count": 2},
        faults={"keep": 5},
        export={"title": "other"},
        title="another",
    )
    again = claim_recipe(out, changed)
    claim_data(out, again, FINDINGS)
    assert again["created_at"] == told["created_at"]
    assert again["environment"]["torch"]


def test_claim_has_no_keys_of_urls(tmp_path, labelled):
    """The same URL may come again with other keys."""
    for number in range(2):
        signature = f"X-Amz-Signature=secret{number}"
        source = {"at": f"https://someone:secret@host/a.tar?{signature}&part=1"}
        data = {"train": [source], "validation": {"groups": 0.5}}
        claim_recipe(Store.open(str(tmp_path)), config(labelled, data=data))
    told = (tmp_path / "train.json").read_text()
    assert "secret" not in told
    assert "https://host/a.tar?part=1" in told


def test_other_recipe_and_other_images_are_rejected(tmp_path, labelled):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    with pytest.raises(IdentityError, match=r"recipe\.loop\.batch: this command 16, the run 8"):
        claim_recipe(out, config(labelled, loop={"batch": 16}))
    claim_data(out, told, FINDINGS)
    with pytest.raises(IdentityError, match=r"data\.train"):
        claim_data(out, told, {"splits": {**FINDINGS["splits"], "train": {"digest": "cc"}}})


def test_resumed_training_keeps_its_earlier_defaults(tmp_path, labelled, capsys):
    out = Store.open(str(tmp_path))
    told = claim_recipe(out, config(labelled))
    told["identity"]["recipe"]["limits"]["max_pixels"] = 7_000_000  # of another version
    write_claim(out, told)
    resumed = restore_config(config(labelled), out)
    assert resumed.limits.max_pixels == 7_000_000
    check_claim(out, resumed)
    said = capsys.readouterr().err
    assert "recipe" not in said
    assert f"limits.max_pixels 7000000 (today {ImageLimits().max_pixels})" in said
    other = restore_config(config(labelled, limits={"max_pixels": 9_000_000}), out)
    with pytest.raises(IdentityError, match="this command 9000000, the run 7000000"):
        check_claim(out, other)
