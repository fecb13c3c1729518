"""Tables of papers from tiny data in the columns that it is published in, through layout and index."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ray_app.datasets import DatasetSource, build_index, read_index
from ray_app.evaluation.protocols import load_protocol
from ray_app.storage import Store
from tests.datasets.published import picture, write_parquet
from tests.evaluation.made import cells_of, footers_of, made_run, measured


def table_under(protocol, folder, shard, layout, scores, *, with_input=False):
    """A protocol's table of a published shard, whose rows get these scores, as an index labels
    them, as an evaluation; and its generators.

    `with_input`: the run has the shard's own texts too, as a scored one has.
    """
    build_index(DatasetSource(at=str(shard), layout=layout), Store.open(str(folder / "index")))
    rows = read_index(str(folder / "index"))
    order = np.argsort(np.array(rows["member"].to_pylist(), int))
    columns = {
        "image_id": rows["image_id"].to_numpy()[order],
        "uri": rows["uri"].to_pylist(),
        "status": ["ok"] * len(rows),
    }
    columns["scores"] = pa.StructArray.from_arrays([pa.array(scores, pa.float32())] * 2, ["a", "b"])
    more = {}
    if with_input:
        texts = [one for one in pq.read_schema(shard) if one.type == pa.string()]
        columns["input"] = pa.StructArray.from_arrays(
            [pq.read_table(shard)[one.name].combine_chunks() for one in texts], fields=texts
        )
        more["input"] = columns["input"].type
    made_run(folder / "run", columns, **more)
    result = measured(folder, labels=str(folder / "index"), protocol=protocol)
    return result, next(one.generators for one in result.meta.systems if one.name == "a")


FAMILIES = {
    "GAN": "GAN",
    "latent diffusion": "LatDiff",
    "pixel diffusion": "PixDiff",
    "commercial": "Commercial",
    "other": "other",
}
# By model its family, the real images that it is paired with, and how many it has. The protocol
# does not know the name of the last.
MODELS = {"GALIP": ("GAN", "raise", 4), "DFGAN": ("GAN", "coco", 9), "kandinsky_2_2": ("LatDiff", "raise", 6),
          "Hourglass": ("PixDiff", "ffhq", 7), "Dalle3": ("Commercial", "laion", 5), "Imagen3": ("Commercial", "laion", 8),
          "newer": ("Commercial", None, 3)}  # fmt: skip
UNTOLD = "DFGAN"  # its rows say nothing of the architecture: its name is enough
SOURCES = {"raise": 10, "coco": 3, "laion": 20, "ffhq": 5}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """CompEval's columns (data set card at 7d4a74a), with no generator of the family `other`."""
    folder, rng = tmp_path_factory.mktemp("families"), np.random.default_rng(3)
    makers = [
        *(one for one, (_, _, n) in MODELS.items() for _ in range(n)),
        *(one for one, n in SOURCES.items() for _ in range(n)),
    ]
    n, fake = len(makers), [one in MODELS for one in makers]
    columns = {
        "image_name": [f"{number:08d}.png" for number in range(n)], "format": ["PNG"] * n, "mode": ["RGB"] * n,
        "image_data": [b"picture"] * n, "model_name": [one if one in MODELS else "real" for one in makers], "nsfw_flag": ["False"] * n,
        "prompt": [None] * n, "real_source": [MODELS[one][1] if one in MODELS else one for one in makers], "subset": ["Manual"] * n,
        "split": ["test"] * n, "label": [int(one) for one in fake],
        "architecture": [None if one == UNTOLD else MODELS[one][0] if one in MODELS else "real" for one in makers],
    }  # fmt: skip
    shard = write_parquet(folder / "data/CompEval-00000-of-00413.parquet", columns)
    scores = rng.normal(np.where(fake, 1, 0), 1).round(1).astype(np.float32)
    return (
        *table_under("community-forensics", folder, shard, "community-forensics", scores),
        np.array(makers),
        np.array(fake),
        scores,
    )


def precision_of(model, makers, fake, scores):
    """scikit-learn's: against the real images that it is paired with, weighted to as many; of an
    unknown model against all.
    """
    mine, source = makers == model, MODELS[model][1]
    reals = makers == source if source else ~fake
    weights = np.repeat([1, mine.sum() / reals.sum() if source else 1], [mine.sum(), reals.sum()])
    truth = np.repeat([1, 0], [mine.sum(), reals.sum()])
    return average_precision_score(
        truth, np.concatenate([scores[mine], scores[reals]]), sample_weight=weights
    )


def test_a_family_is_the_mean_of_its_generators_each_against_its_own_reals(families):
    table, generators, *data = families
    precision = {one: precision_of(one, *data) for one in MODELS}
    cells = cells_of(table)
    for words, family in FAMILIES.items():
        cell, mine = (
            cells[f"{words}, AP"],
            [value for one, value in precision.items() if MODELS[one][0] == family],
        )
        assert cell.value == (pytest.approx(np.mean(mine), abs=1e-12) if mine else None)
    assert cells["other, AP"].why == "no image of the data belongs here"
    counts = {row.name: row.n for row in table.meta.table}
    assert [counts[f"{words}, AP"] for words in FAMILIES] == [13, 6, 7, 16, 0]
    # Each generator stands beside its family, and counts once in their mean.
    assert {one: cells[f"{one}, AP"].value for one in MODELS} == pytest.approx(precision, abs=1e-12)
    footers = footers_of(table)
    assert footers["mean AP of generators"].value == pytest.approx(
        np.mean([*precision.values()]), abs=1e-12
    )
    assert footers["mean AP of the five families"].why.startswith("1 of 5 rows have no figure")
    told = {one.name: one.architecture for one in generators}
    assert told == {one: None if one == UNTOLD else MODELS[one][0] for one in MODELS} | {
        f"real:{one}": None for one in SOURCES
    }


def test_the_protocols_pairs_and_families_are_of_all_its_generators_once():
    """21 of them; Hourglass has two sets of real images."""
    rules = load_protocol("community-forensics")
    named = [one for row in rules.rows for one in row.generators]
    paired = [one for globs in rules.paired.values() for one in globs]
    assert len(named) == len({*named}) == 21
    assert sorted(paired) == sorted([*named, "Hourglass"])


def openfake(folder, place, models, **more):
    """A shard of OpenFake, whose real images have the model `real` or one of version 2's sources;
    its table under a protocol, and truth.
    """
    rng, n = np.random.default_rng(7), len(models)
    fake = np.array([one is not None and one not in REALS for one in models])
    columns = {"image": [picture(number) for number in range(n)], "prompt": [f"photo {number}" for number in range(n)],
               "label": np.where(fake, "fake", "real").tolist(), "model": models, **more}  # fmt: skip
    scores = rng.normal(np.where(fake, 1, -1), 1).round(1).astype(np.float32)
    return write_parquet(folder / place, columns), fake, scores


REALS = ("real", "laion", "pexels", "docci", "imagenet")


def test_openfake_v1_by_generator(tmp_path):
    """Its four columns; a generator of a later state has a row of its own."""
    models = [
        *("real",) * 9,
        *("sd-3.5",) * 4,
        *("flux.1-dev",) * 3,
        "flux-1.1-pro",
        "ideogram-3.0",
        "gpt-image-1",
        *("midjourney-6",) * 2,
    ]
    shard, fake, scores = openfake(tmp_path, "data/test-00000-of-00017.parquet", models)
    table, _ = table_under("openfake-v1", tmp_path, shard, "openfake", scores)
    rows = {"real": "real", "Ideogram 3.0": "ideogram-3.0", "GPT Image 1": "gpt-image-1", "Flux 1.1-pro": "flux-1.1-pro",
            "Flux 1.0-dev": "flux.1-dev", "SD 3.5": "sd-3.5", "midjourney-6": "midjourney-6"}  # fmt: skip
    right = (scores > 0) == fake
    expected = {row: right[np.array(models) == model].mean() for row, model in rows.items()}
    assert {row: cell.value for row, cell in cells_of(table).items()} == pytest.approx(
        expected, abs=1e-12
    )
    found = {name: one.value for name, one in footers_of(table).items()}
    five = [expected[row] for row in rows if row not in ("real", "midjourney-6")]
    assert found["average TPR (unweighted)"] == pytest.approx(np.mean(five), abs=1e-12)
    assert found["average TPR of all generators (unweighted)"] == pytest.approx(
        np.mean([*five, expected["midjourney-6"]]), abs=1e-12
    )
    assert found["F1"] == pytest.approx(f1_score(fake, scores > 0), abs=1e-12)
    assert found["ROC AUC"] == pytest.approx(roc_auc_score(fake, scores), abs=1e-12)


def test_openfake_v2_by_source_year_and_generator(tmp_path):
    models = [
        *("laion",) * 4,
        *("docci",) * 3,
        *("sora-2",) * 3,
        *("gpt-image-2",) * 4,
        *("nano-banana-pro",) * 2,
    ]
    dates = [
        {"sora-2": "2025-09", "gpt-image-2": "2026-04", "nano-banana-pro": "2025-11"}.get(one)
        for one in models
    ]
    kinds = ["real" if one in REALS else "Base" for one in models]
    shard, fake, scores = openfake(
        tmp_path, "core/test-00000-of-00013.parquet", models, type=kinds, release_date=dates
    )
    table, _ = table_under("openfake-v2", tmp_path, shard, "openfake", scores, with_input=True)
    models, right = np.array(models), (scores >= 0) == fake
    of = {
        "real:docci": "docci",
        "real:laion": "laion",
        **{one: one for one in ("sora-2", "nano-banana-pro", "gpt-image-2")},
    }
    assert [row.name for row in table.meta.table] == [
        "real:docci", "real:laion", "released 2025", "released 2026", "sora-2", "nano-banana-pro", "gpt-image-2"]  # fmt: skip
    cells = {row: cell.value for row, cell in cells_of(table).items()}
    assert {row: cells[row] for row in of} == pytest.approx(
        {row: right[models == one].mean() for row, one in of.items()}, abs=1e-12
    )
    assert cells["released 2025"] == pytest.approx(
        right[(models == "sora-2") | (models == "nano-banana-pro")].mean(), abs=1e-12
    )
    assert footers_of(table)["average TPR (n-weighted)"].value == pytest.approx(
        right[fake].mean(), abs=1e-12
    )
    assert footers_of(table)["accuracy (n-weighted)"].value == pytest.approx(
        right.mean(), abs=1e-12
    )


@pytest.mark.parametrize("named", [True, False])
def test_openfake_in_the_wild_is_one_row_of_each_class(tmp_path, named):
    """Whether its rows name a model is not known: the authors' code writes `reddit`, or none."""
    rng, fake = np.random.default_rng(9), np.repeat([True, False], [8, 7])
    columns = {"image": [picture(number) for number in range(15)], "prompt": [None] * 15, "label": np.where(fake, "fake", "real").tolist(),
               "model": ["reddit" if named else None] * 15, "type": [None] * 15, "release_date": [None] * 15}  # fmt: skip
    scores = rng.normal(np.where(fake, 1, -1), 1.5).round(1).astype(np.float32)
    shard = write_parquet(tmp_path / "reddit/test-00000-of-00005.parquet", columns)
    table, _ = table_under("openfake-v2-reddit", tmp_path, shard, "openfake", scores)
    said = scores >= 0
    cells = {row: cell.value for row, cell in cells_of(table).items()}
    assert cells == pytest.approx(
        {"TNR": (~said[~fake]).mean(), "TPR": said[fake].mean()}, abs=1e-12
    )
    figures = {"accuracy": (said == fake).mean(), "balanced accuracy": (said[fake].mean() + (~said[~fake]).mean()) / 2,
               "F1": f1_score(fake, said), "ROC AUC": roc_auc_score(fake, scores)}  # fmt: skip
    found = {name: one.value for name, one in footers_of(table).items()}
    assert found == pytest.approx(figures, abs=1e-12)


def test_opensdi_by_generator_over_whole_images_and_parts(tmp_path):
    """F1 as if there were as many real images as fakes of each generator, of its whole fakes and
    edited ones together.
    """
    rng, keys = np.random.default_rng(4), []
    for maker, whole, part in (("sd15", 4, 5), ("flux", 3, 2)):
        for kind, label, n in (
            ("partial", "fake", part),
            ("entire", "fake", whole),
            ("partial", "real", 3),
            ("entire", "real", 2),
        ):
            keys += [f"{kind}/{maker}/{label}/{len(keys) + number:09}.jpg" for number in range(n)]
    fake = np.array(["/fake/" in one for one in keys])
    masks = [
        picture(90, "L") if one.startswith("partial") and "/fake/" in one else None for one in keys
    ]
    columns = {
        "key": keys,
        "image": [picture(number) for number in range(len(keys))],
        "mask": masks,
        "label": fake.astype(int).tolist(),
    }
    shard = write_parquet(
        tmp_path / "OpenSDI_test/data/sd15-00000-of-00019.parquet",
        columns,
        ("image", "mask"),
        ["real", "fake"],
    )
    scores = rng.normal(np.where(fake, 1, -1), 1.5).round(1).astype(np.float32)
    table, generators = table_under("opensdi", tmp_path, shard, "opensdi", scores)
    said = scores > 0
    for row, maker in (("SD1.5", "sd15"), ("Flux.1", "flux")):
        mine = fake & np.array([f"/{maker}/" in one for one in keys])
        chosen = mine | ~fake
        weights = np.where(fake, 1.0, mine.sum() / (~fake).sum())[chosen]
        expected = f1_score(fake[chosen], said[chosen], sample_weight=weights)
        assert cells_of(table)[f"{row}, F1"].value == pytest.approx(expected, abs=1e-12)
        balanced = (said[mine].mean() + (~said[~fake]).mean()) / 2
        assert cells_of(table)[f"{row}, accuracy"].value == pytest.approx(balanced, abs=1e-12)
    counts = {(one.name, one.kind): one.n for one in generators}
    assert counts == {
        ("sd15", "local"): 5,
        ("sd15", "whole"): 4,
        ("flux", "local"): 2,
        ("flux", "whole"): 3,
        ("real", "real"): 10,
    }
