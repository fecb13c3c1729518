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


def test_labels_of_what_was_drawn_give_the_same_answer_in_every_form(world, tmp_path):
    run, out, audit, truth = world
    assert (read_audit(out).images, read_audit(out).strata) == (audit.images, audit.strata)
    assert json.loads((out / FACTS).read_text())["run"] == run.store.url
    rows = rows_of(world)
    expected = read_answers(write(tmp_path / "labels.csv", rows), audit)
    assert expected.labelled == 300
    assert expected.blank == expected.unsure == expected.others == 0
    for one, stratum in zip(expected.strata, audit.strata, strict=True):
        assert (one.size, one.labelled, one.flagged) == (
            stratum.size,
            stratum.drawn,
            stratum.verdict == "fake",
        )
    assert sum(one.fakes for one in expected.strata) == sum(
        truth[one["image_id"]] for one in audit.images
    )
    (tmp_path / "labels.jsonl").write_text(
        "".join(
            json.dumps({"image_id": int(row["image_id"]), "label": row["label"] == "fake"}) + "\n"
            for row in rows
        )
    )
    assert read_answers(str(tmp_path / "labels.jsonl"), audit) == expected
    ids = pa.array([int(row["image_id"]) for row in rows])
    pq.write_table(
        pa.table({"image_id": ids, "label": [row["label"] for row in rows]}),
        tmp_path / "labels.parquet",
    )
    assert read_answers(str(tmp_path / "labels.parquet"), audit) == expected


def test_labels_that_a_spreadsheet_saved_give_the_same_answer(world, tmp_path):
    rows = rows_of(world)
    expected = read_answers(write(tmp_path / "labels.csv", rows), world[2])
    lines = [
        "Image_ID;LABEL",
        *(f"{row['image_id']};{'1.0' if row['label'] == 'fake' else '0.0'}" for row in rows),
    ]
    (tmp_path / "excel.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert read_answers(str(tmp_path / "excel.csv"), world[2]) == expected


@pytest.mark.parametrize(
    "mangle",
    [lambda text: f"{int(text):.5E}", lambda text: str(round(int(text), -5)), lambda text: ""],
)
def test_ids_that_a_spreadsheet_has_rounded_are_passed_over_for_the_names_of_files(
    world, tmp_path, mangle
):
    rows = rows_of(world)
    expected = read_answers(write(tmp_path / "labels.csv", rows), world[2])
    mangled = [row | {"image_id": mangle(row["image_id"])} for row in rows]
    assert read_answers(write(tmp_path / "mangled.csv", mangled), world[2]) == expected


def test_what_are_no_labels_of_the_sample_is_refused(world, tmp_path):
    audit, rows = world[2], rows_of(world)
    with pytest.raises(ConfigError, match=r"row 2: 'maybe' is not a label"):
        read_answers(write(tmp_path / "a.csv", [rows[0], rows[1] | {"label": "maybe"}]), audit)
    turned = "real" if rows[0]["label"] == "fake" else "fake"
    with pytest.raises(
        ConfigError,
        match=rf"image {rows[0]['image_id']} is labelled {rows[0]['label']} and {turned}",
    ):
        read_answers(
            write(tmp_path / "b.csv", [rows[0], rows[1], rows[0] | {"label": turned}]), audit
        )
    with pytest.raises(ConfigError, match="not one label is of the 300 images"):
        read_answers(write(tmp_path / "c.csv", [rows[0] | {"label": ""}]), audit)
    with pytest.raises(ConfigError, match="labels need the columns"):
        read_answers(write(tmp_path / "d.csv", [{"file": "x", "label": "real"}]), audit)


def test_an_answer_has_its_figures_and_says_what_to_know(world, tmp_path):
    run, out, audit, truth = world
    rows = rows_of(world)
    rows[0]["label"], rows[1]["label"] = "", " Unsure "
    other = rows[2] | {"image_id": "12345", "uri": "/elsewhere.jpg"}
    document = estimate(run.store.url, write(out / "labels.csv", [*rows, other, rows[3]]), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == document
    answers = read_answers(str(out / "labels.csv"), audit)
    assert (answers.blank, answers.unsure, answers.others, answers.labelled) == (1, 1, 1, 298)
    assert document["figures"] == {
        name: one.to_dict() for name, one in archive_figures(answers.strata).items()
    }
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


def test_labels_of_another_run_are_refused_and_later_verdicts_are_said(world, tmp_path):
    run, out, _, _ = world
    labels = write(out / "labels.csv", rows_of(world))
    described = run.describe()
    other = run_of(tmp_path / "other", archive(count=100)[0])
    with pytest.raises(ConfigError, match="from another run"):
        estimate(other.store.url, labels, out)
    with pytest.raises(ConfigError, match="there is no folder"):
        estimate(str(tmp_path / "nowhere"), labels, out)
    run.write_json(
        "run.json", described | {"identity": described["identity"] | {"decision": {"rule": "max"}}}
    )
    try:
        assert estimate(run.store.url, labels, out)["notes"][0].startswith(
            "the run was decided anew since the sample was drawn"
        )
    finally:
        run.write_json("run.json", described)


def test_a_sample_is_not_drawn_over_nor_where_there_is_none_and_an_audit_is_found_or_asked_for(
    world, tmp_path
):
    run, out, audit, _ = world
    with pytest.raises(ConfigError, match="holds a sample already"):
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
    with pytest.raises(ConfigError, match="not what"):
        read_audit(tmp_path)


def card(target):
    guarantee = {"target_fpr": target, "n_real": 3000, "false_positives": 1, "upper_bound": target}
    return {
        "name": "calibrated",
        "title": "t",
        "members": [{"detector": "a"}],
        "guarantee": guarantee,
    }


def answer_of(folder, target, number, *, only_flagged, columns, fake):
    run = run_of(folder / "run", columns, ensemble=card(target))
    audit = draw_sample(run.store.url, number, folder, only_flagged=only_flagged, pictures=False)
    truth = truth_of(columns, fake)
    rows = [
        {"image_id": one["image_id"], "label": "fake" if truth[one["image_id"]] else "real"}
        for one in audit.images
    ]
    return estimate(run.store.url, write(folder / "labels.csv", rows), folder)


def test_the_labels_say_whether_the_cards_promise_was_kept(tmp_path):
    """Of the reals of `archive` 0.6 % are flagged: more than 0.1 %, fewer than 5 %, and 0.7 % is
    too near to tell.
    """
    made = dict(zip(("columns", "fake"), archive(count=6000, failing=0, without=0), strict=True))
    said = {}
    for target in (0.05, 0.007, 0.001):
        (folder := tmp_path / str(target)).mkdir()
        document = answer_of(folder, target, 600, only_flagged=False, **made)
        said[target] = document["findings"][0]
        rate = document["figures"]["false_positive_rate"]
        assert document["promise"]["ends"] == [rate["low"], rate["high"]]
        assert not document["promise"]["if_half_is_real"]
    assert re.fullmatch(
        r"the card promises that at most 5 % .* show that this is kept \(at most .* % are\)",
        said[0.05],
    )
    assert "so few labels cannot say whether this is kept (" in said[0.007]
    assert "the labels show that this is broken (at least 0." in said[0.001]


def test_labels_of_flagged_images_alone_bound_the_reals_among_them(tmp_path):
    columns, fake = archive(count=6000, failing=0, without=0)
    document = answer_of(tmp_path, 0.05, 40, only_flagged=True, columns=columns, fake=fake)
    flagged = np.array(columns["verdict"]) == "fake"
    bound = document["flagged_reals"]
    assert (bound["flagged"], bound["scored"]) == (flagged.sum(), 6000)
    assert bound["least"] <= (flagged & ~fake).sum() <= bound["most"] < 0.25 * flagged.sum()
    assert {
        document["figures"][name]["why"] for name in ("prevalence", "recall", "false_positive_rate")
    } == {"only images flagged as fake are labelled"}
    assert document["findings"][0].startswith(
        f"at most {bound['most']} of the {flagged.sum():,} images flagged as fake are real: no more than "
    )
    assert document["findings"][1].startswith(
        "if at least half of the archive is real, no more than "
    )
    assert "this is kept, if at least half of the archive is real" in document["findings"][2]
