"""Older runs beside rows of today: of schema 3, whose rows lack `quality` and more, and of schema 5, whose reasons were sentences."""

import pyarrow as pa
import pytest
import yaml

from ray_app.ensembles import EnsembleCard, Thresholds
from ray_app.errors import Reason, Status
from ray_app.runs import check_conservation, current_rows, current_tables, summarise
from ray_app.runs.schema import UNLIKE, reason_of
from ray_app.scoring.rescore import decide_run
from tests.runs.small_run import NAME, begun, retried, rows_of, score_blocks
from tests.scoring.made_run import made_run

NAMES = [f"{number:03}.jpg" for number in range(40)]


def test_an_interrupted_one_goes_on_is_published_and_a_retry_merges_rows_of_today_into_it(tmp_path):
    def fails(name):
        return Status.SOURCE_TIMEOUT if name.endswith("3.jpg") else None

    run = begun(tmp_path, NAMES, blocks={0, 1}, fails=fails)
    for block in run.parts(0):
        [rows] = run.rows_in(run.part_path(0, block))
        run.write_part(0, block, rows.drop_columns(["quality", "verdict_detail"]))
    run.write_json("run.json", run.describe() | {"schema": 3})
    described = run.describe()
    run.claim(described["identity"], described["detectors"], described["ensemble"])
    score_blocks(run, 0, blocks=set(range(20)) - {0, 1}, fails=fails)
    run.publish(0)
    check_conservation(run)
    assert sorted(rows_of(run)) == NAMES
    assert {"quality" in table.column_names for table in current_tables(run)} == {False, True}
    assert all("score" in table.column_names for table in current_tables(run, ["image_id", "score", "quality"]))
    retried(run, 2, Status.SOURCE_TIMEOUT)
    rows = rows_of(run)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["attempt"] for name, row in rows.items() if name.endswith("3.jpg")} == {2}


@pytest.mark.parametrize(
    ("sentence", "reason", "detail"),
    [
        ("inside the abstain band", Reason.INSIDE_BAND, None),
        ("unstable: 2 of 5 recompressed views say real", Reason.UNSTABLE, "2 of 5 recompressed views say real"),
        (f"{UNLIKE}: jpeg_quality (PSI 1.2)", Reason.UNLIKE_ARCHIVE, "jpeg_quality (PSI 1.2)"),
        ("outside what the calibration saw: format GIF, the short side 9 px", Reason.UNLIKE_CALIBRATION, ...),
        ("outside what the calibration saw: format GIF; npr: 9 × 9, below the valid range (64 px)", Reason.OUT_OF_RANGE, ...),
        ("words: no score (it replied 'maybe; or not')", Reason.NO_SCORE, ...),
    ],
)
def test_a_sentence_is_a_word_of_the_list_and_what_varied(sentence, reason, detail):
    assert reason_of(sentence) == (reason, sentence if detail is ... else detail)


def with_sentences(rows):
    """Rows as schema 5 had them."""
    place = rows.schema.get_field_index("verdict_reason")
    told = [None if word is None else "inside the abstain band" for word in rows["verdict_reason"].to_pylist()]
    return rows.set_column(place, "verdict_reason", pa.array(told, pa.string())).drop_columns(["verdict_detail"])


def test_sentences_are_counted_as_words_of_the_list_and_decide_writes_reasons_anew(tmp_path):
    card = EnsembleCard(name="band", title="Band", members=[{"detector": NAME}], thresholds=Thresholds(fake_above=2.0, real_below=-2.0))
    run = made_run(tmp_path / "run", card, 1, 200, finished=True)
    run.rewrite_all(with_sentences)
    run.write_json("run.json", run.describe() | {"schema": 5})
    counted = summarise(current_tables(run), [NAME]).written()
    assert counted["verdict_reasons"] == {"inside_band": counted["verdicts"]["abstain"]}
    assert counted["own_failures"] == 0
    wide = card.model_copy(update={"name": "wide", "thresholds": Thresholds(fake_above=4.0, real_below=-4.0)})
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump(wide.model_dump(mode="json", exclude_none=True)))
    summary = decide_run(run.store.url, str(path))
    told = {(row["verdict"] == "abstain", row["verdict_reason"], row["verdict_detail"]) for row in current_rows(run)}
    assert told == {(True, "inside_band", None), (False, None, None)}
    assert summary["verdict_reasons"] == {"inside_band": summary["verdicts"]["abstain"]}
