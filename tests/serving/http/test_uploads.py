"""Images come out of a request as they were put in, in order, in memory; names are harmless labels."""

import sys
import tempfile
import time
import unicodedata

import pytest

from ray_app.serving.http.uploads import label
from tests.serving.http.live import file_part, multipart

MB = 2**20


def post(client, *parts, **how):
    kind, body = multipart(*parts, **how)
    return client.post("/v1/score", content=body, headers={"Content-Type": kind})


def field_part(name: str, value: bytes) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value


def test_files_keep_order_names_and_bytes(client):
    answer = post(
        client,
        *(
            file_part(bytes(size), name)
            for size, name in ((300, "300.png"), (0, "0.png"), (70_000, None), (1, "1.png"))
        ),
    ).json()
    assert answer["sizes"] == [300, 0, 70_000, 1]
    assert answer["names"] == ["300.png", "0.png", None, "1.png"]


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "application/x-www-form-urlencoded", "", "multipart/mixed"]
)
def test_a_raw_body_is_one_image_whatever_its_type(client, kind):
    answer = client.post("/v1/score", content=bytes(1000), headers={"Content-Type": kind}).json()
    assert (answer["sizes"], answer["names"]) == ([1000], [None])


def test_bytes_that_look_like_boundaries_stay_bytes(client):
    tricky = (
        b"--frontie\r\n--frontier-\r\n\r\n--\r\n--frontier"
        + b"x" * 70_000
        + b"\r\n--frontie" * 1000
    )
    assert post(client, file_part(tricky[44:])).json()["sizes"] == [len(tricky) - 44]


def test_nothing_touches_the_disk(client):
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
    assert post(client, file_part(bytes(3 * MB)), file_part(bytes(2 * MB))).json()["sizes"] == [
        3 * MB,
        2 * MB,
    ]
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
    for files in (17, 18, 1000):  # the answer does not depend on how much of the form has arrived
        answer = post(client, *[file_part(b"x")] * files)
        assert (*refused(answer), answer.json()["limit"], answer.json()["observed"]) == (
            413,
            "too_many_files",
            16,
            17,
        )
    answer = post(client, file_part(bytes(40 * MB)))
    assert (*refused(answer), answer.json()["limit"]) == (413, "file_too_large", 32 * MB)
    assert refused(client.post("/v1/score", content=bytes(33 * MB))) == (413, "file_too_large")
    assert refused(client.post("/v1/score", content=iter([bytes(MB)] * 33))) == (
        413,
        "file_too_large",
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=", b"--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 1000, b"--" + b"x" * 1000 + b"--\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary at all"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nwhole\r\n--x\r\n',
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: attachment; name=file\r\n\r\nabc\r\n--x--\r\n",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\n" + b"A: b\r\n" * 1000 + b"\r\nabc\r\n--x--\r\n",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\nabc\r\n--x--\r\n",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nbad header\r\n\r\nabc\r\n--x--\r\n"),
    ],
)
def test_a_form_that_cannot_be_read_is_malformed(client, kind, body):
    assert refused(client.post("/v1/score", content=body, headers={"Content-Type": kind})) == (
        400,
        "malformed_request",
    )


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        *((b"", b"\r\n--x!"), (b"", b"\r\n--x "), (b"", b"\r\n--"), (b"", b"\r")),
        *(
            (b"\r\n--x", b" "),
            (b"\r\n--x", b"\r"),
            (b"\r\n--x--", b"-"),
            (b"\r\n--x--", b"\r\n--x!"),
            (b"\r\n--x--", b"\r\n--x "),
        ),
    ],
)
@pytest.mark.parametrize(
    "start",
    [b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc', b""],
    ids=["file", "preamble"],
)
def test_no_bytes_are_dear_to_read(client, start, before, piece):
    """8 MB of what a parser might take byte by byte, in seconds of one core of this process: plain
    bytes take 0.02.
    """
    body = start + before + piece * (8 * MB // len(piece)) + b"\r\n--x--\r\n"
    began = time.process_time()
    answer = client.post(
        "/v1/score", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code in (200, 400, 413)
    assert time.process_time() - began < 1.0


def test_a_form_without_its_file_is_told_so(client):
    assert "`file`" in post(client, field_part("ensemble", b"default")).json()["message"]
    assert "`file`" in post(client, file_part(b"abc", "a.png", name="image")).json()["message"]


ONE_FILE = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--'
PREAMBLES = [
    b"\r\n",
    b"This is a multi-part message in MIME format.\r\n",
    b"one line\r\n\r\n--another boundary\r\n--xy\r\n",
    b"no boundary: --x\r\n",
    b"r" * 200_000 + b"\r\n",
]
EPILOGUES = [
    b"",
    b"\r\n",
    b"\r\nAn end.\r\n",
    b"\r\n--x\r\nContent-Disposition: form-data\r\n\r\nno part\r\n--x--\r\n",
    b"\r\n" + b"e" * 200_000,
]


def post_form(client, content, boundary="x"):
    return client.post(
        "/v1/score",
        content=content,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=["none", "line", "text", "part", "long"])
@pytest.mark.parametrize(
    "preamble", [b"", *PREAMBLES], ids=["none", "line", "text", "lines", "inline", "long"]
)
def test_text_around_the_parts_of_a_form_is_ignored(client, preamble, epilogue):
    answer = post_form(client, preamble + ONE_FILE + epilogue)
    assert answer.json()["sizes"] == [3]


def test_text_around_the_parts_may_come_in_any_pieces(client):
    body = b"text\r\n" + ONE_FILE.replace(b"--x\r\n", b"--x \t \r\n") + b"\r\nend"
    for piece in (1, 2, 7):
        pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
        assert post_form(client, iter(pieces)).json()["sizes"] == [3]


def test_many_boundaries_after_the_last_one_are_no_parts(client):
    epilogue = b"\r\n--x\r\n" * 1000
    assert post_form(client, ONE_FILE + epilogue).json()["sizes"] == [3]
    assert post_form(client, iter([ONE_FILE, epilogue])).json()["sizes"] == [3]


def test_preamble_alone_is_malformed(client):
    answer = post_form(client, b"text without a boundary")
    assert refused(answer) == (400, "malformed_request")


@pytest.mark.parametrize(
    "name", ["ensemble", "masks", "detector", "File", "file ", "files", "image", ""]
)
@pytest.mark.parametrize("is_first", [True, False])
def test_unknown_form_field_is_refused_by_name(client, name, is_first):
    parts = [field_part(name, b"tiny"), file_part(b"abc")]
    answer = post(client, *(parts if is_first else parts[::-1]))
    assert refused(answer) == (400, "malformed_request")
    assert f"`{name}`" in answer.json()["message"]
    assert "`file`" in answer.json()["message"]


def test_unknown_form_field_is_shown_shortened(client):
    message = post(client, field_part("a\x07b" + "c" * 10_000, b"")).json()["message"]
    assert "`ab" + "c" * 58 + "`" in message
