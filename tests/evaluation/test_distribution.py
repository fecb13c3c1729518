"""Fakes in and out of distribution, of runs whose rows have what an identifier and a describer
write, against plain counting.
"""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.evaluation import write_run
from ray_app.evaluation.distribution import IN_TRAINING, NEW_FAMILY, NEW_VERSION
from tests.make.evaluations import cut, measured

CLASSES = ["sd-1.5", "midjourney-6"]
MAKERS = ["stable-diffusion", "midjourney-6", "midjourney-7", "imagen", "real:coco"]
COLUMNS = {
    "generator_ranking": pa.list_(pa.string()),
    "generator_confidence": pa.float32(),
    "generator_family": pa.string(),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A finished run with columns of labels of its own; its identity names the identifier's
    classes.
    """
    rng = np.random.default_rng(4)
    folder, n = tmp_path_factory.mktemp("groups"), 200
    makers = rng.choice(MAKERS, n)
    fake = makers != "real:coco"
    score = np.where(fake, 1, -1) + rng.normal(0, 1.5, n)
    best = rng.integers(0, 2, n)
    sure = rng.random(n).astype(np.float32)
    words = np.array(["a red cat", "old man", "film grain", "a house"])
    side = pa.array([100] * n, pa.int32())
    rows = {
        "image_id": np.arange(n), "uri": [f"/data/{one}.png" for one in range(n)], "occurrence": [0] * n,
        "status": ["ok"] * n, "format": ["PNG"] * n, "width": side, "height": side,
        "scores": pa.StructArray.from_arrays([pa.array(score, pa.float32())], ["a"]),
        "score": score,
        "probability": 1 / (1 + np.exp(-score)),
        "verdict": np.where(score > 0, "fake", "real").tolist(),
        "predicted_generator": [CLASSES[one] if there > 0.3 else None for one, there in zip(best, sure, strict=True)],
        "generator_ranking": [[CLASSES[one], CLASSES[1 - one]] for one in best],
        "generator_confidence": pa.array(sure),
        "predicted_prompt": [", ".join(rng.choice(words, 2)) if value > 0 else None for value in score],
        "input": pa.array([{"label": "fake" if is_fake else "real", "generator": maker,
                            "prompt": ", ".join(rng.choice(words, 2)) if is_fake else None}
                           for is_fake, maker in zip(fake, makers, strict=True)]),
    }  # fmt: skip
    run = write_run(folder / "run", cut(rows, [90]), ("a",), **COLUMNS, input=rows["input"].type)
    described = run.describe()
    identifier = {"name": "mine", "classes": CLASSES, "families": {}}
    described["identity"]["profile"] = {"identifier": identifier, "describe": "flagged"}
    run.write_json("run.json", described)
    return folder, rows, makers, score


@pytest.fixture(scope="module")
def result(case):
    return measured(case[0])


def test_classes_of_an_identifier_make_the_groups(case, result):
    _, rows, makers, score = case
    groups = {one.name: one for one in result.meta.groups}
    assert result.meta.groups_by == "identifier"
    assert {name: (one.distribution, one.generators) for name, one in groups.items()} == {
        IN_TRAINING: ("in", ("midjourney-6", "stable-diffusion")),
        NEW_VERSION: ("out", ("midjourney-7",)),
        NEW_FAMILY: ("out", ("imagen",)),
        "all out of distribution": ("out", ("imagen", "midjourney-7")),
    }
    mine = makers == "midjourney-7"
    found = groups[NEW_VERSION]
    assert found.n == mine.sum()
    detection = result.metrics.select("a", scope=found.scope)
    named = result.metrics.select(scope=found.scope)
    assert detection["tpr"].value == pytest.approx((score[mine] > 0).mean())
    both = mine | (makers == "real:coco")
    auc = roc_auc_score(mine[both], score[both].astype(np.float32))
    assert detection["auc"].value == pytest.approx(auc, abs=1e-9)
    said = np.array([one or "" for one in rows["predicted_generator"]])
    assert named["abstained"].value == pytest.approx((said[mine] == "").mean())
    assert named["family_accuracy"].value == pytest.approx((said[mine] == "midjourney-6").mean())
    assert named["accuracy"].why == "no image of a known generator"
    known = result.metrics.select(scope=groups[IN_TRAINING].scope)
    right = said == np.where(makers == "stable-diffusion", "sd-1.5", makers)
    assert known["accuracy"].value == pytest.approx(right[np.isin(makers, MAKERS[:2])].mean())
    outside = result.metrics.find("auc", "a", scope="group: all out of distribution").value
    away = np.isin(makers, ["imagen", "midjourney-7"])
    chosen = away | (makers == "real:coco")
    auc = roc_auc_score(away[chosen], score[chosen].astype(np.float32))
    assert outside == pytest.approx(auc, abs=1e-9)


def test_images_with_both_prompts_are_counted(case, result):
    _, rows, makers, _ = case
    assert result.meta.prompts.counts["with_both"] == sum(
        said is not None and maker != "real:coco"
        for said, maker in zip(rows["predicted_prompt"], makers, strict=True)
    )


def test_dflip_v1_has_its_own_groups(case):
    folder, _, makers, score = case
    found = measured(folder, protocol="dflip-v1")
    groups = {one.name: (one.distribution, one.n) for one in found.meta.groups}
    assert found.meta.groups_by == "protocol"
    assert groups["mj"] == ("in", np.isin(makers, MAKERS[1:3]).sum())
    assert groups["imagen"] == ("out", (makers == "imagen").sum())
    assert groups["parti"] == ("out", 0)
    detected, named, plain = (
        found.metrics.find("accuracy", scope=f"identification{part}")
        for part in (", detection", "", ", plain")
    )
    assert detected.value == pytest.approx(((score > 0) == (makers != "real:coco")).mean())
    assert named.n == (makers != "imagen").sum()
    assert plain.n == np.isin(makers, MAKERS[:2]).sum()
