import json
from collections import deque

import pytest

from ray_app.cli.main import main
from tests.serving.scripted import ERROR_RATES, ScriptedEndpoint, refuse, score_of
from tests.unprivileged import closed


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


def test_a_folder_becomes_a_table(endpoint, photos, capsys, monkeypatch):
    # wide enough for the folder's name, wherever tests keep their files
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["score", "--endpoint", endpoint.url, str(photos)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"in {photos}/"
    assert lines[1].split() == ["file", "finding", "probability*", "score", "status"]
    assert [line.split()[0] for line in lines[2:5]] == ["a.jpg", "below/b", "z.png"]
    assert lines[2].split()[1:] == [
        "flagged",
        "by",
        "detectors",
        "0.9000",
        f"{score_of(b'first'):+.2f}",
        "ok",
    ]
    assert lines[3].endswith("corrupt_image")
    assert "Demonstration" in lines[-1]
    assert lines[-2] == ERROR_RATES
    assert lines.count(ERROR_RATES) == 1


def test_operating_point_is_asked_for(endpoint, photos, capsys):
    command = ["score", "--endpoint", endpoint.url, str(photos / "a.jpg"), "--fpr"]
    assert main([*command, "0.01"]) == 0
    assert [request["query"] for request in endpoint.told] == [{"fpr": "0.01"}]
    assert main([*command, "5"]) == 2
    assert "write 0.05 for 5 %" in capsys.readouterr().err
    assert main([*command, "0.05"]) == 2
    assert "it serves: 0.01" in capsys.readouterr().err


def test_json_lines_have_uri_and_everything_else(endpoint, photos, capsys):
    assert (
        main(
            [
                "score",
                "--endpoint",
                endpoint.url,
                "--json",
                str(photos / "a.jpg"),
                str(photos / "below"),
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["uri"] for row in rows] == [str(photos / "a.jpg"), str(photos / "below" / "b")]
    assert [row["score"] for row in rows] == [score_of(b"first"), None]
    assert rows[1]["error"]["code"] == "corrupt_image"


def test_the_token_is_of_the_file_or_the_environment(
    endpoint, photos, capsys, tmp_path, monkeypatch
):
    endpoint.token = "of-the-file"
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    assert main(["score", "--endpoint", endpoint.url, str(photos)]) == 2
    assert "TOUCHSTONE_TOKEN" in capsys.readouterr().err
    assert main(["score", "--endpoint", endpoint.url, "--token-file", str(file), str(photos)]) == 0
    monkeypatch.setenv("TOUCHSTONE_TOKEN", "of-the-file")
    assert main(["score", "--endpoint", endpoint.url, str(photos)]) == 0


def test_the_ensemble_and_optional_detectors_are_handed_on(endpoint, photos):
    assert main(["score", "--endpoint", endpoint.url, "--ensemble", "published", str(photos)]) == 0
    assert endpoint.told[0]["query"] == {"ensemble": "published"}
    chosen = ["--detector", "slower", "--detector", "slow", "--json"]
    assert main(["score", "--endpoint", endpoint.url, *chosen, str(photos)]) == 0
    assert endpoint.told[-1]["query"] == {"detector": ["slower", "slow"]}


def test_what_came_before_the_end_is_shown(endpoint, tmp_path, capsys):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
    endpoint.script = deque([None, refuse(503, Retry_After="3600")])
    assert main(["score", "--endpoint", endpoint.url, str(tmp_path)]) == 5
    captured = capsys.readouterr()
    assert sum(line.endswith("ok") for line in captured.out.splitlines()) == 4
    assert "come back in" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x"], "--out does not apply with --endpoint"),
        (["--limit", "3", "--set", "a=b"], "--limit, --set do not apply with --endpoint"),
        (["--detector", "quick", "--json"], "no optional detector 'quick'"),
        (["--token-file", "/no/such"], "cannot be read"),
        (["s3://bucket"], "takes local files"),
    ],
)
def test_what_does_not_apply_exits_2_and_says_so(endpoint, photos, arguments, says, capsys):
    assert main(["score", str(photos), "--endpoint", endpoint.url, *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err.replace("\n", " ")
    assert captured.out == ""
    assert not endpoint.told


def test_closed_folder_and_closed_file_are_results(endpoint, photos, capsys):
    (photos / "nowhere.jpg").symlink_to("gone")
    (photos / "entered").mkdir()
    (photos / "entered" / "c.jpg").write_bytes(b"third")
    with closed(photos / "entered", mode=0o444), closed(photos / "below"):
        assert main(["score", "--endpoint", endpoint.url, "--json", str(photos)]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {row["uri"].removeprefix(f"{photos}/"): row["status"] for row in rows} == {
            "a.jpg": "ok",
            "below": "source_denied",
            "entered/c.jpg": "source_denied",
            "nowhere.jpg": "source_missing",
            "z.png": "ok",
        }
        assert main(["score", "--endpoint", endpoint.url, str(photos / "below")]) == 5
    assert "check the permissions of that path" in capsys.readouterr().err
