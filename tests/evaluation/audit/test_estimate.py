import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.audit.estimate import estimate, read_answers
from ray_app.evaluation.audit.sample import FACTS, SAMPLE, draw_sample, read_audit
from ray_app.metrics.survey_sampling import archive_figures
from tests.evaluation.audit.made import archive, run_of, truth_of


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    columns, fake = archive(count=3000)
    run = run_of(folder / "run", columns)
    out = folder / "out"
    out.mkdir()
    audit = draw_sample(run.store.url, 300, out, pictures=False)
    return run, out, audit, truth_of(columns, fake)


def rows_of(world):
    with open(world[1] / SAMPLE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row | {"label": "fake" if world[3][int(row["image_id"])] else "real"} for row in rows]


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        written = csv.DictWriter(file, list(rows[0]))
        written.writeheader()
        written.writerows(rows)
    return str(path)


def test_answers_are_equal_in_every_form(world, tmp_path):
    run, out, audit, truth = world
    assert (read_audit(out).images, read_audit(out).strata) == (audit.images, audit.strata)
    assert json.loads((out / FACTS).read_text())["run"] == run.store.url
    rows = rows_of(world)
    expected = read_answers(write(tmp_path / "labels.csv", rows), audit)
    assert expected.labelled == 300
    assert expected.blank == expected.unsure == expected.others == 0
    for one, stratum in zip(expected.strata, audit.strata, strict=True):
        assert (one.size, one.labelled) == (stratum.size, stratum.drawn)
        assert one.flagged == (stratum.verdict == "fake")
    fakes = [truth[one["image_id"]] for one in audit.images]
    assert sum(one.fakes for one in expected.strata) == sum(fakes)
    ids, labels = [int(row["image_id"]) for row in rows], [row["label"] for row in rows]
    lines = [
        {"image_id": one, "label": label == "fake"} for one, label in zip(ids, labels, strict=True)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pq.write_table(pa.table({"image_id": ids, "label": labels}), tmp_path / "labels.parquet")
    numbers = [
        f"{one};{'1.0' if label == 'fake' else '0.0'}"
        for one, label in zip(ids, labels, strict=True)
    ]
    text = "\r\n".join(["Image_ID;LABEL", *numbers])
    (tmp_path / "excel.csv").write_text(text, encoding="utf-8-sig")
    for name in ("labels.jsonl", "labels.parquet", "excel.csv"):
        assert read_answers(str(tmp_path / name), audit) == expected, name


@pytest.mark.parametrize(
    "mangle",
    [lambda text: f"{int(text):.5E}", lambda text: str(round(int(text), -5)), lambda text: ""],
)
def test_rounded_ids_are_replaced_by_names_of_files(world, tmp_path, mangle):
    rows = rows_of(world)
    expected = read_answers(write(tmp_path / "labels.csv", rows), world[2])
    mangled = [row | {"image_id": mangle(row["image_id"])} for row in rows]
    assert read_answers(write(tmp_path / "mangled.csv", mangled), world[2]) == expected


def test_labels_that_are_not_of_the_sample_are_refused(world, tmp_path):
    first, second = rows_of(world)[:2]
    turned = "real" if first["label"] == "fake" else "fake"
    twice = rf"image {first['image_id']} is labelled {first['label']} and {turned}"
    for rows, said in (
        ([first, second | {"label": "maybe"}], "row 2: 'maybe' is not a label"),
        ([first, second, first | {"label": turned}], twice),
        ([first | {"label": ""}], "no label matches any of the 300 images"),
        ([{"file": "x", "label": "real"}], "labels need the columns"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_answers(write(tmp_path / "labels.csv", rows), world[2])


def test_document_has_figures_and_notes(world, tmp_path):
    run, out, audit, truth = world
    rows = rows_of(world)
    rows[0]["label"], rows[1]["label"] = "", " Unsure "
    other = rows[2] | {"image_id": "12345", "uri": "/elsewhere.jpg"}
    document = estimate(run.store.url, write(out / "labels.csv", [*rows, other, rows[3]]), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == document
    answers = read_answers(str(out / "labels.csv"), audit)
    assert (answers.blank, answers.unsure, answers.others, answers.labelled) == (1, 1, 1, 298)
    figures = archive_figures(answers.strata)
    assert document["figures"] == {name: one.to_dict() for name, one in figures.items()}
    prevalence = document["figures"]["prevalence"]
    low, high = prevalence["low"], prevalence["high"]
    assert low < sum(truth.values()) / len(truth) < high
    assert (document["promise"], document["findings"]) == (None, []), "the card promises nothing"
    assert [one["fakes"] for one in document["strata"]] == [one.fakes for one in answers.strata]
    unscored = sum(audit.facts["unscored"].values())
    assert document["notes"] == [
        f"{unscored:,} files of the archive without a verdict: nothing is known of them",
        "1 image left out as unsure, as if not drawn",
        "1 image of the sample without a label: as if not drawn",
        "1 label left out: of images that were not drawn",
    ]


def test_labels_of_another_run_are_refused(world, tmp_path):
    run, out, _, _ = world
    labels = write(out / "labels.csv", rows_of(world))
    described = run.describe()
    other = run_of(tmp_path / "other", archive(count=100)[0])
    with pytest.raises(ConfigError, match="from another run"):
        estimate(other.store.url, labels, out)
    with pytest.raises(ConfigError, match="there is no folder"):
        estimate(str(tmp_path / "nowhere"), labels, out)
    decided = described["identity"] | {"decision": {"rule": "max"}}
    run.write_json("run.json", described | {"identity": decided})
    try:
        note = estimate(run.store.url, labels, out)["notes"][0]
        assert note.startswith("the run was decided again since the sample was drawn")
    finally:
        run.write_json("run.json", described)


def test_sample_is_not_drawn_again_nor_from_nothing(world, tmp_path):
    run, out, audit, _ = world
    with pytest.raises(ConfigError, match="has a sample already"):
        draw_sample(run.store.url, 300, out, pictures=False)
    columns, _ = archive(count=60, failing=1.1)
    with pytest.raises(ConfigError, match="no image of the run has a verdict"):
        draw_sample(run_of(tmp_path / "failed", columns).store.url, 50, tmp_path, pictures=False)
    columns, _ = archive(count=60, failing=0, without=0)
    reals = run_of(tmp_path / "reals", columns | {"verdict": ["real"] * 60}).store.url
    with pytest.raises(ConfigError, match="no image is flagged as fake"):
        draw_sample(reals, 50, tmp_path, only_flagged=True, pictures=False)
    with pytest.raises(ConfigError, match=r"no audit\.json in"):
        read_audit(tmp_path)
    assert read_audit(tmp_path, out).images == audit.images
    (tmp_path / FACTS).write_text('{"strata": [1]}')
    with pytest.raises(ConfigError, match="was not written by"):
        read_audit(tmp_path)


def card(target):
    guarantee = {"target_fpr": target, "n_real": 3000, "false_positives": 1, "upper_bound": target}
    members = [{"detector": "a"}]
    return {"name": "calibrated", "title": "t", "members": members, "guarantee": guarantee}


def answer_of(folder, target, number, *, only_flagged, columns, fake):
    run = run_of(folder / "run", columns, ensemble=card(target))
    audit = draw_sample(run.store.url, number, folder, only_flagged=only_flagged, pictures=False)
    truth = truth_of(columns, fake)
    rows = [
        {"image_id": one["image_id"], "label": "fake" if truth[one["image_id"]] else "real"}
        for one in audit.images
    ]
    return estimate(run.store.url, write(folder / "labels.csv", rows), folder)


def test_labels_show_whether_the_promise_was_kept(tmp_path):
    """0.6 % of the reals of `archive` are flagged, and 0.7 % is too near to tell."""
    made = dict(zip(("columns", "fake"), archive(failing=0, without=0), strict=True))
    for target, said in (
        (0.05, r"at most 5 % .* show that this is kept \(at most .* % are\)"),
        (0.007, r"too few labels to show whether this is kept \("),
        (0.001, r"the labels show that this is not kept \(at least 0\."),
    ):
        (folder := tmp_path / str(target)).mkdir()
        document = answer_of(folder, target, 600, only_flagged=False, **made)
        assert re.search(said, document["findings"][0])
        rate = document["figures"]["false_positive_rate"]
        assert document["promise"]["ends"] == [rate["low"], rate["high"]]
        assert not document["promise"]["if_half_is_real"]


def test_labels_of_flagged_images_bound_the_reals_among_them(tmp_path):
    columns, fake = archive(count=6000, failing=0, without=0)
    document = answer_of(tmp_path, 0.05, 40, only_flagged=True, columns=columns, fake=fake)
    flagged = np.array(columns["verdict"]) == "fake"
    bound = document["flagged_reals"]
    assert (bound["flagged"], bound["scored"]) == (flagged.sum(), 6000)
    assert bound["least"] <= (flagged & ~fake).sum() <= bound["most"] < 0.25 * flagged.sum()
    for name in ("prevalence", "recall", "false_positive_rate"):
        assert document["figures"][name]["why"] == "only images flagged as fake are labelled"
    first, second, third = document["findings"]
    assert first.startswith(f"at most {bound['most']} of the {flagged.sum():,} images flagged")
    assert second.startswith("if at least half of the archive is real, no more than ")
    assert "this is kept, if at least half of the archive is real" in third
