"""Images come out of a request as they were put in, in order, in memory; names are harmless labels."""

import io
import sys
import tempfile
import time

import pytest
from PIL import Image

from tests.serving.http.live import file_part, multipart

MB = 2**20


def post(client, *parts, **how):
    kind, body = multipart(*parts, **how)
    return client.post("/v1/score", content=body, headers={"Content-Type": kind})


def field_part(name: str, value: bytes) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value


def test_files_keep_order_names_and_bytes(client):
    sizes = {"300.png": 300, "0.png": 0, None: 70_000, "1.png": 1}
    parts = [file_part(bytes(size), name) for name, size in sizes.items()]
    assert post(client, *parts).json() == {"sizes": [*sizes.values()], "names": [*sizes]}


def test_raw_body_of_any_type_is_one_image(client):
    for kind in ("image/jpeg", "application/x-www-form-urlencoded", "", "multipart/mixed"):
        answer = client.post("/v1/score", content=bytes(1000), headers={"Content-Type": kind})
        assert answer.json() == {"sizes": [1000], "names": [None]}, kind


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_image_sent_by_curl_d_is_refused_with_advice(client, image_format):
    """curl -d removes CR, LF, and NUL from a file. The type alone is that of --data-binary, too."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 40).save(file, image_format)
    data, kind = file.getvalue(), {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/v1/score", content=data, headers=kind).json()["sizes"] == [len(data)]
    answer = client.post("/v1/score", content=data.translate(None, b"\r\n\0"), headers=kind)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert "send it with curl --data-binary" in answer.json()["message"]


def test_bytes_that_look_like_boundaries_stay_bytes(client):
    tricky = (
        b"--frontie\r\n--frontier-\r\n\r\n--\r\n--frontier"
        + b"x" * 70_000
        + b"\r\n--frontie" * 1000
    )
    assert post(client, file_part(tricky[44:])).json()["sizes"] == [len(tricky) - 44]


def test_uploads_are_not_written_to_disk(client):
    """starlette's own parser keeps parts over 1 MB in a temporary file; an audit hook sees any
    opening for writing.
    """
    opened = []
    watching = True

    def hook(event, arguments):
        if watching and (
            event.startswith("tempfile.")
            or (event == "open" and str(arguments[1] or "r") not in ("r", "rb"))
        ):
            opened.append((event, arguments))

    sys.addaudithook(hook)
    parts = file_part(bytes(3 * MB)), file_part(bytes(2 * MB))
    assert post(client, *parts).json()["sizes"] == [3 * MB, 2 * MB]
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
        ("'><script>alert(1)</script>", "script>"),
    ],
)
def test_name_is_a_harmless_label(client, filename, expected):
    assert post(client, file_part(b"abc", filename)).json()["names"] == [expected]


def refused(answer):
    return answer.status_code, answer.json()["code"]


def test_too_many_and_too_large_files_are_refused(client):
    assert post(client, *[file_part(b"x")] * 16).json()["sizes"] == [1] * 16
    for files in (17, 18, 1000):  # The answer does not depend on how much of the form has arrived.
        answer = post(client, *[file_part(b"x")] * files)
        assert refused(answer) == (413, "too_many_files")
        assert (answer.json()["limit"], answer.json()["observed"]) == (16, 17)
    answer = post(client, file_part(bytes(40 * MB)))
    assert (*refused(answer), answer.json()["limit"]) == (413, "file_too_large", 32 * MB)
    for body in (bytes(33 * MB), iter([bytes(MB)] * 33)):
        assert refused(client.post("/v1/score", content=body)) == (413, "file_too_large")


def part(headers, content=b"abc"):
    return b"--x\r\n" + headers + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


FILE = b'Content-Disposition: form-data; name="file"'


@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        ("", b"--x--\r\n"),
        ("; boundary=", b"--x--\r\n"),
        ("; boundary=" + "x" * 1000, b"--" + b"x" * 1000 + b"--\r\n"),
        ("; boundary=x", b"text without a boundary"),
        ("; boundary=x", b"--x--\r\n"),
        ("; boundary=x", part(FILE, b"whole").removesuffix(b"--\r\n")),
        ("; boundary=x", part(b"Content-Disposition: form-data")),
        ("; boundary=x", part(b"Content-Disposition: attachment; name=file")),
        ("; boundary=x", part(b"\r\n".join([b"A: b"] * 1000))),
        ("; boundary=x", part(b"A: " + b"b" * 100_000)),
        ("; boundary=x", part(b"bad header")),
    ],
    ids=[
        *("no boundary", "empty boundary", "long boundary", "no part", "no file", "no end"),
        *("no name", "attachment", "many headers", "long header", "bad header"),
    ],
)
def test_form_that_cannot_be_read_is_malformed(client, boundary, body):
    kind = {"Content-Type": f"multipart/form-data{boundary}"}
    answer = client.post("/v1/score", content=body, headers=kind)
    assert refused(answer) == (400, "malformed_request")


def post_form(client, content):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return client.post("/v1/score", content=content, headers=kind)


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (b"", b"\r\n--x!"),
        (b"", b"\r\n--x "),
        (b"", b"\r\n--"),
        (b"", b"\r"),
        (b"\r\n--x", b" "),
        (b"\r\n--x", b"\r"),
        (b"\r\n--x--", b"-"),
        (b"\r\n--x--", b"\r\n--x!"),
        (b"\r\n--x--", b"\r\n--x "),
    ],
)
@pytest.mark.parametrize(
    "start", [b"--x\r\n" + FILE + b"\r\n\r\nabc", b""], ids=["file", "preamble"]
)
def test_no_bytes_are_slow_to_read(client, start, before, piece):
    """Plain bytes take 0.02 s of one core of this process."""
    body = start + before + piece * (8 * MB // len(piece)) + b"\r\n--x--\r\n"
    began = time.process_time()
    assert post_form(client, body).status_code in (200, 400, 413)
    assert time.process_time() - began < 1.0


ONE_FILE = part(FILE).removesuffix(b"\r\n")
PREAMBLES = (
    b"\r\n",
    b"This is a multi-part message in MIME format.\r\n",
    b"one line\r\n\r\n--another boundary\r\n--xy\r\n",
    b"no boundary: --x\r\n",
    b"r" * 200_000 + b"\r\n",
)
EPILOGUES = (
    b"",
    b"\r\nAn end.\r\n",
    b"\r\n" + part(b"Content-Disposition: form-data", b"no part"),
    b"\r\n" + b"e" * 200_000,
    b"\r\n--x\r\n" * 1000,
)


def test_text_around_the_parts_of_a_form_is_ignored(client):
    bodies = [preamble + ONE_FILE for preamble in PREAMBLES]
    bodies += [ONE_FILE + epilogue for epilogue in EPILOGUES]
    for body in bodies:
        assert post_form(client, body).json()["sizes"] == [3], body[:80]
    body = b"text\r\n" + ONE_FILE.replace(b"--x\r\n", b"--x \t \r\n") + b"\r\nend"
    for size in (1, 2, 7):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        assert post_form(client, iter(pieces)).json()["sizes"] == [3], size
    assert post_form(client, iter([ONE_FILE, EPILOGUES[-1]])).json()["sizes"] == [3]


def test_unknown_form_field_is_refused_by_name(client):
    for name in ("ensemble", "File", "file ", "image", ""):
        parts = [field_part(name, b"tiny"), file_part(b"abc")]
        for answer in (post(client, *parts), post(client, *parts[::-1]), post(client, parts[0])):
            assert refused(answer) == (400, "malformed_request")
            assert f"`{name}`" in answer.json()["message"]
            assert "`file`" in answer.json()["message"]
    message = post(client, field_part("a\x07b" + "c" * 10_000, b"")).json()["message"]
    assert "`ab" + "c" * 58 + "`" in message, "a long name is shortened"
