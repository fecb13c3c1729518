"""Names of another identifier, made of the rows and embeddings of a run whose images are gone. No Ray, no image."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from ray_app.archives import iter_blocks, read_block
from ray_app.cli.main import main
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles.card import EnsembleProfile
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, judge, make_spec
from ray_app.runs import RunDirectory, current_rows, feature_rows, result_rows, write_features
from ray_app.scoring.identity import scoring_identity
from ray_app.scoring.rescore import name_run
from tests.attribution.test_identifier import CLASSES, identifier_of
from tests.runs.small_run import NAME, SPEC, relist, write_files
from tests.scoring.conftest import comparable

FACTS = embedding_facts(SPEC.cards[NAME], precision="fp32", resize="exact")
FILES = [f"{number:02}.jpg" for number in range(30)]
BROKEN = 7
AT = datetime(2026, 1, 1, tzinfo=UTC)


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
    """A finished run of the files with a score and an embedding of each, but for a broken one; with names where there is a profile."""
    run = RunDirectory.open(str(tmp_path / name))
    ensemble = SPEC.ensemble.model_copy(update={"profile": profile and EnsembleProfile(identifier=str(profile))})
    spec = make_spec(ensemble, limits=SPEC.limits, precision="fp32", slots=SPEC.slots)
    about = {"source": [str(tmp_path / "archive")], "limits": SPEC.limits.model_dump(mode="json"), "features": [NAME]}
    run.claim(about | scoring_identity(spec), [NAME], ensemble.model_dump(mode="json"))
    if not (tmp_path / "archive").exists():  # ids are of a file's time too
        write_files(tmp_path / "archive", FILES)
    relist(run, tmp_path / "archive")
    for ref in iter_blocks(run.store, 0):
        members = read_block(run.store, ref)
        ids = members["image_id"].to_numpy()
        vectors = np.stack([np.random.default_rng(abs(int(one))).normal(size=FACTS["width"]) for one in ids]).astype(np.float32)
        broken = [uri.endswith(FILES[BROKEN]) for uri in members["uri"].to_pylist()]
        vectors[broken] = np.nan
        outcomes = [
            DecodeResult(Status.CORRUPT_IMAGE, "torn", None)
            if bad
            else DecodeResult(Status.OK, None, ImageFileFacts(f"{abs(int(one)):064x}", "JPEG", 300, 200))
            for bad, one in zip(broken, ids, strict=True)
        ]
        scores = np.where(broken, np.nan, vectors[:, 0]).astype(np.float32)
        scored = judge(spec, outcomes, DetectorOutputs.clean(scores={NAME: scores}, embeddings={NAME: vectors}))
        write_features(run, 0, ref.block, NAME, feature_rows(ids, vectors, NAME, FACTS))
        run.write_part(0, ref.block, result_rows(members, scored, attempt=1, scored_at=AT))
    run.publish(0)
    run.write_json("summary.json", {"listing": 0})
    return run


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
