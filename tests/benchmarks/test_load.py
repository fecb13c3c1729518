import json
from collections import deque

import pytest

from benchmarks.load import Load, Photograph, load, main, photographs_in
from benchmarks.tally import agree
from tests.serving.scripted import TORN, ScriptedEndpoint, refuse, score_of

PHOTOGRAPHS = [
    Photograph(f"{i}.jpg", data, score_of(data))
    for i in range(5)
    for data in [bytes([65 + i]) * 5000]
]


@pytest.fixture
def endpoint():
    with ScriptedEndpoint() as running:
        yield running


def asked(endpoint, **options):
    settings = {"clients": 4, "seconds": 0.25, "timeout_s": 5.0} | options
    return Load(endpoint.url + "/v1/score", **settings)


def test_every_answer_is_counted_once(endpoint):
    found = load(asked(endpoint), PHOTOGRAPHS)
    assert found.ok == found.statuses["200"] == len(endpoint.told)
    assert (found.back_pressure, found.other, found.lost) == (0, 0, 0)
    assert found.scores == {one.name: one.expected for one in PHOTOGRAPHS}
    assert 0 < found.rate * found.seconds <= found.ok
    # those under way at the end are not in the rate
    assert found.ok - found.rate * found.seconds <= 4.01
    assert 0 < found.p50_s <= found.p90_s <= found.p99_s <= found.max_s < 1


def test_a_wrong_score_is_noticed(endpoint):
    wrong = Photograph("2.jpg", PHOTOGRAPHS[2].data, PHOTOGRAPHS[2].expected + 0.001)
    found = load(asked(endpoint), [*PHOTOGRAPHS[:2], wrong, *PHOTOGRAPHS[3:]])
    assert found.wrong == found.other == found.lost > 0
    assert found.ok == found.statuses["200"] - found.wrong
    assert "wrong score" in found.troubles[0][1]
    assert not found.unsteady


def test_back_pressure_is_told_apart_from_trouble(endpoint):
    endpoint.script = deque(
        [refuse(503, Retry_After="0"), refuse(429, Retry_After="0"), refuse(503), refuse(500), TORN]
    )
    found = load(asked(endpoint, clients=1), PHOTOGRAPHS)
    assert (found.back_pressure, found.other, found.connection_errors) == (2, 3, 1)
    assert (found.statuses["503"], found.statuses["429"], found.statuses["500"]) == (2, 1, 1)
    assert found.lost == 3
    assert [kind.split()[0] for _, kind in found.troubles] == ["503", "500", "IncompleteReadError"]


def test_from_the_command_line(endpoint, tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for one in PHOTOGRAPHS:
        (folder / one.name).write_bytes(one.data)
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps({one.name: one.expected for one in PHOTOGRAPHS}))
    assert photographs_in(folder, json.loads(expected.read_text())) == PHOTOGRAPHS
    options = [
        "--clients",
        "2",
        "--seconds",
        "0.3",
        "--expected",
        str(expected),
        "--field",
        "scores.tiny",
    ]
    arguments = [endpoint.url + "/v1/score", str(folder), *options]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] > 0
    endpoint.script = deque([refuse(500)])
    assert main(arguments) == 1


def test_what_counts_as_the_same_score():
    assert agree(20.0001, 20.0, "fp32")
    assert not agree(0.0001, 0.0, "fp32")
    assert agree(0.019, 0.0, "bf16")
    assert not agree(0.021, 0.0, "bf16")
    assert agree(9.0, 30.0, "bf16")
