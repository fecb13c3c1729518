"""Images come out of a request as they were put in, in order, in memory; names are harmless labels."""

import sys
import tempfile
import time
import unicodedata

import pytest

from ray_app.serving.http.routes import label
from tests.serving.http.live import file_part, multipart

MB = 2**20


def post(client, *parts, **how):
    kind, body = multipart(*parts, **how)
    return client.post("/v1/score", content=body, headers={"Content-Type": kind})


def field_part(name: str, value: bytes) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value


def test_files_keep_order_names_and_bytes(client):
    parts = [file_part(bytes(size), name) for size, name in ((300, "300.png"), (0, "0.png"), (70_000, None), (1, "1.png"))]
    answer = post(
        client, parts[0], field_part("ensemble", b"default"), parts[1], parts[2], field_part("masks", "größer".encode()), parts[3]
    ).json()
    assert answer["sizes"] == [300, 0, 70_000, 1]
    assert answer["names"] == ["300.png", "0.png", None, "1.png"]


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-www-form-urlencoded", "", "multipart/mixed"])
def test_a_raw_body_is_one_image_whatever_its_type(client, kind):
    answer = client.post("/v1/score", content=bytes(1000), headers={"Content-Type": kind}).json()
    assert (answer["sizes"], answer["names"]) == ([1000], [None])


def test_bytes_that_look_like_boundaries_stay_bytes(client):
    tricky = b"--frontie\r\n--frontier-\r\n\r\n--\r\n--frontier" + b"x" * 70_000 + b"\r\n--frontie" * 1000
    assert post(client, file_part(tricky[44:])).json()["sizes"] == [len(tricky) - 44]


def test_nothing_touches_the_disk(client):
    """starlette's own parser keeps parts over 1 MB in a temporary file; an audit hook sees any opening for writing."""
    opened = []
    watching = True

    def hook(event, arguments):
        if watching and (event.startswith("tempfile.") or (event == "open" and str(arguments[1] or "r") not in ("r", "rb"))):
            opened.append((event, arguments))

    sys.addaudithook(hook)
    assert post(client, file_part(bytes(3 * MB)), file_part(bytes(2 * MB))).json()["sizes"] == [3 * MB, 2 * MB]
    assert client.post("/v1/score", content=bytes(5 * MB)).json()["sizes"] == [5 * MB]
    assert opened == []
    with tempfile.TemporaryFile() as seen:
        seen.write(b"the hook works")
    watching = False
    assert opened


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/etc/", None),
        ("", None),
        ("  a\0\tb.png ", "ab.png"),
        ("x" * 5000, "x" * 255),
        ("u\u0308ber.jpg", "über.jpg"),
        ("exe\u202egnp.jpg", "exegnp.jpg"),
        ('"><script>alert(1)</script>', "script>"),
    ],
)
def test_a_name_is_a_label(client, filename, expected):
    assert label(filename) == expected
    if expected is not None:
        assert unicodedata.is_normalized("NFC", expected)
    if '"' not in filename:
        assert post(client, file_part(b"abc", filename)).json()["names"] == [expected]


def refused(answer):
    return answer.status_code, answer.json()["code"]


def test_too_much_is_refused(client):
    assert post(client, *[file_part(b"x")] * 16).json()["sizes"] == [1] * 16
    answer = post(client, *[file_part(b"x")] * 17)
    assert refused(answer) == (413, "too_many_files")
    assert (answer.json()["limit"], answer.json()["observed"]) == (16, 17)
    answer = post(client, file_part(b"x"), *(field_part(f"field{number}", b"") for number in range(1000)))
    assert (*refused(answer), answer.json()["limit"]) == (413, "too_many_files", 27)
    answer = post(client, file_part(b"x"), *(field_part(f"field{number}", b"") for number in range(11)))
    assert (*refused(answer), answer.json()["limit"]) == (413, "too_many_files", 10)
    answer = post(client, file_part(bytes(40 * MB)))
    assert (*refused(answer), answer.json()["limit"]) == (413, "file_too_large", 32 * MB)
    assert refused(client.post("/v1/score", content=bytes(33 * MB))) == (413, "file_too_large")
    assert refused(client.post("/v1/score", content=iter([bytes(MB)] * 33))) == (413, "file_too_large")
    assert refused(post(client, file_part(b"x"), field_part("ensemble", bytes(1025)))) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary at all"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nwhole\r\n--x\r\n'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: attachment; name=file\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 1000 + b"\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nbad header\r\n\r\nabc\r\n--x--\r\n"),
    ],
)
def test_a_form_that_cannot_be_read_is_malformed(client, kind, body):
    assert refused(client.post("/v1/score", content=body, headers={"Content-Type": kind})) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        *((b"", b"\r\n--x!"), (b"", b"\r\n--x "), (b"", b"\r\n--"), (b"", b"\r")),
        *((b"\r\n--x", b" "), (b"\r\n--x", b"\r"), (b"\r\n--x--", b"-")),
    ],
)
def test_no_bytes_are_dear_to_read(client, before, piece):
    """8 MB of what a parser might take byte by byte, in seconds of one core of this process: plain bytes take 0.02."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc' + before + piece * (8 * MB // len(piece)) + b"\r\n--x--\r\n"
    began = time.process_time()
    answer = client.post("/v1/score", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (200, 400, 413)
    assert time.process_time() - began < 1.0


def test_a_form_without_its_file_is_told_so(client):
    assert "`file`" in post(client, field_part("ensemble", b"default")).json()["message"]
    assert "`file`" in post(client, file_part(b"abc", "a.png", name="image")).json()["message"]
    assert refused(post(client, file_part(b"x"), field_part("a", b"1"), field_part("a", b"2"))) == (400, "malformed_request")
