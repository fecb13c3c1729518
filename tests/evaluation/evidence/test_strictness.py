"""A record is one file with one reading: nothing in it that no check looks at, and what was not looked at is said."""

import copy
import json
from itertools import cycle

import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.evidence.record import DECIDED, digest, make_evidence, record_text
from ray_app.evaluation.evidence.verify import ROW, not_verified, read_evidence, verify_evidence


@pytest.fixture(scope="module")
def told(promised_run, photos):
    return json.loads(record_text(make_evidence(promised_run, str(photos / "photo-3.jpg"))))


@pytest.fixture(scope="module")
def text(told):
    return record_text(told)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # The verdict twice under the unchanged digest: the false one first, where people and many programs look.
        (
            lambda text: text.replace('"verdict": "real"', '"verdict": "fake",\n      "verdict": "real"'),
            "not as `touchstone runs evidence` writes it",
        ),
        (lambda text: "\ufeff" + text, "BOM"),
        (lambda text: text + text, "Extra data"),
        (lambda text: text.replace('"occurrence": 0', '"occurrence": NaN'), "not JSON compliant"),
        (lambda text: text.replace('"uri"', '"\\u0075ri"'), "not as `touchstone runs evidence` writes it"),
        (lambda text: "[" * 100_000, "recursion"),
    ],
)
def test_a_record_is_read_back_and_any_other_file_of_the_same_is_refused(told, text, change, said, tmp_path):
    (tmp_path / "evidence.json").write_text(text, encoding="utf-8")
    assert read_evidence(tmp_path / "evidence.json") == told
    assert change(text) != text
    (tmp_path / "evidence.json").write_text(change(text), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"not a record's JSON: .*({said})"):
        read_evidence(tmp_path / "evidence.json")


def mappings(value, path=()):
    """The path of every object in a record."""
    if isinstance(value, dict):
        yield path
        for name, item in value.items():
            yield from mappings(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from mappings(item, (*path, number))


def at(value, path):
    for step in path:
        value = value[step]
    return value


FREE = [("record", "row", "input")]  # the source's own columns


def test_an_unknown_key_is_refused_wherever_it_stands(told):
    paths = list(mappings(told))
    assert len(paths) > 30
    for path, value in zip(paths, cycle([None, 1, {}, "x"]), strict=False):
        other = copy.deepcopy(told)
        at(other, path)["a.strange key"] = value
        other["sha256"] = digest(other["record"])
        if path in FREE:
            continue
        try:
            found = [check.outcome for check in verify_evidence(other)]
        except ConfigError:
            continue
        assert "differs" in found, path


def test_what_another_version_is_said_to_have_written_is_compared_all_the_same(told):
    for change in (
        lambda record: record["guarantee"]["card"].update(target_fpr=1e-6),
        lambda record: record["guarantee"].update(card=None),
        lambda record: record["decision"].update(reason="none", probability=0.5),
    ):
        other = copy.deepcopy(told)
        other["record"]["made_by"]["touchstone"] = "0.6.9"
        change(other["record"])
        other["sha256"] = digest(other["record"])
        assert "sections" in [check.name for check in verify_evidence(other) if check.outcome == "differs"]


def listed(told, image=None, signer=None):
    checks = list(verify_evidence(told, image))
    return {field for one in not_verified(told, checks, image=image is not None, signer=signer is not None) for field in one.fields}


def test_every_column_of_a_row_is_checked_or_said_not_to_be(told, photos):
    row = {f"row.{name}" for name in told["record"]["row"]}
    decided = {f"row.{name}" for name in DECIDED}
    assert row - listed(told) == row & decided
    with_image = listed(told, photos / "photo-3.jpg")
    assert {"row.sha256", "row.scores", "row.width", "row.status", "hashes.weights.touchstone-tiny"} <= listed(told) - with_image
    assert {"row.uri", "row.scored_at", "run.url", "run.identity", "made_at", "ensemble", "row.provenance"} <= with_image
    wrong = listed(told, photos / "photo-2.jpg")
    assert {"row.sha256", "row.scores", "row.width"} <= wrong


def test_every_column_that_a_row_may_have_is_known_to_that_list(told):
    """Whoever adds a column says whether it is verified."""
    other = copy.deepcopy(told)
    other["record"]["row"] = dict.fromkeys(ROW)
    said = {field.removeprefix("row.") for one in not_verified(other, [], image=False, signer=False) for field in one.fields}
    assert set(ROW) - said == set(DECIDED)


def test_facts_of_the_file_are_made_again_from_it(told, photos):
    for name, value in (("width", 9), ("quality", 1), ("mode", "CMYK"), ("flags", ["alpha"])):
        other = copy.deepcopy(told)
        other["record"]["row"][name] = value
        if name in other["record"]["image"]:
            other["record"]["image"][name] = value
        other["sha256"] = digest(other["record"])
        [decoding] = [check for check in verify_evidence(other, photos / "photo-3.jpg") if check.name == "decoding"]
        assert decoding.outcome == "differs"
        assert name in decoding.told
