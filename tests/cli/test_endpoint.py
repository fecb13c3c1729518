"""`touchstone score --endpoint` of local files."""

from collections import deque

import pytest

from tests.make.unprivileged import closed
from tests.serving.scripted import ERROR_RATES, ScriptedEndpoint, refuse, score_of


@pytest.fixture
def endpoint():
    with ScriptedEndpoint() as running:
        yield running


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"first")
    (folder / "below" / "b").write_bytes(b"bad one")
    (folder / "z.png").write_bytes(b"last")
    return folder


@pytest.fixture
def score(endpoint, touchstone):
    """Run `score` with this endpoint and further words."""
    return lambda *words: touchstone(f"score --endpoint {endpoint.url}", *words)


def test_folder_becomes_a_table(score, photos, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # The name of the folder fits.
    ended = score(photos)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == f"in {photos}/"
    assert lines[1].split() == ["file", "finding", "probability*", "score", "status"]
    assert [line.split()[0] for line in lines[2:5]] == ["a.jpg", "below/b", "z.png"]
    shown = f"flagged by detectors 0.9000 {score_of(b'first'):+.2f} ok"
    assert lines[2].split()[1:] == shown.split()
    assert lines[3].endswith("corrupt_image")
    assert "b: it does not decode" in lines
    assert "Demonstration" in lines[-1]
    assert lines.index(ERROR_RATES) == len(lines) - 2


def test_query_has_ensemble_detectors_and_fpr(endpoint, score, photos):
    for words, query in (
        ("--ensemble published", {"ensemble": "published"}),
        ("--detector slower --detector slow --json", {"detector": ["slower", "slow"]}),
        ("--fpr 0.01", {"fpr": "0.01"}),
    ):
        assert score(photos / "a.jpg", *words.split()).code == 0
        assert endpoint.told[-1]["query"] == query, words


def test_json_lines_have_uri_score_and_error(score, photos):
    ended = score("--json", photos / "a.jpg", photos / "below")
    assert ended.code == 0
    rows = ended.rows
    assert [row["uri"] for row in rows] == [str(photos / "a.jpg"), str(photos / "below" / "b")]
    assert [row["score"] for row in rows] == [score_of(b"first"), None]
    assert rows[1]["error"]["code"] == "corrupt_image"


def test_token_is_read_from_file_or_environment(endpoint, score, photos, tmp_path, monkeypatch):
    endpoint.token = "of-the-file"
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    ended = score(photos)
    assert ended.code == 2
    assert "TOUCHSTONE_TOKEN" in ended.err
    assert score("--token-file", file, photos).code == 0
    file.write_bytes("of-the-file\r\n".encode("utf-8-sig"))
    assert score("--token-file", file, photos).code == 0
    monkeypatch.setenv("TOUCHSTONE_TOKEN", "of-the-file")
    assert score(photos).code == 0


def test_rows_before_a_failure_are_shown(endpoint, score, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]))
    endpoint.script = deque([None, refuse(503, Retry_After="3600")])
    ended = score(tmp_path)
    assert ended.code == 5
    assert sum(line.endswith("ok") for line in ended.out.splitlines()) == 4
    assert "come back in" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--out x", "--out does not apply with --endpoint"),
        ("--limit 3 --set a=b", "--limit, --set do not apply with --endpoint"),
        ("--detector quick --json", "no optional detector 'quick'"),
        ("--token-file /no/such", "cannot be read"),
        ("s3://bucket", "takes local files"),
        ("--fpr 5", "write 0.05 for 5 %"),
        ("--fpr 0.05", "it serves: 0.01"),
    ],
)
def test_endpoint_usage_error_exits_2(endpoint, score, photos, words, said):
    ended = score(photos, *words.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err.replace("\n", " ")
    assert not endpoint.told


def test_closed_folder_and_closed_file_are_rows(score, photos):
    (photos / "nowhere.jpg").symlink_to("gone")
    (photos / "entered").mkdir()
    (photos / "entered" / "c.jpg").write_bytes(b"third")
    with closed(photos / "entered", mode=0o444), closed(photos / "below"):
        ended = score("--json", photos)
        assert ended.code == 0
        assert {row["uri"].removeprefix(f"{photos}/"): row["status"] for row in ended.rows} == {
            "a.jpg": "ok",
            "below": "source_denied",
            "entered/c.jpg": "source_denied",
            "nowhere.jpg": "source_missing",
            "z.png": "ok",
        }
        ended = score(photos / "below")
    assert ended.code == 5
    assert "check the permissions of that path" in ended.err
