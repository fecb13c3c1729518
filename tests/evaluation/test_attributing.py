"""Named generators and prompts of joined rows; and the same of a run with images, through a small CLIP of the published format."""

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from ray_app.evaluation import attributing
from ray_app.evaluation.attributing import identification_of, prompts_of
from ray_app.evaluation.protocols import IdentificationRules
from ray_app.metrics.texts import bleu4, normalised_prompt, rouge_l, token_f1
from tests.runs.small_run import new_run

NAMES = ["flux", "sd", "sdxl"]


def tables_of(rows, size=7):
    """Joined rows as an evaluation gives them: some at a time, words as dictionaries, what is not there as null."""

    def tables(columns):
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            table = pa.table({name: pa.array([row.get(name) for row in part]) for name in columns})
            for place, name in enumerate(columns):
                if pa.types.is_null(table[name].type):
                    table = table.set_column(place, name, pa.nulls(len(part), pa.string()))
                elif name in ("label", "generator"):
                    table = table.set_column(place, name, table[name].dictionary_encode())
            yield table

    return tables


def named(n=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        truth, said = rng.choice(NAMES), rng.choice([*NAMES, None, "other"])
        rows.append({"label": "fake", "generator": str(truth), "predicted_generator": None if said is None else f" {said.upper()} "})
    reals = [("Flux", "real:coco"), (None, "real"), ("real", "real"), ("real:photo", "real")]
    return rows + [{"label": "real", "generator": truth, "predicted_generator": said} for said, truth in reals]


def test_generators_of_fakes_are_compared_without_case():
    rows = named()
    found = identification_of(tables_of(rows))
    fakes = [row for row in rows if row["label"] == "fake"]
    truth = [row["generator"] for row in fakes]
    said = [(row["predicted_generator"] or "(none)").strip().lower() for row in fakes]
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    for figure, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        assert found[figure]["value"] == pytest.approx(f1_score(truth, said, labels=NAMES, average=average, zero_division=0), abs=1e-12)
    assert (found["reals_named"]["value"], found["reals_named"]["n"]) == (0.25, 4)
    assert found["without_prediction"] == said.count("(none)")
    assert found["top_1"] == found["accuracy"]
    assert found["top_3"]["why"] == "no ranking of generators beside the predicted ones"
    assert found["pairs"][0][2] == max(pair[2] for pair in found["pairs"])
    assert {row["name"] for row in found["classes"]} == set(NAMES)
    json.dumps(found, allow_nan=False)


def test_rankings_and_confidences_are_used_where_rows_have_them():
    rng = np.random.default_rng(1)
    rows = [
        {"label": "fake", "generator": str(rng.choice(["sd", "flux", "new"])), "predicted_generator": "sd",
         "generator_ranking": [str(name) for name in rng.permutation(NAMES)], "generator_confidence": float(rng.random())}
        for _ in range(40)
    ]  # fmt: skip
    found = identification_of(tables_of(rows), rules=IdentificationRules(top_k=(1, 2)), known=["SD", "Flux"])
    among = [row for row in rows if row["generator"] != "new"]
    expected = [np.mean([row["generator"] in row["generator_ranking"][:k] for row in among]) for k in (1, 2)]
    assert [found["top_1"]["value"], found["top_2"]["value"]] == pytest.approx(expected)
    is_known, sure = [row["generator"] != "new" for row in rows], [row["generator_confidence"] for row in rows]
    assert found["open_set_auroc"]["value"] == pytest.approx(roc_auc_score(is_known, sure), abs=1e-12)
    assert (found["unknown_named"]["value"], found["accuracy"]["n"]) == (1, len(among))


def test_rows_of_tables_without_rankings_count_too():
    ranked = {"label": "fake", "generator": "sd", "predicted_generator": "sd", "generator_ranking": ["sd"], "generator_confidence": 0.5}
    bare = {"label": "fake", "generator": "flux", "predicted_generator": "sd"}
    found = identification_of(lambda names: [one for rows in ([ranked], [bare, bare]) for one in tables_of(rows)(names)])
    assert (found["accuracy"]["n"], found["accuracy"]["value"], found["top_3"]["n"]) == (3, pytest.approx(1 / 3), 3)


def test_dflip_s_rules_are_an_option():
    rows = [{"label": "fake", "generator": "sd", "predicted_generator": "This is an ai generated image by StableDiffusion."},
            {"label": "real", "generator": "real", "predicted_generator": None}]  # fmt: skip
    found = identification_of(tables_of(rows), rules=IdentificationRules(protocol="dflip-v1"), missing=2)
    assert (found["protocol"], found["accuracy"]["value"], found["detection"]["accuracy"]["value"]) == ("dflip-v1", 0.25, 0.25)


def test_runs_that_name_nothing_have_no_section(tmp_path):
    rows = [{"label": "fake", "generator": "sd", "prompt": "a cat", "image_id": 1}]
    assert identification_of(tables_of(rows)) is None
    assert identification_of(tables_of([])) is None
    run = new_run(tmp_path / "run")
    assert prompts_of(tables_of(rows), run) is None
    assert prompts_of(tables_of([{"predicted_prompt": "a cat", "image_id": 1}]), run) is None
    assert prompts_of(tables_of([]), run) is None


def prompted(n):
    rng = np.random.default_rng(2)
    words = np.array(["cat", "dog", "red", "(old:1.3)", "house", "<lora:x:1>", "fog"])
    rows = [
        {"image_id": int(one), "prompt": " ".join(rng.choice(words, 6)), "predicted_prompt": " ".join(rng.choice(words, 5))}
        for one in rng.permutation(n) - 5
    ]
    rows[0]["predicted_prompt"] = rows[1]["prompt"] = None
    return rows


def test_prompts_are_compared_without_syntax(tmp_path):
    rows = prompted(20)
    found = prompts_of(tables_of(rows), new_run(tmp_path / "run"))
    both = sorted((row for row in rows if row["prompt"] and row["predicted_prompt"]), key=lambda row: row["image_id"])
    said, truth = ([normalised_prompt(row[name]) for row in both] for name in ("predicted_prompt", "prompt"))
    for name, figure in (("bleu4", bleu4), ("rouge_l", rouge_l), ("token_f1", token_f1)):
        assert found[name] == figure(said, truth).row()
    assert {name: found[name] for name in ("with_prompt", "with_prediction", "with_both", "compared")} == {
        "with_prompt": 19, "with_prediction": 19, "with_both": 18, "compared": 18,
    }  # fmt: skip
    assert found["clip_text"]["why"] == "needs a folder of CLIP weights"
    json.dumps(found, allow_nan=False)


def test_of_very_many_prompts_those_of_lowest_id_stand_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(attributing, "MOST_PROMPTS", 4)
    rows = prompted(30)
    found = prompts_of(tables_of(rows, size=3), new_run(tmp_path / "run"))
    lowest = sorted((row for row in rows if row["prompt"] and row["predicted_prompt"]), key=lambda row: row["image_id"])[:4]
    assert (
        found["token_f1"] == token_f1(*([normalised_prompt(row[name]) for row in lowest] for name in ("predicted_prompt", "prompt"))).row()
    )
    assert (found["with_both"], found["compared"]) == (28, 4)
