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


def test_rows_are_those_of_a_whole_run_with_that_identifier_however_often_and_it_goes_on_where_it_stopped(tmp_path, capsys):
    old = made(tmp_path, "old", None)
    for name, seed in (("new", 1), ("newer", 2), ("newer", 2)):
        card = card_in(tmp_path / f"card-{seed}", seed)
        assert main(["runs", "rescore", old.store.url, "--identifier", str(card), "--out", str(tmp_path / name), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        named, whole = RunDirectory.open(str(tmp_path / name)), made(tmp_path, f"whole-{seed}", card)
        assert next(named.tables(0)).schema.names == next(whole.tables(0)).schema.names
        assert rows_of(named) == rows_of(whole) != rows_of(old)
        assert named.describe()["identity"] == whole.describe()["identity"] == summary["identity"]
        assert summary["statuses"] == {"ok": 29, "corrupt_image": 1}
        assert 3 < sum(row["predicted_generator"] is None for row in rows_of(named).values()) < 27
        if name == "newer":  # the second time it makes these files again
            for file in named.published():
                named.store.delete(file.path)
        else:
            old = named


def test_what_does_not_suit_is_refused(tmp_path, capsys):
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
    assert main(["runs", "rescore", old.store.url, "--identifier", "a.yaml", "--out", str(tmp_path / "new"), "--detector", NAME]) == 2
    assert "leaves scores as they are" in capsys.readouterr().err
