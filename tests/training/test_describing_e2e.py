"""A describer that is killed while it learns, against the same training left in peace."""

import csv
import json
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.identification.captioners import build_describer
from ray_app.identification.cards import load_describer
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.embeddings import read_embeddings
from ray_app.training.run import train
from tests.make.waiting import kill_family, wait_until
from tests.training.trainings import config, facts_of, finish, lines, start

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1_800)]

EVERY = 40
SETTINGS = {
    "name": "stripes",
    "method": "describe",
    "describe": {"tier": "prefix", "prefix": 4, "vocabulary": 300, "most_tokens": 32, "beams": 2}
    | {"architecture": {"config": {"n_embd": 32, "n_layer": 1, "n_head": 2}}},
    "card": None,
    "initial": None,
    "augmentation": None,
    "loop": {"epochs": None, "steps": 500, "batch": 16},
    "validation": {"every": 250},
    "faults": {"checkpoint_every": EVERY},
}


COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 210),
    "yellow": (235, 205, 45),
    "white": (245, 245, 245),
}


def write_stripes(folder):
    """Write images of one colour with stripes of another, and their list by prompt."""
    folder.mkdir()
    rows = [("path", "label", "generator", "group", "prompt")]
    for number, (ground, stripe, way) in enumerate(product(COLOURS, COLOURS, ("upright", "lying"))):
        pixels = np.full((64, 64, 3), COLOURS[ground], np.float32)
        (pixels[:, ::8] if way == "upright" else pixels[::8])[:] = COLOURS[stripe]
        prompt = f"a {ground} ground with {way} {stripe} stripes"
        for take in range(2):
            noise = np.random.default_rng([number, take]).normal(0, 4, pixels.shape)
            name = f"{number}-{take}.png"
            Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(folder / name)
            rows.append((name, "fake", "stripes", f"g{number}", prompt))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def written_once(out):
    """Return when each file was written that no later session may write again."""
    files = (out / "tokenizer.json", *(out / "features").rglob("*.npz"))
    return {path: path.stat().st_mtime_ns for path in files}


def test_killed_describer_ends_as_if_left_in_peace(tmp_path, ray_cluster):
    labels = write_stripes(tmp_path / "pictures")
    peace, out = tmp_path / "peace", tmp_path / "out"
    facts = train(config(labels, out=str(peace), **SETTINGS)).facts
    assert facts == facts_of(peace)

    process = start(labels, tmp_path, out, **SETTINGS)
    try:
        wait_until(lambda: checkpoints.list_checkpoints(Store.open(str(out))), timeout_s=400)
    finally:
        kill_family(process)
    assert not (out / "metrics.json").exists(), "it was killed too late to show anything"
    before = written_once(out)
    assert {"tokenizer.json", "00000000.npz"} <= {path.name for path in before}

    code, told = finish(start(labels, tmp_path, out, **SETTINGS))
    assert code == 0, told
    assert written_once(out) == before, "embeddings or the tokenizer were made again"
    assert_same_training(out, peace)
    assert_card_says_what_was_measured(out)
    assert train(config(labels, out=str(out), **SETTINGS)).was_complete


def assert_same_training(out, other):
    ours, theirs = lines(out, "metrics.jsonl"), lines(other, "metrics.jsonl")
    for found in (ours, theirs):
        assert [line["step"] for line in found] == list(range(SETTINGS["loop"]["steps"]))
    losses = ([line["loss"] for line in found] for found in (ours, theirs))
    np.testing.assert_allclose(*losses, rtol=2e-3)
    assert theirs[-1]["loss"] < 0.5 * theirs[0]["loss"], "it learns"
    for split in ("validation", "test"):
        ours, theirs = (facts_of(place)["figures"][split] for place in (out, other))
        assert ours["retrieval"] == theirs["retrieval"]
        assert ours["random"] == theirs["random"]
        exact = [found["describer"]["exact"]["value"] for found in (ours, theirs)]
        assert abs(exact[0] - exact[1]) < 0.2


def assert_card_says_what_was_measured(out):
    """The card alone says of the test images what the training wrote down."""
    assert "NaN" not in (out / "metrics.json").read_text()
    written = pq.read_table(out / "predictions" / "test.parquet")
    vectors = read_embeddings(Store.open(str(out)), "test").vectors
    said = build_describer(load_describer(out / "describer.yaml")).describe(vectors)
    assert written["predicted_prompt"].to_pylist() == [one.text for one in said]
    likelihoods = written["prompt_likelihood"].to_numpy()
    expected = [one.likelihood for one in said]
    np.testing.assert_allclose(likelihoods, expected, rtol=1e-4, atol=1e-5)
    identity = json.loads((out / "train.json").read_text())["identity"]
    assert identity["recipe"]["describe"]["tier"] == "prefix"
