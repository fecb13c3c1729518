"""Names of another identifier, made of the rows and embeddings of a run whose images are gone. No Ray, no image."""

import json

import numpy as np
import pytest

from ray_app.cli.main import main
from ray_app.ensembles.card import EnsembleProfile
from ray_app.errors import ConfigError
from ray_app.inference import make_spec
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring.rescore import name_run
from tests.attribution.test_identifier import CLASSES, identifier_of
from tests.runs.small_run import NAME, SPEC
from tests.scoring.conftest import comparable
from tests.scoring.kept_run import facts_of, kept_run

FACTS = facts_of(SPEC, NAME)


def card_in(folder, seed, **changes):
    """An identifier on the detector's embeddings that names about half of them; its card's path."""
    rng = np.random.default_rng(seed)
    held = {"weight": rng.normal(size=(len(CLASSES), FACTS["width"])).astype(np.float32)}
    told = {
        "detector": NAME,
        "embedding": json.loads(json.dumps(FACTS)),
        "open_set": {"threshold": 14.0, "abstains": 0.5, "n": 9},
    } | changes
    folder.mkdir(exist_ok=True)
    card = identifier_of(folder, held, **told).card
    path = folder / "identifier.yaml"
    path.write_text(json.dumps(card.model_dump(mode="json")))
    return path


def made(tmp_path, name, profile):
    """A finished run of thirty files, one of them broken; with names where there is a profile."""
    ensemble = SPEC.ensemble.model_copy(update={"profile": profile and EnsembleProfile(identifier=str(profile))})
    spec = make_spec(ensemble, limits=SPEC.limits, precision="fp32", slots=SPEC.slots)
    return kept_run(tmp_path / name, spec, NAME, [f"{number:02}.jpg" for number in range(30)], broken=("07.jpg",))


def rows_of(run):
    return {row["image_id"]: comparable(row) for row in current_rows(run)}


@pytest.mark.parametrize("named_before", [False, True])
def test_rows_are_those_of_a_whole_run_with_that_identifier(tmp_path, named_before):
    card, other = card_in(tmp_path / "card", 1), card_in(tmp_path / "other", 2)
    old = made(tmp_path, "old", other if named_before else None)
    whole = made(tmp_path, "whole", card)
    summary = name_run(old.store.url, str(tmp_path / "new"), str(card))
    new = RunDirectory.open(str(tmp_path / "new"))
    assert next(new.tables(0)).schema.names == next(whole.tables(0)).schema.names
    assert rows_of(new) == rows_of(whole) != rows_of(old)
    assert new.describe()["identity"] == whole.describe()["identity"] == summary["identity"]
    names = [row["predicted_generator"] for row in rows_of(new).values()]
    assert 3 < sum(name is None for name in names) < 27
    assert summary["statuses"] == {"ok": 29, "corrupt_image": 1}


def test_the_new_run_can_be_named_again_and_goes_on_where_it_stopped(tmp_path):
    first, second = card_in(tmp_path / "card", 1), card_in(tmp_path / "other", 2)
    old = made(tmp_path, "old", None)
    name_run(old.store.url, str(tmp_path / "new"), str(first))
    for _ in range(2):
        name_run(str(tmp_path / "new"), str(tmp_path / "newer"), str(second))
        new, newer = (RunDirectory.open(str(tmp_path / name)) for name in ("new", "newer"))
        assert rows_of(newer) == rows_of(made(tmp_path, "whole", second)) != rows_of(new)
        for file in newer.published():
            newer.store.delete(file.path)


def test_what_does_not_suit_is_refused(tmp_path):
    old = made(tmp_path, "old", None)
    pixels = FACTS["preprocessing"] | {"mean": [0.25, 0.5, 0.5]}
    with pytest.raises(ConfigError, match=f"those of {NAME} differ in preprocessing"):
        name_run(old.store.url, str(tmp_path / "new"), str(card_in(tmp_path / "card", 1, embedding=FACTS | {"preprocessing": pixels})))
    with pytest.raises(ConfigError, match="which does not look at every image"):
        name_run(old.store.url, str(tmp_path / "new"), str(card_in(tmp_path / "card", 1, detector="unifd")))
    old.store.clear("features")
    with pytest.raises(ConfigError, match="kept no embeddings"):
        name_run(old.store.url, str(tmp_path / "new"), str(card_in(tmp_path / "card", 1)))
    assert not (tmp_path / "new").exists()


def test_the_command_tells_the_summary(tmp_path, capsys):
    old, card = made(tmp_path, "old", None), card_in(tmp_path / "card", 1)
    command = ["rescore", old.store.url, "--identifier", str(card), "--out", str(tmp_path / "new")]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["members"] == 30
    assert main([*command, "--detector", NAME]) == 2
    assert "leaves scores as they are" in capsys.readouterr().err
