import csv

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ray_app.archives import BlockPlan, list_members, open_source
from ray_app.datajobs.shards import FilterConfig
from ray_app.datajobs.shards.filter import filter_run, removal_reason
from ray_app.errors import ConfigError, IdentityError, Status
from tests.datajobs.shards import archives, scored
from tests.datajobs.shards.archives import samples, sha256, unpacked

# By the number in a member's name; the default ensemble splits at its thresholds.
FAKE, REAL = 9.0, -9.0


def verdicts(member):
    name = member.member or member.uri
    if name.endswith((".txt", "empty.jpg")):
        return Status.UNSUPPORTED_FORMAT
    return FAKE if name.endswith((".gif", ".webp")) else REAL


def is_fake(name):
    return name.endswith((".gif", ".webp"))


@pytest.fixture
def content():
    return archives.files()


@pytest.fixture(params=["prefix", "tar"])
def run(request, content, tmp_path):
    source = archives.FORMS[request.param](tmp_path, content)
    return scored.scored_run(tmp_path / "run", source, verdicts)


@pytest.fixture
def simple(content, tmp_path):
    """A run of a list with labels."""
    return scored.scored_run(tmp_path / "run", archives.as_list(tmp_path, content), verdicts)


def sift(run, out, **settings):
    return filter_run(FilterConfig(run=run.store.url, out=str(out), **settings))


def decide(run, column, values):
    """Replace a column of the only file of rows."""
    run.rewrite_all(lambda rows: rows.set_column(rows.schema.get_field_index(column), rows.schema.field(column), values))


def listed_again(run, source, score_of):
    list_members(run.store, open_source([str(source)]), BlockPlan(batch_slots=4, max_block_members=8))
    scored.finish(run, 1, score_of, attempt=2)


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_shards_hold_what_stays_and_the_list_what_goes(run, content, tmp_path, form):
    summary = sift(run, tmp_path / "out", form=form)
    stays = {name: data for name, data in content.items() if not is_fake(name)}
    assert sorted(sha256(sample["data"]) for sample in samples(tmp_path / "out")) == archives.hashes(stays)
    removed = rows(tmp_path / "out/removed.parquet")
    assert sorted(row["sha256"] for row in removed) == sorted(sha256(data) for name, data in content.items() if is_fake(name))
    assert summary["kept"] + summary["removed"] == summary["current"] == len(content)
    assert summary["packed"] == summary["kept"]


@pytest.mark.parametrize("form", ["list", "webdataset", "parquet"])
def test_columns_that_two_listings_call_by_other_types_are_kept_as_texts(tmp_path, form):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    source = tmp_path / "list.csv"
    source.write_text("uri,label\na.jpg,0\n")
    run = scored.scored_run(tmp_path / "run", source, lambda member: REAL)
    source.write_text("uri,label\na.jpg,0\nb.jpg,fake\n")
    listed_again(run, source, lambda member: REAL)
    assert sift(run, tmp_path / "out", form=form)["kept"] == 2
    if form == "list":
        labels = [row["label"] for row in rows(tmp_path / "out/kept.parquet")]
    else:
        labels = [str(sample["beside"]["label"]) for sample in samples(tmp_path / "out")]
    assert labels == ["0", "fake"]


def test_a_list_names_and_copies_nothing(simple, content, tmp_path):
    summary = sift(simple, tmp_path / "out")
    listed = rows(tmp_path / "out/kept.parquet")
    assert {row["uri"].rpartition("photos/")[2]: row["sha256"] for row in listed} == {
        name: sha256(data) for name, data in content.items() if not is_fake(name)
    }
    assert {row["label"] for row in listed} == {0, 1}
    assert pyarrow.csv.read_csv(tmp_path / "out/kept.csv").num_rows == len(listed) == summary["kept"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "kept.csv", "kept.parquet", "pack.json", "removed.csv", "removed.parquet", "summary.json"]  # fmt: skip


def test_what_is_dropped_can_be_chosen_and_is_told_in_words(simple, tmp_path):
    counts = {drop: sift(simple, tmp_path / "-".join(drop), drop=drop)["removed"] for drop in
              (("fake",), ("abstain",), ("failed",), ("fake", "abstain", "failed"))}  # fmt: skip
    assert counts == {("fake",): 3, ("abstain",): 0, ("failed",): 2, ("fake", "abstain", "failed"): 5}
    with (tmp_path / "fake-abstain-failed/removed.csv").open(newline="") as file:
        by_status = {row["status"]: row for row in csv.DictReader(file)}
    assert by_status["ok"]["verdict"] == "fake"
    assert all(word in by_status["ok"]["reason"] for word in ("score +9", "threshold", scored.NAME, "ensemble tiny", "calibrated"))
    assert by_status["unsupported_format"]["reason"].startswith("no score: not an image format")


def test_bytes_that_are_not_those_that_were_scored_are_not_written(simple, tmp_path):
    (table,) = simple.tables(0)
    changed = table["uri"].to_pylist()[0]
    decide(simple, "sha256", pyarrow.array(["0" * 64, *table["sha256"].to_pylist()[1:]]))
    summary = sift(simple, tmp_path / "out", form="parquet")
    assert [(row["uri"], row["status"]) for row in unpacked(tmp_path / "out")] == [(changed, "source_changed")]
    assert changed not in [sample["source"]["uri"] for sample in samples(tmp_path / "out")]
    assert summary["packed"] + summary["unpacked"] == summary["kept"]


def test_only_finished_runs_and_never_into_one(simple, tmp_path):
    with pytest.raises(ConfigError, match="scored run"):
        sift(simple, simple.store.url)
    simple.store.delete("summary.json")
    with pytest.raises(ConfigError, match="is not finished yet"):
        sift(simple, tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no folder"):
        filter_run(FilterConfig(run=str(tmp_path / "nothing"), out=str(tmp_path / "out")))


def test_other_decisions_are_another_command(simple, tmp_path):
    sift(simple, tmp_path / "out")
    assert sift(simple, tmp_path / "out")["kept"] == 6
    decide(simple, "verdict", pyarrow.array(["fake"] * 9).dictionary_encode())
    with pytest.raises(IdentityError, match="decisions"):
        sift(simple, tmp_path / "out")


def test_vanished_members_are_neither_kept_nor_removed(content, tmp_path):
    source = archives.as_prefix(tmp_path, content)
    run = scored.scored_run(tmp_path / "run", source, verdicts)
    (source / "album/000.jpg").unlink()
    (source / "album/new.png").write_bytes(archives.factory.png())
    listed_again(run, source, verdicts)
    summary = sift(run, tmp_path / "out", form="parquet")
    uris = [sample["source"]["uri"].rpartition("/")[2] for sample in samples(tmp_path / "out")]
    assert "new.png" in uris
    assert "000.jpg" not in uris
    assert summary["current"] == len(content)


def test_a_flag_names_ensemble_threshold_and_calibration_and_what_has_no_score_says_why():
    members = [{"detector": "corvi"}, {"detector": "npr"}]
    ensemble = {"name": "desk", "rule": "max", "members": members, "thresholds": {"fake_above": 1.5}}
    row = {"status": "ok", "detail": None, "verdict": "fake", "score": 3.25, "probability": 0.9626, "calibrated": True,
           "verdict_reason": None}  # fmt: skip
    assert removal_reason(row, ensemble) == (
        "fake by ensemble desk (max of corvi, npr): score +3.25 is not below the threshold 1.5; probability 0.9626 (calibrated)"
    )
    undecided = {"verdict": "abstain", "verdict_reason": "no_score", "verdict_detail": "npr: no score", "score": None, "probability": None}
    assert "a detector that the ensemble needs gave no score: npr: no score" in removal_reason(row | undecided, ensemble)
    missing = row | {"status": "source_missing", "detail": "not there", "verdict": None}
    assert removal_reason(missing, ensemble) == "no score: it was listed, but was gone when it was read (source_missing): not there"
