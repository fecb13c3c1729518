"""A run evaluated under a protocol, from its rows to its table."""

import json

import numpy as np
import pyarrow as pa
import pytest
import yaml

from benchmarks.evaluation import write_run
from ray_app.config import named_configs
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.run import evaluate
from tests.evaluation.made import cells_of, cut, footers_of, measured, random_rows

RELEASED = {"flux": "2024-08-01", "sd-3": "2024-02-22", "inpainter": "2025"}


def with_own_labels(folder):
    """A run whose source had columns of labels, as OpenFake version 2 has."""
    columns, truths, scores = random_rows(300, seed=5)
    inputs = [
        {
            "label": one["label"],
            "generator": one["generator"],
            "release_date": RELEASED.get(one["generator"]),
        }
        for one in truths
    ]
    columns["input"] = pa.array(inputs)
    write_run(folder, cut(columns, ()), ("a", "b"), input=columns["input"].type)
    return truths, scores


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    truths, scores = with_own_labels(folder / "run")
    rules = yaml.safe_load(named_configs("evaluate")["openfake-v2"].read_text(encoding="utf-8"))
    (folder / "rules.yaml").write_text(
        yaml.safe_dump(rules | {"layout": None, "arguments": {}, "split": None})
    )
    config = EvaluateConfig(at=(str(folder / "run"),), out=str(folder / "figures"), protocol=str(folder / "rules.yaml"),
                            thumbnails=False)  # fmt: skip
    return folder, truths, scores, evaluate(config).result


def test_rows_by_release_are_the_shares_of_their_images(case):
    _, truths, scores, table = case
    names = [row.name for row in table.meta.table]
    assert names == [
        "real",
        "real:camera",
        "released 2024",
        "released 2025",
        "sd-3",
        "flux",
        "inpainter",
    ]
    score = scores["b"]
    for year in ("2024", "2025"):
        mine = np.array(
            [RELEASED.get(one["generator"], "").startswith(year) for one in truths]
        ) & np.isfinite(score)
        assert cells_of(table, "b")[f"released {year}"].value == pytest.approx(
            (score[mine] >= 0).mean(), abs=1e-12
        )
        assert cells_of(table, "b")[f"released {year}"].n == mine.sum()


def test_a_file_of_labels_may_tell_the_releases(case, tmp_path):
    """The dates of the file hold, also over the run's own."""
    folder, truths, _, before = case
    later = {"flux": "2024", "sd-3": "2026-01-01", "inpainter": "2024-12-31"}
    labels = [{"uri": f"/data/{number:06d}.jpg", "member": None if number % 7 else f"{number}.png", "label": truth["label"],
               "generator": truth["generator"], "release_date": later.get(truth["generator"])}
              for number, truth in enumerate(truths)]  # fmt: skip
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    table = measured(
        folder, labels=str(tmp_path / "labels.jsonl"), protocol=str(folder / "rules.yaml")
    )
    assert [row.name for row in table.meta.table] == [
        "real",
        "real:camera",
        "released 2024",
        "released 2026",
        "flux",
        "inpainter",
        "sd-3",
    ]
    assert cells_of(table, "b")["released 2026"] == cells_of(before, "b")["sd-3"]


def test_a_score_at_the_threshold_is_fake_under_version_two(case):
    """Version 2 takes P(fake) of one half for fake, and others do not."""
    _, truths, scores, table = case
    fakes = np.array([one["label"] == "fake" for one in truths]) & np.isfinite(scores["a"])
    at = scores["a"][fakes] == 0
    assert at.any()
    weighted = footers_of(table)["average TPR (n-weighted)"]
    assert weighted.value == pytest.approx((scores["a"][fakes] >= 0).mean(), abs=1e-12)
