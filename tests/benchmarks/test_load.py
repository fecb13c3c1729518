import asyncio
import json
import math
from collections import deque

import pytest

from benchmarks.load import Load, Photograph, load, main, photographs_in
from benchmarks.tally import agree, percentile
from tests.serving.scripted import TORN, ScriptedEndpoint, refuse, score_of

PHOTOGRAPHS = [Photograph(f"{i}.jpg", data, score_of(data)) for i in range(5) for data in [bytes([65 + i]) * 5000]]


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
    assert found.ok - found.rate * found.seconds <= 4.01  # those under way at the end are not in the rate
    assert 0 < found.p50_s <= found.p90_s <= found.p99_s <= found.max_s < 1


def test_a_wrong_score_is_noticed(endpoint):
    wrong = Photograph("2.jpg", PHOTOGRAPHS[2].data, PHOTOGRAPHS[2].expected + 0.001)
    found = load(asked(endpoint), [*PHOTOGRAPHS[:2], wrong, *PHOTOGRAPHS[3:]])
    assert found.wrong == found.other == found.lost > 0
    assert found.ok == found.statuses["200"] - found.wrong
    assert "wrong score" in found.troubles[0][1]
    assert not found.unsteady


def test_back_pressure_is_told_apart_from_trouble(endpoint):
    endpoint.script = deque([refuse(503, Retry_After="0"), refuse(429, Retry_After="0"), refuse(503), refuse(500), TORN])
    found = load(asked(endpoint, clients=1), PHOTOGRAPHS)
    assert (found.back_pressure, found.other, found.connection_errors) == (2, 3, 1)
    assert (found.statuses["503"], found.statuses["429"], found.statuses["500"]) == (2, 1, 1)
    assert found.lost == 3
    assert [kind.split()[0] for _, kind in found.troubles] == ["503", "500", "IncompleteReadError"]


def test_the_caller_is_called_once_a_second_and_may_stop_it(endpoint):
    endpoint.delay_s, seen = 0.05, []
    found = load(asked(endpoint, seconds=60), PHOTOGRAPHS, on_second=lambda second, tally: seen.append((second, tally.ok)),
                 until=lambda tally: len(seen) == 2)  # fmt: skip
    assert [second for second, _ in seen] == [1, 2]
    assert 0 < seen[0][1] < seen[1][1]
    assert 1.9 < found.seconds < 4


def test_the_token_is_sent(endpoint):
    endpoint.token = "t0ken"
    assert load(asked(endpoint, token="t0ken", seconds=0.2), PHOTOGRAPHS).other == 0
    assert load(asked(endpoint, seconds=0.2), PHOTOGRAPHS).statuses.keys() == {"401"}


def test_nobody_there_is_trouble_not_a_crash():
    found = load(Load("http://127.0.0.1:1/", clients=2, seconds=0.3), PHOTOGRAPHS)
    assert found.ok == 0
    assert found.connection_errors == found.other > 0
    assert math.isnan(found.p99_s)


def test_chunked_answers_are_read():
    async def serve_and_load():
        async def answer(reader, writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                writer.write(
                    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{"scor\r\n7;x=y\r\ne": -2}\r\n0\r\nTrailer: 1\r\n\r\n'
                )

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.to_thread(load, Load(f"http://127.0.0.1:{port}", clients=2, seconds=0.3), [Photograph("a", b"a", -2.0)])

    found = asyncio.run(serve_and_load())
    assert found.ok > 2
    assert found.other == 0


def test_from_the_command_line(endpoint, tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for one in PHOTOGRAPHS:
        (folder / one.name).write_bytes(one.data)
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps({one.name: one.expected for one in PHOTOGRAPHS}))
    assert photographs_in(folder, json.loads(expected.read_text())) == PHOTOGRAPHS
    arguments = [
        endpoint.url + "/v1/score",
        str(folder),
        "--clients",
        "2",
        "--seconds",
        "0.3",
        "--expected",
        str(expected),
        "--field",
        "scores.tiny",
    ]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] > 0
    endpoint.script = deque([refuse(500)])
    assert main(arguments) == 1


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.0, 1), (0.001, 1)])
def test_percentiles_are_the_nearest_rank(share, value):
    assert percentile(range(1, 101), share) == value


def test_what_counts_as_the_same_score():
    assert agree(20.0001, 20.0, "fp32")
    assert not agree(0.0001, 0.0, "fp32")
    assert agree(0.019, 0.0, "bf16")
    assert not agree(0.021, 0.0, "bf16")
    assert agree(9.0, 30.0, "bf16")
