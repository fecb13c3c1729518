import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ray_app.datasets import DatasetSource, build_index, read_index
from ray_app.datasets.index import read_info
from ray_app.errors import ConfigError
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.data_faults import (
    MAX_PER_GENERATOR,
    PROMPTED,
    compare_pairs,
    compare_prompts,
    describe_shared_images,
    find_index_faults,
)
from ray_app.evaluation.prompts import PromptClip
from ray_app.evaluation.run import evaluate, labels_for
from ray_app.reports.evaluation.page import evaluation_lines
from ray_app.storage import Store
from tests.evaluation.small_clip import WORDS, write_clip
from tests.make.datasets import made_index
from tests.make.evaluations import made_run, random_rows
from tests.make.published import write_openfake

COUNT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)) for _ in range(COUNT)]


def of_ids(pictures):
    return lambda ids: ((one, pictures[one % COUNT]) for one in ids if one not in (2, 3))


def prompted(maker, prompts, start=0):
    ids = pa.array(range(start, start + len(prompts)))
    columns = [ids, pa.array([maker] * len(prompts)), pa.array(prompts, pa.string())]
    return pa.table(columns, PROMPTED.names)


def paired(folder, pictures):
    """A prompt for each picture, so that no two neighbours would fit better with their prompts
    swapped.
    """
    model = PromptClip(folder)
    words = [f"{one} {two}" for one in WORDS for two in WORDS if one != two][:COUNT]
    images, texts = (
        np.concatenate([model.embed_images([one]) for one in pictures]),
        model.embed_texts(words),
    )
    for first in range(0, COUNT, 2):
        if ((images[first] - images[first + 1]) * (texts[first] - texts[first + 1])).sum() < 0:
            words[first : first + 2] = words[first : first + 2][::-1]
    return words


def test_own_prompts_differ_from_swapped_and_shuffled_ones():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 16))
    assert compare_pairs(images, images + rng.normal(size=images.shape)).mean() > 0.95
    shared = np.repeat(images[::2], 2, axis=0)  # pairs of equal prompts tell nothing
    assert len(compare_pairs(images, shared)) == 0
    assert 0.3 < compare_pairs(images, rng.permutation(images)).mean() < 0.7
    assert compare_pairs(images[:5], images[:5]).tolist() == [True, True]


def test_generator_with_swapped_prompts_is_named(folder, pictures):
    words = paired(folder, pictures)
    swapped = np.reshape(words, (-1, 4))[:, [0, 1, 3, 2]].ravel().tolist()  # half of all pairs
    tables = [prompted("sound", words), prompted("broken", swapped, COUNT)]
    tables.append(prompted("few", words[:8], 4 * COUNT))
    tables.append(prompted("bare", [None] * COUNT, 6 * COUNT))
    found = compare_prompts(tables, of_ids(pictures), folder)
    assert [line.partition(":")[0] for line in found] == [
        "Prompts of broken match its images no better than chance",
        "Prompts of sound match its images",
    ]
    assert "50 % of 24 pairs" in found[0]


def test_without_weights_it_is_said_that_nobody_looked(pictures):
    [told] = compare_prompts([prompted("sd", ["a dog"] * 3)], of_ids(pictures), None)
    assert "was not checked" in told
    assert compare_prompts([prompted("sd", [None] * 3)], of_ids(pictures), None) == []


def test_of_many_images_those_of_lowest_ids_are_read(folder, pictures):
    asked = []

    def some(ids):
        asked.extend(ids)
        return of_ids(pictures)(ids)

    tables = [prompted("sd", ["a dog"] * 500, start) for start in (500, 0)]
    compare_prompts(tables, some, folder)
    assert sorted(asked) == list(range(MAX_PER_GENERATOR))


@pytest.mark.parametrize(("ending", "finding"), [("jpg", "a shortcut"), ("png", "not known")])
def test_file_names_that_show_the_class_are_reported(tmp_path, ending, finding):
    rows = [{"label": label, "generator": label, "uri": f"/{number}/{label}.{end}"}
            for number in range(40) for label, end in (("real", ending), ("fake", "png"))]  # fmt: skip
    [told] = find_index_faults(made_index(tmp_path, rows), None)
    assert finding in told


def with_hashes(folder, rows, hashes):
    info = read_info(store := Store.open(made_index(folder, rows)))
    return describe_shared_images(store.url, type(info)(**{**vars(info), "hashes": hashes}))


def test_splits_that_share_pictures_are_told(tmp_path):
    def row(split, phash, sha256):
        hashes = {"phash": phash, "sha256": sha256}
        return {"label": "fake", "generator": "sd", "split": split} | hashes

    near = [row("train", "0f0f0f0f0f0f0f0f", "a"), row("test", "0f0f0f0f0f0f0f0e", "b")]
    [told] = with_hashes(tmp_path / "near", near, ["sha256", "phash"])
    assert "pictures that look alike: 2 images (test in train)" in told
    apart = [near[0], row("test", "ff00ff00aa5500ff", "c")]
    [told] = with_hashes(tmp_path / "apart", apart, ["sha256", "phash"])
    assert told == "Splits share no image, by sha256 and phash."
    assert with_hashes(tmp_path / "one", near[:1], ["sha256"]) == []
    assert "was not checked" in with_hashes(tmp_path / "bare", near, [])[0]


LEFT_OUT = "left out: 4 × spoiled by a documented fault of the data"


def test_documented_faults_are_reported_and_left_out(tmp_path):
    at = str(write_openfake(tmp_path / "set", 4))
    source = {"at": [at], "layout": "openfake", "arguments": {"version": "v1"}}
    columns, _, _ = random_rows(32)
    settings = {"at": (f"{tmp_path}/run",), "out": f"{tmp_path}/out", "thumbnails": False}
    for leaving_out, images in ((False, 32), (True, 28)):
        store = Store.open(f"{tmp_path}/index-{leaving_out}")
        build_index(DatasetSource(leave_out_faults=leaving_out, **source), store)
        if not leaving_out:
            ids = {"image_id": read_index(store.url)["image_id"].to_numpy()}
            made_run(tmp_path / "run", columns | ids)
        found = evaluate(EvaluateConfig(labels=store.url, **settings)).result
        faults = found.meta.faults
        assert found.meta.data.n == images
        assert (LEFT_OUT in faults) == leaving_out
        [told] = [text for text in faults if "openfake-v1-prompts" in text]
        assert "8 rows" in told
        assert ("prompts left out" in told) == leaving_out
        assert any("whether prompts belong" in text.lower() for text in faults)
        lines = [line.startswith("note: About the data.") for line in evaluation_lines(found)]
        assert sum(lines) == len(faults)
    by_layout = EvaluateConfig(**source | {"at": (at,), "leave_out_faults": True})
    with labels_for(by_layout, None, None, Store.open(f"{tmp_path}/made")) as labels:
        assert labels.rows == 28
        assert LEFT_OUT in labels.faults
    with pytest.raises(ConfigError, match="needs a layout"):
        evaluate(EvaluateConfig(labels=store.url, leave_out_faults=True, **settings))
