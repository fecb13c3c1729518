"""Named generators and prompts of joined rows; and the same of a run with images, through a small
CLIP of the published format.
"""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from ray_app.evaluation.generator_names import Names
from ray_app.evaluation.identification import collect_answers, measure_answers
from ray_app.evaluation.prompts import collect_prompts
from ray_app.metrics.table import MetricsTable
from tests.make.small_run import new_run


def identification_of(tables, *, known=(), **more):
    answers = collect_answers(tables, Names(known))
    if answers is None:
        return None
    infos, rows = measure_answers(answers, **more)
    return {one.scope: one for one in infos}, MetricsTable(tuple(rows))


SCHEMA = {"image_id": pa.int64(), "generator_confidence": pa.float32()}
SCHEMA["generator_ranking"] = pa.list_(pa.string())
SCHEMA |= dict.fromkeys(("label", "generator"), pa.dictionary(pa.int32(), pa.string()))


def tables_of(rows, size=7):
    """Joined rows as an evaluation gives them, `size` at a time; absent values are null."""

    def tables(columns):
        schema = pa.schema([(name, SCHEMA.get(name, pa.string())) for name in columns])
        for start in range(0, len(rows), size):
            yield pa.Table.from_pylist(rows[start : start + size], schema)

    return tables


CLASSES = ["sd-1.5", "sdxl", "midjourney-6"]


def by_hand():
    """Labels with other spellings, another version, another family; abstentions; an image that
    nobody was asked about.
    """

    def row(truth, *answer):
        named = ("predicted_generator", "generator_ranking", "generator_confidence")
        return {"label": "fake", "generator": truth} | dict(zip(named, answer, strict=True))

    return [
        row("SD 1.5", "sd-1.5", ["sd-1.5", "sdxl", "midjourney-6"], 0.9),  # right
        row("stable-diffusion", "sdxl", ["sdxl", "sd-1.5", "midjourney-6"], 0.8),  # the second
        # given up, though the nearest is right
        row("sdxl", None, ["sdxl", "sd-1.5", "midjourney-6"], 0.1),
        row("mj-6", "sd-1.5", ["sd-1.5", "sdxl", "midjourney-6"], 0.7),  # the third
        row("midjourney-6", None, None, None),  # nobody asked
        # its family is right
        row("midjourney-7", "midjourney-6", ["midjourney-6", "sd-1.5", "sdxl"], 0.6),
        row("imagen-3", None, ["sdxl", "sd-1.5", "midjourney-6"], 0.2),  # rightly given up
        row("sd_1.5/DreamShaper", "sd-1.5", ["sd-1.5", "sdxl", "midjourney-6"], 0.85),
        row("real:coco", None, ["sdxl"], 0.0) | {"label": "real"},
    ]  # fmt: skip


def test_generators_and_families_by_hand():
    infos, metrics = identification_of(tables_of(by_hand(), size=4), known=CLASSES)
    value = {
        name: (one.value, one.n) for name, one in metrics.select(scope="identification").items()
    }
    assert value["accuracy"] == (1 / 5, 5)
    assert [value[f"top_{k}"] for k in (1, 3, 5)] == [(2 / 5, 5), (4 / 5, 5), (4 / 5, 5)]
    assert value["abstained_known"] == (1 / 4, 4)
    assert value["abstained_unknown"] == (1 / 3, 3)
    assert value["unknown_named"] == (2 / 3, 3)
    assert value["reals_named"] == (0, 1)
    known = [True, True, True, True, False, False, False]
    auroc = roc_auc_score(known, [0.9, 0.8, 0.1, 0.7, 0.6, 0.2, 0.85])
    assert value["open_set_auroc"] == (pytest.approx(auroc), 7)
    families = metrics.select(scope="identification, families")
    # sd_1.5 twice and sdxl, midjourney thrice, of which 1 sd right, 1 midjourney right, the
    # fine-tuned model right
    assert (families["accuracy"].value, families["accuracy"].n) == (pytest.approx(3 / 7), 7)
    assert families["top_1"].value == pytest.approx(4 / 7)
    assert families["top_3"].value == pytest.approx(6 / 7)
    classes = {one.name for one in infos["identification, families"].classes}
    assert classes == {"sd_1.5", "sdxl_1.0", "midjourney"}
    assert families["abstained_unknown"].value == 1
    info = infos["identification"]
    assert info.counts == {"without_prediction": 3, "not_asked": 1}
    # spelt as the labels spell it
    assert [one.name for one in info.classes][:2] == ["mj-6", "SD 1.5"]
    assert metrics.find("recall", scope=info.get_scope("SD 1.5")).value == 1 / 2


def test_runs_that_name_nothing_have_no_section(tmp_path):
    rows = [{"label": "fake", "generator": "sd", "prompt": "a cat", "image_id": 1}]
    assert identification_of(tables_of(rows)) is None
    assert identification_of(tables_of([])) is None
    run = new_run(tmp_path / "run")
    assert collect_prompts(tables_of(rows), run) is None
    assert collect_prompts(tables_of([{"predicted_prompt": "a cat", "image_id": 1}]), run) is None
    assert collect_prompts(tables_of([]), run) is None


def prompted(n):
    rng = np.random.default_rng(2)
    words = np.array(["cat", "dog", "red", "(old:1.3)", "house", "<lora:x:1>", "fog"])
    rows = [
        {"image_id": int(one), "prompt": " ".join(rng.choice(words, 6))}
        | {"predicted_prompt": " ".join(rng.choice(words, 5))}
        for one in rng.permutation(n) - 5
    ]
    rows[0]["predicted_prompt"] = rows[1]["prompt"] = None
    return rows


def test_prompts_are_counted_and_need_images_made_from_them(tmp_path):
    rows = prompted(20)
    found = collect_prompts(tables_of(rows), new_run(tmp_path / "run"))
    counts = {"with_prompt": 19, "with_prediction": 19, "with_both": 18, "compared": 18}
    assert found.info.counts == counts | {"not_regenerated": 0}
    why = "needs images generated from the predicted prompts: --regenerated"
    assert found.figures["clip_image"].why == why
