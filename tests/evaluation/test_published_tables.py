"""Tables of papers from tiny data in the columns that it is published in, through layout and index."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score

from ray_app.datasets import DatasetSource, build_index, read_index
from ray_app.storage import Store
from tests.datasets.published import write_parquet
from tests.evaluation.made import made_run, measured


def table_under(protocol, folder, shard, layout, scores):
    """A protocol's table of a published shard, whose rows get these scores, as an index labels them; and the document's generators."""
    build_index(DatasetSource(at=str(shard), layout=layout), Store.open(str(folder / "index")))
    rows = read_index(str(folder / "index"))
    order = np.argsort(np.array(rows["member"].to_pylist(), int))
    columns = {"image_id": rows["image_id"].to_numpy()[order], "uri": rows["uri"].to_pylist(), "status": ["ok"] * len(rows)}
    columns["scores"] = pa.StructArray.from_arrays([pa.array(scores, pa.float32())] * 2, ["a", "b"])
    made_run(folder / "run", columns)
    document = measured(folder, labels=str(folder / "index"), protocol=protocol)
    return document["table"], document["systems"][0]["generators"]


FAMILIES = {"GAN": "GAN", "latent diffusion": "LatDiff", "pixel diffusion": "PixDiff", "commercial": "Commercial", "other": "other"}
MODELS = {"GALIP": "GAN", "StyleGAN3": "GAN", "kandinsky-2-2": "LatDiff", "DeepFloyd-IF": "PixDiff", "dalle3": "Commercial",
          "imagen3": "Commercial"}  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """CompEval's columns (data set card at 7d4a74a), with no generator of the family `other`."""
    folder, rng = tmp_path_factory.mktemp("families"), np.random.default_rng(3)
    makers = [*np.repeat([*MODELS], [4, 9, 6, 7, 5, 8]).tolist(), *np.repeat(["RAISE", "COCO"], 10).tolist()]
    n = len(makers)
    fake = [one in MODELS for one in makers]
    columns = {
        "image_name": [f"{number:08d}.png" for number in range(n)], "format": ["PNG"] * n, "mode": ["RGB"] * n,
        "image_data": [b"picture"] * n, "model_name": makers, "nsfw_flag": ["False"] * n, "prompt": [None] * n,
        "real_source": [None if one else maker for one, maker in zip(fake, makers, strict=True)], "subset": ["Manual"] * n,
        "split": ["test"] * n, "label": [int(one) for one in fake], "architecture": [MODELS.get(one, "real") for one in makers],
    }  # fmt: skip
    shard = write_parquet(folder / "data/CompEval-00000-of-00400.parquet", columns)
    scores = rng.normal(np.where(fake, 1, 0), 1).round(1).astype(np.float32)
    return *table_under("community-forensics", folder, shard, "community-forensics", scores), np.array(makers), np.array(fake), scores


def test_a_family_is_the_mean_of_its_generators(families):
    table, generators, makers, fake, scores = families
    precision = {
        one: average_precision_score(np.repeat([1, 0], [(makers == one).sum(), (~fake).sum()]),
                                     np.concatenate([scores[makers == one], scores[~fake]])) for one in MODELS
    }  # fmt: skip
    cells = table["cells"]["a"]
    for words, family in FAMILIES.items():
        cell, mine = cells[f"{words}, AP"], [value for one, value in precision.items() if MODELS[one] == family]
        assert cell["value"] == (pytest.approx(np.mean(mine), abs=1e-12) if mine else None)
    assert cells["other, AP"]["why"] == "no image of the data belongs here"
    counts = {row["name"]: row["n"] for row in table["rows"]}
    assert [counts[f"{words}, AP"] for words in FAMILIES] == [13, 6, 7, 13, 0]
    assert cells["commercial, AP"]["n"] == 13
    # Each generator stands beside its family, and counts once in their mean.
    assert cells["dalle3, AP"]["value"] == pytest.approx(precision["dalle3"], abs=1e-12)
    footers = {one["name"]: one["cells"]["a"] for one in table["footers"]}
    assert footers["mean AP of generators"]["value"] == pytest.approx(np.mean([*precision.values()]), abs=1e-12)
    assert footers["mean AP of the five families"]["why"].startswith("1 of 5 rows have no figure")
    assert {one["name"]: one.get("architecture") for one in generators if one["label"] == "fake"} == MODELS


def test_reals_are_of_no_architecture(families):
    assert not any("architecture" in one for one in families[1] if one["label"] == "real")
