"""Typical mistakes, each a real command: its message says what happened, where, and what to do."""

import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image

from ray_app.cli.main import main
from ray_app.serving.client import EndpointClient
from ray_app.storage import RetryPolicy, Store
from tests.http_server import HttpServer
from tests.ray_head import free_ports, without_ray_start
from tests.runs.real_run import photos, plain_run  # noqa: F401
from tests.serving.scripted import ScriptedEndpoint
from tests.storage.leases import is_released

COMMAND = [sys.executable, "-m", "ray_app.cli"]
NOT_UTF8 = b"caf\xe9.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a person has: pictures, texts, an empty folder, a run's files, and files with mistakes
    in them.
    """
    place = tmp_path_factory.mktemp("mistakes")
    for name in ("pictures", "texts", "empty"):
        (place / name).mkdir()
    for number in range(3):
        Image.effect_noise((96, 80), 40 + number).convert("RGB").save(
            place / "pictures" / f"{number}.png"
        )
        (place / "texts" / f"{number}.txt").write_text("no picture\n")
    (place / "huge.png").write_bytes(huge_png())
    (place / "key.yaml").write_text("ensembel: tiny\n")
    (place / "syntax.yaml").write_text("ensemble: tiny\nlimits: {max_side: 5\nlimit: 3\n")
    (place / "labels.csv").write_text("file,class\na.png,1\n")
    (place / "token").write_text("wrong\n")
    return place


def huge_png():
    """A few kB that say they are 60,000 × 60,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(1_000_000))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.fixture(autouse=True)
def in_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(folder / "config"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (
        "TOUCHSTONE_WEIGHTS_MIRROR",
        "TOUCHSTONE_TOKEN",
        "TOUCHSTONE_TOKENS",
        "RAY_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)


# The command, its exit code, what stderr says (HERE is where it runs, RUN a finished run), and what
# it says to do.
MISTAKES = [
    (
        "score pictuers --out run",
        2,
        "HERE/pictuers: no such file or folder",
        "did you mean HERE/pictures?",
    ),
    (
        "score empty --out run",
        2,
        "HERE/empty: the folder has no files in it",
        "linked folders are not followed",
    ),
    (
        "score *.jpg --out run",
        2,
        "HERE/*.jpg: no file matches this pattern",
        "*.jpg does not match A.JPG",
    ),
    (
        "results run",
        2,
        "there is no folder HERE/run",
        "that `touchstone score SOURCE --out FOLDER` wrote",
    ),
    (
        "results pictures",
        2,
        "no run in HERE/pictures: it has no run.json",
        "SOURCE --out FOLDER` wrote",
    ),
    (
        "runs report key.yaml",
        2,
        "HERE/key.yaml is a file, not the folder of a run",
        "name the folder",
    ),
    (
        "score pictures --ensemble tiny --out key.yaml",
        5,
        "HERE/key.yaml is a file, not a folder",
        "name a folder",
    ),
    ("score pictures", 2, "--out DIR is missing", "touchstone score SOURCE --out DIR"),
    ("score pictures --uot run", 2, "No such option '--uot'", "Did you mean"),
    (
        "score pictures --out run --config key.yaml",
        2,
        "key.yaml: ensembel: unknown key",
        "did you mean 'ensemble'?",
    ),
    (
        "score pictures --out run --config syntax.yaml",
        2,
        "syntax.yaml, line 3, column 6: not YAML: expected ',' or '}'",
        "limit: 3",
    ),
    (
        "score x --out run --set batch_slot=8",
        2,
        "batch_slot: unknown key",
        "did you mean 'batch_slots'?",
    ),
    (
        "score pictures --out run --ensemble tinny",
        2,
        "tinny: there is no such file, and no ensemble",
        "did you mean 'tiny'?",
    ),
    ("results RUN --status corrupt", 2, "'corrupt' is not one of", "'corrupt_image'"),
    ("score pictures --out run --retry=", 2, "not a status of", "source_timeout"),
    ("score pictures --out run --retry late", 2, "--retry late: not a status of", "source_timeout"),
    (
        "evaluate RUN --labels labels.csv --out e",
        2,
        "labels.csv: labels need the column `label`",
        "its columns: file, class",
    ),
    ("check pictures --detector unifd", 4, "unifd: no weights", "touchstone detectors fetch unifd"),
    (
        "check pictures --ensemble published",
        4,
        "its licence is not accepted yet: CC-BY-NC-4.0",
        "touchstone detectors fetch openfake-swinv2",
    ),
    (
        "score --endpoint 127.0.0.1:9 pictures",
        2,
        "127.0.0.1:9: not the URL of an endpoint",
        "http://localhost:8000",
    ),
]


@pytest.mark.parametrize(
    ("words", "code", "happened", "advice"), MISTAKES, ids=[words for words, *_ in MISTAKES]
)
def test_a_mistake_is_answered_with_what_where_and_what_to_do(
    words,
    code,
    happened,
    advice,
    folder,
    plain_run,  # noqa: F811
    capsys,
):
    run = str(plain_run)
    assert main([word.replace("RUN", run) for word in words.split()]) == code
    said = capsys.readouterr()
    assert happened.replace("RUN", run).replace("HERE", str(folder)) in said.err
    assert advice.replace("HERE", str(folder)) in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_an_endpoint_that_is_not_there(monkeypatch, capsys):
    impatient = RetryPolicy(attempts=2, base_s=0.01, cap_s=0.01, deadline_s=9.0)
    monkeypatch.setitem(EndpointClient.__init__.__kwdefaults__, "patience", impatient)
    [port] = free_ports(1)
    assert main(["score", "--endpoint", f"http://127.0.0.1:{port}", "pictures"]) == 5
    said = capsys.readouterr().err
    assert f"http://127.0.0.1:{port}: the endpoint cannot be reached: nothing listens there" in said
    assert "touchstone serve" in said


def test_a_wrong_token_is_said_without_the_token(folder, capsys):
    with ScriptedEndpoint() as endpoint:
        endpoint.token = "another"
        assert main(["score", "--endpoint", endpoint.url, "--token-file", "token", "pictures"]) == 2
    said = capsys.readouterr().err
    assert endpoint.url in said
    assert "--token-file" in said
    assert "wrong" not in said.replace("is wrong", "")


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said


def test_a_folder_of_texts_is_said_to_have_no_image(folder, tmp_path, capsys, off_ray):
    """Not one image is no failure of the run, whose exit code is 0; but no bottleneck is named, and
    the first line says it.
    """
    assert main(["score", "texts", "--ensemble", "tiny", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "None of the 3 files is an image that Touchstone reads: nothing was scored.\n"
    )
    assert "bottleneck" not in said
    assert main(["check", "texts"]) == 3
    assert "text, not an image" in capsys.readouterr().out


def test_too_large_an_image_is_refused_before_it_is_decoded(capsys):
    assert main(["check", "huge.png"]) == 3
    said = capsys.readouterr().out
    assert "image_too_large" in said
    assert "60000 × 60000 pixels" in said
    assert "max_whole_pixels (120 MP)" in said


def test_names_that_are_not_utf_8(folder, tmp_path, capsys, off_ray):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / os.fsdecode(NOT_UTF8)).write_bytes((folder / "pictures" / "0.png").read_bytes())
    assert main(["score", str(odd), "--ensemble", "tiny", "--out", str(tmp_path / "run")]) == 0
    assert main(["results", str(tmp_path / "run")]) == 0
    assert main(["results", str(tmp_path / "run"), "--json"]) == 0
    assert main(["check", str(odd), "--ensemble", "tiny"]) == 0
    said = capsys.readouterr()
    assert "caf%E9.png" in said.out or "caf\\udce9.png" in said.out
    assert said.out.encode("utf-8")


class _Refusing(BaseHTTPRequestHandler):
    """S3's answer to a key that it does not know, on a connection that stays open, as S3's do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you provided does not exist.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_bucket_with_wrong_keys(monkeypatch, capsys):
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    keys = {
        "AWS_ACCESS_KEY_ID": "AKIAWRONG",
        "AWS_SECRET_ACCESS_KEY": "secret-of-mine",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with HttpServer(_Refusing) as server:
        for name, value in {
            **keys,
            "AWS_ENDPOINT_URL": server.url,
            "AWS_CONFIG_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(name, value)
        code = main(["score", "s3://photos/2024", "--ensemble", "tiny", "--out", "run"])
    said = capsys.readouterr().err
    assert code == 5, said
    assert (
        "cannot list s3://photos/2024: The AWS Access Key Id you provided does not exist." in said
    )
    assert (
        "grant s3:ListBucket, s3:GetObject and (for --out) s3:PutObject and s3:DeleteObject on bucket 'photos'"
        in said
    )
    assert "AWS_REQUEST_PAYER=requester" in said
    assert "secret-of-mine" not in said


@contextmanager
def as_an_ordinary_user():
    """Root has every right: for this long it is nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_rights(tmp_path, capsys):
    import ray_app.scoring.run  # noqa: F401  (nobody may not read Touchstone's own files)

    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o055)
    closed.chmod(0)
    try:
        with as_an_ordinary_user():
            assert (
                main(["score", str(closed), "--ensemble", "tiny", "--out", f"{tmp_path}/run"]) == 5
            )
            assert (
                main(["score", f"{tmp_path}/a.png", "--ensemble", "tiny", "--out", f"{closed}/run"])
                == 5
            )
    finally:
        closed.chmod(0o700)
    said = capsys.readouterr().err
    assert f"cannot list {closed}: Permission denied" in said
    assert f"cannot list {closed}/run/manifest: Permission denied" in said
    assert said.count("check the permissions of that path") == 2


def test_a_full_disk(plain_run, tmp_path):  # noqa: F811
    """/dev/full for what is printed; a limit on the size of files for what is written."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "results", str(plain_run)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 5
    assert (
        done.stderr
        == "touchstone: cannot write: No space left on device\n  → make room there, then run the same command again\n"
    )
    code = (
        "import resource, sys\nfrom ray_app.cli.main import main\n"
        "import ray_app.runs.selection, ray_app.runs.table_files, ray_app.reports\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["results", str(plain_run), "--out", str(tmp_path / "rows.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("touchstone: cannot write: File too large")


def test_a_closed_pipe_is_a_quiet_end(plain_run):  # noqa: F811
    """Nobody reads from the beginning, which is what `head` comes to."""
    process = subprocess.Popen(
        [*COMMAND, "results", str(plain_run), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(120) == 0


def test_the_process_ends_after_the_handlers_of_atexit_and_before_python_is_taken_apart():
    """Else a thread of Arrow that drops its last buffer then aborts the process: five times in 100
    `results --json | head -1`.
    """
    code = (
        "import atexit, sys\nfrom ray_app.cli import __main__ as start, main\n"
        "class Late:\n    def __del__(self): print('taken apart', file=sys.stderr)\n"
        "late = Late()\nmain.main = lambda *_, **__: atexit.register(print, 'handler') and 3\nstart.script()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "handler\n", "")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_that_works(folder, tmp_path):
    """The whole of stderr is ours: no line of a raylet, no warning, neither when interrupted nor
    when resumed.
    """
    many = tmp_path / "many"
    many.mkdir()
    for number in range(400):
        (many / f"{number}.png").symlink_to(folder / "pictures" / f"{number % 3}.png")
    words = [
        "score",
        str(many),
        "--ensemble",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "block_members=4",
    ]
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "run" / "parts").rglob("*.parquet")):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    lines = without_ray_start(errors.strip())
    assert process.returncode == 130, lines
    assert lines[0].startswith("listing; 0 files done before; ")
    assert "listed 400 files in 100 blocks" in lines
    assert lines[-1].startswith("resume: ")
    ours = ("listing; ", "listed ", "stopping: SIGINT", "score  ", "interrupted;", "resume: ")
    # click ends the line that a terminal has ^C in
    assert [line for line in lines if line and not line.startswith(ours)] == []
    again = subprocess.run(
        [*COMMAND, *shlex.split(lines[-1])[2:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert re.match(r"400 files: ", again.stdout)
    assert [
        line
        for line in without_ray_start(again.stderr.strip())
        if not re.match(r"400 files in|score  ", line)
    ] == []
    assert is_released(Store.open(str(tmp_path / "run")))
