"""Mistakes that users make: each command reports what is wrong, where, and what to do."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image

from ray_app.config import find_config
from ray_app.datasets import read_index
from ray_app.serving.client import EndpointClient
from ray_app.storage import RetryPolicy, Store
from tests.make.cards import write_ensemble, write_two
from tests.make.images import lying_png
from tests.make.leases import is_released
from tests.make.ray_head import free_ports, without_ray_start
from tests.make.servers.http_server import HttpServer
from tests.make.unprivileged import closed
from tests.serving.scripted import ScriptedEndpoint

COMMAND = [sys.executable, "-m", "ray_app.cli"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, texts, an empty folder, and files with mistakes in them."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("pictures", "texts", "empty"):
        (folder / name).mkdir()
    for number in range(3):
        image = Image.effect_noise((96, 80), 40 + number).convert("RGB")
        image.save(folder / "pictures" / f"{number}.png")
        (folder / "texts" / f"{number}.txt").write_text("no picture\n")
    (folder / "huge.png").write_bytes(lying_png(60_000, 60_000))
    (folder / "key.yaml").write_text("ensembel: tiny\n")
    (folder / "syntax.yaml").write_text("ensemble: tiny\nlimits: {max_side: 5\nlimit: 3\n")
    (folder / "labels.csv").write_text("file,class\na.png,1\n")
    (folder / "token").write_text("wrong\n")
    return folder


@pytest.fixture(autouse=True)
def in_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(folder / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WEIGHTS_MIRROR", "TOKEN", "TOKENS"):
        monkeypatch.delenv(f"TOUCHSTONE_{name}", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


# Command, exit code, what is wrong, what to do. HERE is the working directory, RUN a finished run.
MISTAKES = """\
score pictuers --out run | 2 | HERE/pictuers: no such file or folder | did you mean HERE/pictures?
score empty --out run | 2 | HERE/empty: the folder has no files | name each linked folder
score *.jpg --out run | 2 | HERE/*.jpg: no file matches this pattern | *.jpg does not match A.JPG
results run | 2 | there is no folder HERE/run | that `touchstone score SOURCE --out FOLDER` wrote
results pictures | 2 | no run in HERE/pictures: it has no run.json | SOURCE --out FOLDER` wrote
runs report key.yaml | 2 | HERE/key.yaml is a file, not the folder of a run | name the folder
score pictures --ensemble tiny --out key.yaml | 5 | HERE/key.yaml is a file, not a folder | name a folder
score pictures | 2 | --out DIR is missing | touchstone score SOURCE --out DIR
score pictures --uot run | 2 | No such option '--uot' | Did you mean
score pictures --out run --config key.yaml | 2 | key.yaml: ensembel: unknown key | did you mean 'ensemble'?
score pictures --out run --config syntax.yaml | 2 | syntax.yaml, line 3, column 6: not YAML | limit: 3
score x --out run --set batch_slot=8 | 2 | batch_slot: unknown key | did you mean 'batch_slots'?
score pictures --out run --ensemble tinny | 2 | tinny: there is no such file, and no ensemble | did you mean 'tiny'?
results RUN --status corrupt | 2 | 'corrupt' is not one of | 'corrupt_image'
score pictures --out run --retry late | 2 | --retry late: not a status of | source_timeout
score pictures --out run --retry= | 2 | not a status of | source_timeout
evaluate RUN --labels labels.csv --out e | 2 | labels.csv: labels need the column `label` | check the names of its columns: file, class
check pictures --detector unifd | 4 | unifd: no weights | touchstone detectors fetch unifd
check pictures --ensemble published | 4 | licence is not accepted yet: CC-BY-NC-4.0 | touchstone detectors fetch openfake-swinv2
score --endpoint 127.0.0.1:9 pictures | 2 | 127.0.0.1:9: not the URL of an endpoint | http://localhost:8000
"""


@pytest.mark.parametrize(
    "mistake", MISTAKES.splitlines(), ids=lambda mistake: mistake.partition(" | ")[0]
)
def test_mistake_is_reported_with_what_to_do(mistake, folder, plain_run, touchstone):
    mistake = mistake.replace("RUN", str(plain_run)).replace("HERE", str(folder))
    line, code, problem, advice = mistake.split(" | ")
    ended = touchstone(line)
    assert (ended.code, ended.out) == (int(code), "")
    assert problem in ended.err
    assert advice in ended.err
    assert "Traceback" not in ended.err


def test_unreachable_endpoint_exits_5_with_its_url(monkeypatch, touchstone):
    impatient = RetryPolicy(attempts=2, base_s=0.01, cap_s=0.01, deadline_s=9.0)
    monkeypatch.setitem(EndpointClient.__init__.__kwdefaults__, "patience", impatient)
    [port] = free_ports(1)
    ended = touchstone(f"score --endpoint http://127.0.0.1:{port} pictures")
    assert ended.code == 5
    assert f"http://127.0.0.1:{port}: the endpoint cannot be reached" in ended.err
    assert "touchstone serve" in ended.err


def test_wrong_token_is_reported_without_the_token(touchstone):
    with ScriptedEndpoint() as endpoint:
        endpoint.token = "another"
        ended = touchstone(f"score --endpoint {endpoint.url} --token-file token pictures")
    assert ended.code == 2
    assert endpoint.url in ended.err
    assert "--token-file" in ended.err
    assert "wrong" not in ended.err.replace("is wrong", "")


def test_port_in_use_is_named(touchstone):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = touchstone(f"serve --port {port}")
    assert ended.code == 2
    assert f"127.0.0.1:{port}" in ended.err
    assert "--port" in ended.err


def test_folder_without_images_exits_0_and_says_so(tmp_path, touchstone, off_ray):
    ended = touchstone(f"score texts --ensemble tiny --out {tmp_path}/run")
    assert ended.code == 0
    first = ended.out.splitlines()[0]
    assert first.startswith("None of the 3 files is an image")
    assert "bottleneck" not in ended.out


def test_too_large_image_is_refused_before_it_is_decoded(touchstone):
    ended = touchstone("check huge.png")
    assert ended.code == 3
    assert "image_too_large" in ended.out
    assert "60000 × 60000 pixels" in ended.out
    assert "max_whole_pixels (120 MP)" in ended.out


def test_name_that_is_not_utf8_is_scored_and_shown(folder, tmp_path, touchstone, off_ray):
    odd, run = tmp_path / "odd", tmp_path / "run"
    odd.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    (odd / name).write_bytes((folder / "pictures" / "0.png").read_bytes())
    assert touchstone(f"score {odd} --ensemble tiny --out {run}").code == 0
    for line in (f"results {run}", f"results {run} --json", f"check {odd} --ensemble tiny"):
        ended = touchstone(line)
        assert ended.code == 0
        assert "caf%E9.png" in ended.out or "caf\\udce9.png" in ended.out
        assert ended.out.encode("utf-8")


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


def test_wrong_keys_of_a_bucket_are_reported_without_secret(monkeypatch, touchstone):
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    keys = {
        "AWS_ACCESS_KEY_ID": "AKIAWRONG",
        "AWS_SECRET_ACCESS_KEY": "secret-of-mine",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
    }
    with HttpServer(_Refusing) as server:
        for name, value in {**keys, "AWS_ENDPOINT_URL": server.url}.items():
            monkeypatch.setenv(name, value)
        ended = touchstone("score s3://photos/2024 --ensemble tiny --out run")
    assert ended.code == 5, ended.err
    assert "cannot list s3://photos/2024: The AWS Access Key Id you provided" in ended.err
    assert "grant s3:ListBucket, s3:GetObject" in ended.err
    assert "on bucket 'photos'" in ended.err
    assert "AWS_REQUEST_PAYER=requester" in ended.err
    assert "secret-of-mine" not in ended.err


def test_output_that_cannot_be_written_exits_5(tmp_path, touchstone):
    out = tmp_path / "closed"
    out.mkdir()
    with closed(out):
        ended = touchstone(f"score pictures --ensemble tiny --out {out}/run")
    assert ended.code == 5
    assert f"{out}/run: Permission denied" in ended.err
    assert "check the permissions of that path" in ended.err


@pytest.mark.parametrize(
    "command",
    [
        "check pictures --detector CARD",
        "score pictures --out run --detector CARD",
        "plan pictures --detector CARD",
        "serve --ensemble ENSEMBLE",
        "detectors verify CARD",
        "detectors fetch CARD",
    ],
)
def test_unreadable_weights_exit_4_with_what_to_do(command, tmp_path, touchstone):
    card, _ = write_two(tmp_path)
    ensemble = write_ensemble(tmp_path / "mine.yaml", [card])
    weights = tmp_path / "touchstone-tiny.safetensors"
    with closed(weights):
        ended = touchstone(command.replace("CARD", card).replace("ENSEMBLE", str(ensemble)))
    assert ended.code == 4, ended.err
    assert f"cheap: {weights}: Permission denied" in ended.err
    assert "make the file and its folders readable (chmod), or set another cache" in ended.err


def test_full_disk_exits_5_with_what_to_do(plain_run, tmp_path):
    """/dev/full for what is printed; a limit on the size of files for what is written."""
    words = ["results", str(plain_run)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 5
    assert "cannot write: No space left on device" in done.stderr
    assert "free some space there" in done.stderr
    code = (
        "import resource, sys\nfrom ray_app.cli.main import main\n"
        "import ray_app.runs.selection, ray_app.runs.table_files, ray_app.reports\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", str(tmp_path / "rows.csv")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("touchstone: cannot write: File too large")


def test_closed_pipe_ends_a_command_quietly(plain_run):
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


def test_process_exits_after_atexit_and_before_finalisation():
    """A thread of Arrow that drops its last buffer later aborts the process: 5 of 100 times."""
    code = (
        "import atexit, sys\nfrom ray_app.cli import __main__ as start, main\n"
        "class Late:\n    def __del__(self): print('taken apart', file=sys.stderr)\n"
        "late = Late()\nmain.main = lambda *_, **__: atexit.register(print, 'handler') and 3\nstart.script()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "handler\n", "")


def test_locale_without_utf8_changes_no_uri(folder, tmp_path):
    """An ASCII locale stands in for ISO 8859-1, which a machine may not have."""
    image = tmp_path / "set/real/é“日.png"
    image.parent.mkdir(parents=True)
    image.symlink_to(folder / "pictures/0.png")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [*COMMAND, "data", "index", tmp_path / "set", "--layout", "folders", "--out", tmp_path / "out"],
        env=os.environ | locale, check=True, capture_output=True,
    )  # fmt: skip
    assert read_index(str(tmp_path / "out"))["uri"].to_pylist() == [str(image)]


@pytest.mark.parametrize("encoding", ["latin-1", "iso-8859-15"])
def test_stdout_without_utf8_escapes_other_characters(encoding, tmp_path):
    card = tmp_path / "card.yaml"
    card.write_text(
        find_config("ensembles", "tiny").read_text() + "note: “日😀”\n", encoding="utf-8"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}

    def run(*words):
        return subprocess.run(
            [*COMMAND, *words], env=environment, check=True, capture_output=True
        ).stdout.decode(encoding)

    assert "\\u201c\\u65e5" in run("ensembles", "show", card)
    assert json.loads(run("ensembles", "show", card, "--json"))["note"] == "“日😀”"


@pytest.mark.slow
def test_ctrl_c_prints_a_command_that_resumes(folder, tmp_path):
    """Every line of stderr is Touchstone's: no line of a raylet, no warning."""
    many, run = tmp_path / "many", tmp_path / "run"
    many.mkdir()
    for number in range(400):
        (many / f"{number}.png").symlink_to(folder / "pictures" / f"{number % 3}.png")
    line = f"score {many} --ensemble tiny --out {run} --set block_members=4"
    process = subprocess.Popen(
        [*COMMAND, *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((run / "parts").rglob("*.parquet")):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    lines = without_ray_start(errors.strip())
    assert process.returncode == 130, lines
    assert lines[0].startswith("listing; 0 files done before; ")
    assert "listed 400 files in 100 blocks" in lines
    assert lines[-1].startswith("resume: ")
    ours = ("listing; ", "listed ", "stopping: SIGINT", "score  ", "interrupted;", "resume: ")
    # click ends the line in which a terminal shows ^C.
    assert [line for line in lines if line and not line.startswith(ours)] == []
    again = subprocess.run(
        [*COMMAND, *shlex.split(lines[-1])[2:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("400 files: ")
    lines = without_ray_start(again.stderr.strip())
    assert [line for line in lines if not re.match(r"400 files in|score  ", line)] == []
    assert is_released(Store.open(str(run)))
