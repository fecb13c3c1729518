"""Why an image abstains, in records: words of the list, and the sentences of schema 5."""

import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.evaluation.evidence.record import make_evidence
from ray_app.reports.evidence import render_evidence
from tests.evaluation.evidence.real_run import score_here, write_photos
from tests.evaluation.evidence.test_verify import changed, differing
from tests.images.factory import encoded, flat, photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_photos(tmp_path_factory.mktemp("photos"), 2)
    (folder / "flat.png").write_bytes(encoded(flat(128, 300, 200), "PNG"))
    (folder / "small.png").write_bytes(encoded(photo(40, 40), "PNG"))
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return score_here(load_ensemble_card("tiny"), folder, tmp_path_factory.mktemp("run") / "run")


def test_a_blank_picture_abstains_and_says_so(run, folder):
    told = make_evidence(run, str(folder / "flat.png"))
    decision = told["record"]["decision"]
    assert (decision["verdict"], decision["reason"], decision["detail"]) == ("abstain", "no_content", None)
    assert decision["score"] > 4, "what the detector says of it stays"
    assert decision["rederived"]
    assert differing(told, folder / "flat.png") == []
    assert "the image is one colour, or nearly: there is nothing to judge" in render_evidence(told)
    assert "decision" in differing(changed(told, lambda record: record["row"].update(flags=[])))


@pytest.mark.parametrize("name", ["photo-0.jpg", "small.png", "cut.jpg"])
def test_a_record_of_schema_5_whose_reason_is_a_sentence_still_agrees(run, folder, name):
    """As 0.8.0 wrote it: the row has no `verdict_detail`, and the decision no `detail`."""

    def as_before(record):
        record["made_by"]["touchstone"] = "0.8.0"
        detail = record["row"].pop("verdict_detail")
        assert record["decision"].pop("detail") == detail
        record["row"]["verdict_reason"] = record["decision"]["reason"] = detail

    old = changed(make_evidence(run, str(folder / name)), as_before)
    assert differing(old) == []
    assert differing(old, folder / name) == []
    render_evidence(old)
    lying = changed(old, lambda record: record["row"].update(verdict_reason="unstable: 1 of 5 recompressed views says fake"))
    assert "decision" in differing(lying)
