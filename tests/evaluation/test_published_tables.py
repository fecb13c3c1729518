"""Tables of papers from tiny data in the columns that it is published in, through layout and index."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ray_app.datasets import DatasetSource, build_index, read_index
from ray_app.evaluation.protocols import load_protocol
from ray_app.storage import Store
from tests.make.evaluations import cells_of, footers_of, made_run, measured
from tests.make.published import picture, write_parquet


def table_under(protocol, folder, shard, layout, scores, *, with_input=False):
    """A protocol's table of a published shard, whose rows get these scores, as an index labels
    them, as an evaluation; and its generators.

    `with_input`: the run has the shard's own texts too, as a scored one has.
    """
    build_index(DatasetSource(at=str(shard), layout=layout), Store.open(str(folder / "index")))
    rows = read_index(str(folder / "index"))
    order = np.argsort(np.array(rows["member"].to_pylist(), int))
    columns = {"image_id": rows["image_id"].to_numpy()[order], "uri": rows["uri"].to_pylist()}
    columns["status"] = ["ok"] * len(rows)
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


FAMILIES = {"GAN": "GAN", "latent diffusion": "LatDiff", "pixel diffusion": "PixDiff"}
FAMILIES |= {"commercial": "Commercial", "other": "other"}
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
    table = table_under("community-forensics", folder, shard, "community-forensics", scores)
    return *table, np.array(makers), np.array(fake), scores


def precision_of(model, makers, fake, scores):
    """scikit-learn's: against the real images that it is paired with, weighted to as many; of an
    unknown model against all.
    """
    mine, source = makers == model, MODELS[model][1]
    reals = makers == source if source else ~fake
    weights = np.repeat([1, mine.sum() / reals.sum() if source else 1], [mine.sum(), reals.sum()])
    truth = np.repeat([1, 0], [mine.sum(), reals.sum()])
    both = np.concatenate([scores[mine], scores[reals]])
    return average_precision_score(truth, both, sample_weight=weights)


def test_family_is_the_mean_of_its_generators(families):
    table, generators, *data = families
    precision = {one: precision_of(one, *data) for one in MODELS}
    cells = cells_of(table)
    for words, family in FAMILIES.items():
        mine = [value for one, value in precision.items() if MODELS[one][0] == family]
        expected = pytest.approx(np.mean(mine), abs=1e-12) if mine else None
        assert cells[f"{words}, AP"].value == expected
    assert cells["other, AP"].why == "no image of the data belongs here"
    counts = {row.name: row.n for row in table.meta.table}
    assert [counts[f"{words}, AP"] for words in FAMILIES] == [13, 6, 7, 16, 0]
    # Each generator stands beside its family, and counts once in their mean.
    assert {one: cells[f"{one}, AP"].value for one in MODELS} == pytest.approx(precision, abs=1e-12)
    footers = footers_of(table)
    mean = np.mean([*precision.values()])
    assert footers["mean AP of generators"].value == pytest.approx(mean, abs=1e-12)
    assert footers["mean AP of the five families"].why.startswith("1 of 5 rows have no value")
    expected = {one: MODELS[one][0] for one in MODELS} | {UNTOLD: None}
    expected |= {f"real:{one}": None for one in SOURCES}
    assert {one.name: one.architecture for one in generators} == expected


def test_pairs_and_families_have_each_generator_once():
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
    scores = rng.normal(np.where(fake, 1, -1), 2).round(1).astype(np.float32)
    return write_parquet(folder / place, columns), fake, scores


REALS = ("real", "laion", "pexels", "docci", "imagenet")


def test_openfake_v1_by_generator(tmp_path):
    """Its four columns; a generator of a later state has a row of its own."""
    counts = {"real": 9, "sd-3.5": 4, "flux.1-dev": 3, "flux-1.1-pro": 1, "ideogram-3.0": 1}
    counts |= {"gpt-image-1": 1, "midjourney-6": 2}
    models = np.repeat([*counts], [*counts.values()]).tolist()
    shard, fake, scores = openfake(tmp_path, "data/test-00000-of-00017.parquet", models)
    table, _ = table_under("openfake-v1", tmp_path, shard, "openfake", scores)
    rows = {"real": "real", "Ideogram 3.0": "ideogram-3.0", "GPT Image 1": "gpt-image-1", "Flux 1.1-pro": "flux-1.1-pro",
            "Flux 1.0-dev": "flux.1-dev", "SD 3.5": "sd-3.5", "midjourney-6": "midjourney-6"}  # fmt: skip
    right = (scores > 0) == fake
    expected = {row: right[np.array(models) == model].mean() for row, model in rows.items()}
    cells = {row: cell.value for row, cell in cells_of(table).items()}
    assert cells == pytest.approx(expected, abs=1e-12)
    found = {name: one.value for name, one in footers_of(table).items()}
    five = [expected[row] for row in rows if row not in ("real", "midjourney-6")]
    averages = {
        "average TPR (unweighted)": np.mean(five),
        "average TPR of all generators (unweighted)": np.mean([*five, expected["midjourney-6"]]),
        "F1": f1_score(fake, scores > 0),
        "ROC AUC": roc_auc_score(fake, scores),
    }
    assert {name: found[name] for name in averages} == pytest.approx(averages, abs=1e-12)


def test_openfake_v2_by_source_year_and_generator(tmp_path):
    counts = {"laion": 4, "docci": 3, "sora-2": 3, "gpt-image-2": 4, "nano-banana-pro": 2}
    released = {"sora-2": "2025-09", "gpt-image-2": "2026-04", "nano-banana-pro": "2025-11"}
    models = np.repeat([*counts], [*counts.values()]).tolist()
    more = {"type": ["real" if one in REALS else "Base" for one in models]}
    more["release_date"] = [released.get(one) for one in models]
    shard, fake, scores = openfake(tmp_path, "core/test-00000-of-00013.parquet", models, **more)
    table, _ = table_under("openfake-v2", tmp_path, shard, "openfake", scores, with_input=True)
    right = (scores >= 0) == fake
    rows = {"real:docci": ["docci"], "real:laion": ["laion"]}
    rows |= {"released 2025": ["sora-2", "nano-banana-pro"], "released 2026": ["gpt-image-2"]}
    rows |= {name: [name] for name in ("sora-2", "nano-banana-pro", "gpt-image-2")}
    sizes = {row: np.isin(models, names).sum() for row, names in rows.items()}
    assert {row.name: row.n for row in table.meta.table} == sizes
    assert [row.name for row in table.meta.table] == list(rows)
    cells = {row: cell.value for row, cell in cells_of(table).items()}
    expected = {row: right[np.isin(models, names)].mean() for row, names in rows.items()}
    assert cells == pytest.approx(expected, abs=1e-12)
    footers = footers_of(table)
    tpr, accuracy = (footers[f"{name} (n-weighted)"].value for name in ("average TPR", "accuracy"))
    assert [tpr, accuracy] == pytest.approx([right[fake].mean(), right.mean()], abs=1e-12)
    # Dates in a file of labels replace those of the run.
    released["gpt-image-2"] = "2024"
    ids = read_index(str(tmp_path / "index")).sort_by("member")["image_id"].to_pylist()
    order = np.argsort(np.arange(len(models)).astype(str))
    labels = [
        {"image_id": one, "label": "fake" if fake[row] else "real", "generator": models[row]}
        | {"release_date": released.get(models[row])}
        for one, row in zip(ids, order, strict=True)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    found = measured(tmp_path, labels=f"{tmp_path}/labels.jsonl", protocol="openfake-v2")
    names = [row.name for row in found.meta.table if row.name.startswith("released")]
    assert names == ["released 2024", "released 2025"]
    assert cells_of(found)["released 2024"].value == pytest.approx(expected["gpt-image-2"])


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
    rates = {"TNR": (~said[~fake]).mean(), "TPR": said[fake].mean()}
    assert cells == pytest.approx(rates, abs=1e-12)
    figures = {"accuracy": (said == fake).mean(), "balanced accuracy": sum(rates.values()) / 2}
    figures |= {"F1": f1_score(fake, said), "ROC AUC": roc_auc_score(fake, scores)}
    found = {name: one.value for name, one in footers_of(table).items()}
    assert found == pytest.approx(figures, abs=1e-12)


def test_opensdi_by_generator(tmp_path):
    """F1 as if there were as many real images as fakes of each generator, of its whole fakes and
    edited ones together.
    """
    rng, keys = np.random.default_rng(4), []
    for maker, whole, part in (("sd15", 4, 5), ("flux", 3, 2)):
        counts = {"partial/{}/fake": part, "entire/{}/fake": whole}
        counts |= {"partial/{}/real": 3, "entire/{}/real": 2}
        for place, n in counts.items():
            first = len(keys)
            keys += [f"{place.format(maker)}/{first + number:09}.jpg" for number in range(n)]
    fake = np.array(["/fake/" in one for one in keys])
    is_edit = [one.startswith("partial") and "/fake/" in one for one in keys]
    columns = {"key": keys, "image": [picture(number) for number in range(len(keys))]}
    columns["mask"] = [picture(90, "L") if edit else None for edit in is_edit]
    columns["label"] = fake.astype(int).tolist()
    path = tmp_path / "OpenSDI_test/data/sd15-00000-of-00019.parquet"
    shard = write_parquet(path, columns, ("image", "mask"), ["real", "fake"])
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
    counts = {f"{one.name} {one.kind}": one.n for one in generators}
    edits = {"sd15 local": 5, "flux local": 2}
    assert counts == edits | {"sd15 whole": 4, "flux whole": 3, "real real": 10}
