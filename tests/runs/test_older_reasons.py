"""Runs of schema 5, whose `verdict_reason` was a sentence: read, counted, decided, retried and listed beside rows of today."""

import pyarrow as pa
import pytest
import yaml

from ray_app.ensembles import EnsembleCard, Thresholds
from ray_app.errors import Reason
from ray_app.runs import current_rows, current_tables, summarise
from ray_app.runs.rows import with_reasons
from ray_app.runs.schema import UNLIKE, reason_of
from ray_app.scoring.rescore import decide_run
from tests.runs.small_run import NAME
from tests.scoring.made_run import made_run

SENTENCES = {
    "inside the abstain band": (Reason.INSIDE_BAND, None),
    "unstable: 2 of 5 recompressed views say real": (Reason.UNSTABLE, "2 of 5 recompressed views say real"),
    f"{UNLIKE}: jpeg_quality (PSI 1.2)": (Reason.UNLIKE_ARCHIVE, "jpeg_quality (PSI 1.2)"),
    "outside what the calibration saw: format GIF, the short side 9 px": (Reason.UNLIKE_CALIBRATION, ...),
    "outside what the calibration saw: format GIF; npr: 9 × 9, below the valid range (64 px)": (Reason.OUT_OF_RANGE, ...),
    "npr: 40 × 40, below the valid range (64 px)": (Reason.OUT_OF_RANGE, ...),
    "npr: no score (301 × 177, above the valid range (0.03 megapixels))": (Reason.OUT_OF_RANGE, ...),
    "corvi: no score; npr: 9 × 9, below the valid range (64 px)": (Reason.NO_SCORE, ...),
    "words: no score (it replied 'maybe; or not')": (Reason.NO_SCORE, ...),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_a_word_of_the_list_and_what_varied(sentence):
    reason, detail = SENTENCES[sentence]
    assert reason_of(sentence) == (reason, sentence if detail is ... else detail)


def test_rows_get_the_column_that_they_lack():
    rows = pa.table({"verdict": ["abstain", "fake", "abstain"], "verdict_reason": ["npr: no score", None, "inside the abstain band"]})
    found = with_reasons(rows)
    assert found.column_names == ["verdict", "verdict_reason", "verdict_detail"]
    assert found["verdict_reason"].to_pylist() == ["no_score", None, "inside_band"]
    assert found["verdict_detail"].to_pylist() == ["npr: no score", None, None]
    assert with_reasons(found) is found


def as_before(rows, sentence="inside the abstain band"):
    """Rows as schema 5 had them: those of abstentions with one sentence."""
    place = rows.schema.get_field_index("verdict_reason")
    told = [None if word is None else sentence for word in rows["verdict_reason"].to_pylist()]
    return rows.set_column(place, "verdict_reason", pa.array(told, pa.string())).drop_columns(["verdict_detail"])


@pytest.fixture
def before(tmp_path):
    """A finished run of schema 5 with a band in which rows abstain."""
    card = EnsembleCard(name="band", title="Band", members=[{"detector": NAME}], thresholds=Thresholds(fake_above=2.0, real_below=-2.0))
    run = made_run(tmp_path / "run", card, 1, 200, finished=True)
    run.rewrite(0, as_before)
    run.write_json("run.json", run.describe() | {"schema": 5})
    return run


def test_it_is_counted_in_words_of_the_list_and_decide_writes_its_reasons_anew(before, tmp_path):
    counted = summarise(current_tables(before), [NAME]).written()
    assert counted["verdict_reasons"] == {"inside_band": counted["verdicts"]["abstain"]}
    assert counted["own_failures"] == 0
    card = EnsembleCard(name="wide", title="Wide", members=[{"detector": NAME}], thresholds=Thresholds(fake_above=4.0, real_below=-4.0))
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    summary = decide_run(before.store.url, str(path))
    told = {(row["verdict"] == "abstain", row["verdict_reason"], row["verdict_detail"]) for row in current_rows(before)}
    assert told == {(True, "inside_band", None), (False, None, None)}
    assert summary["verdict_reasons"] == {"inside_band": summary["verdicts"]["abstain"]}
