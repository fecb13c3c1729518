"""`touchstone check` as its users start it: a process, files, a pipe, a URL; hostile names, bad files, and a decoder that dies."""

import asyncio
import csv
import functools
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app import load_ensemble
from ray_app.cli.main import main
from ray_app.serving import url_fetch
from ray_app.storage.ssrf import is_public_address
from tests.reports.browser import CHROMIUM
from tests.reports.page_reader import read
from tests.serving.tls_server import Loopback, answer, authority

KILLS = b"this one kills the decoder"
# In a decoder process, before it begins: a picture that holds those words ends it, as a bug in a codec would.
DYING = f"""
import sys
if any(word.endswith("decoder_child.py") for word in sys.orig_argv):
    import os, signal
    from ray_app.images import decode
    proper = decode.decode_image
    def dies(data, *rest):
        if {KILLS!r} in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        return proper(data, *rest)
    decode.decode_image = dies
"""


def picture(seed=1, size=(300, 200), format="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 20, size[0] // 20, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, format)
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(picture(1))
    (folder / "below" / "b.png").write_bytes(picture(2, (640, 480), "PNG"))
    (folder / "below" / "notes.txt").write_text("no picture")
    (folder / "z.jpg").write_bytes(picture(3)[:900])
    return folder


def check(*arguments, stdin=b"", path=None, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH")))), "COLUMNS": "200"}
    command = [sys.executable, "-m", "ray_app.cli.main", "check", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=200, **options)


def rows(done):
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_a_folder_gives_the_scores_that_python_gives_and_leaves_nothing_out(photos, tmp_path):
    (photos / "nowhere").symlink_to("gone")
    (photos / "linked").symlink_to(tmp_path)
    os.mkfifo(photos / "pipe")
    done = check(photos, "--json")
    assert done.returncode == 0, done.stderr
    found = {Path(row["uri"]).relative_to(photos).as_posix(): row for row in rows(done)}
    assert {name: row["status"] for name, row in found.items()} == {
        "a.jpg": "ok",
        "below/b.png": "ok",
        "below/notes.txt": "unsupported_format",
        "linked": "source_denied",
        "nowhere": "source_missing",
        "pipe": "unsupported_format",
        "z.jpg": "truncated_image",
    }
    assert list(found) == sorted(found)
    expected = load_ensemble("default").score([photos / "a.jpg", photos / "below" / "b.png"])
    for name, result in zip(("a.jpg", "below/b.png"), expected, strict=True):
        row = found[name]
        assert row["score"] == pytest.approx(result.score, abs=1e-5)  # the last bits are those of the number of threads
        assert row["scores"] == pytest.approx(result.scores, abs=1e-5)
        assert (row["verdict"], row["verdict_reason"]) == (result.verdict, result.verdict_reason)
        assert (row["width"], row["height"], row["sha256"]) == (result.facts.width, result.facts.height, result.facts.sha256)


def test_batches_side_by_side_give_what_one_after_another_gives(photos):
    """`Ensemble.twin`: the same weights, and none of the other's features."""
    many = [picture(seed) for seed in range(12)]
    ensemble = load_ensemble("default")
    one_by_one = [[result.scores for result in ensemble.score(many[start : start + 4])] for start in (0, 4, 8)]
    pair = (ensemble, ensemble.twin(), ensemble.twin())
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            parts = pool.map(lambda one, start: [result.scores for result in one.score(many[start : start + 4])], pair, (0, 4, 8))
            assert list(parts) == one_by_one


@pytest.mark.slow
def test_one_thread_gives_the_bits_of_a_run_s_worker(photos):
    """A worker of a run has one thread; so has this command unless somebody says otherwise."""
    code = f"from ray_app import load_ensemble; print(repr(load_ensemble('default').score([{str(photos / 'a.jpg')!r}])[0].score))"
    alone = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    assert rows(check(photos / "a.jpg", "--json"))[0]["score"] == float(alone.stdout)


def test_a_picture_that_kills_the_decoder_is_a_row_among_others(photos, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DYING)
    (photos / "below" / "killer.jpg").write_bytes(picture(4) + KILLS)
    done = check(photos, "--json", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = {Path(row["uri"]).name: row for row in rows(done)}
    assert (found["killer.jpg"]["status"], found["killer.jpg"]["detail"]) == ("decoder_crashed", "the decoder process died of SIGSEGV")
    assert found["killer.jpg"]["score"] is None
    assert [found[name]["status"] for name in ("a.jpg", "b.png")] == ["ok", "ok"]


@pytest.mark.slow
def test_a_detector_that_keeps_sizes_gets_its_pictures_late(photos, tmp_path):
    """What no child can prepare is decoded in one when it is read."""
    card = tmp_path / "native.yaml"
    card.write_text((Path(__file__).parents[2] / "configs/detectors/touchstone-tiny.yaml").read_text().replace("  center_crop: 256\n", ""))
    weights = Path(__file__).parents[2] / "configs/detectors/touchstone-tiny.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    done = check(photos / "a.jpg", photos / "z.jpg", "--detector", card, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in rows(done)] == ["ok", "truncated_image"]


def test_stdin_is_one_picture(photos):
    done = check("-", "--json", stdin=(photos / "a.jpg").read_bytes())
    (row,) = rows(done)
    assert (done.returncode, row["uri"], row["status"]) == (0, "-", "ok")


def test_the_table_says_why(photos):
    done = check(photos, "--ensemble", "tiny")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"in {photos}/"
    assert lines[1].split()[:2] == ["file", "verdict"]
    assert [line.split()[0] for line in lines[2:6]] == ["a.jpg", "below/b.png", "below/notes.txt", "z.jpg"]
    assert any(line.endswith("text, not an image") for line in lines)
    assert any(line.startswith("Demonstration detector") for line in lines)


def test_csv_parses_and_starts_no_formula_and_no_escape(tmp_path):
    names = ["=HYPERLINK(1).jpg", "-a.jpg", "\x1b[31mred.jpg", 'b,"c"\nd.jpg', "\u202egpj.exe", os.fsdecode(b"\xff.jpg")]
    for name in names:
        (tmp_path / name).write_bytes(picture())
    done = check(*names, "--csv", "--detector", "touchstone-tiny", cwd=tmp_path)  # as an option none of them begins, but for one
    assert done.returncode == 2
    done = check("--csv", "--detector", "touchstone-tiny", "--", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert text.replace("\n", "").isprintable()
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == len(names)
    for row in found:
        assert row["status"] == "ok"
        assert float(row["score"]) == float(row["score_touchstone-tiny"])
        assert not row["uri"].startswith(("=", "+", "-", "@"))


def test_no_name_gets_out_of_the_table_the_json_or_the_page(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("<script>alert(1)<", "\x1b]0;owned\x07.jpg", "\x9b31m.jpg", "\u202egpj.exe"):
        (folder / name).write_bytes(picture())
    page = tmp_path / "out.html"
    table = check(folder, "--ensemble", "tiny", "--html", page)
    assert table.returncode == 0, table.stderr
    assert table.stdout.decode().replace("\n", "").isprintable()
    lines = check(folder, "--ensemble", "tiny", "--json").stdout.decode()
    assert lines.replace("\n", "").isprintable()
    assert {Path(json.loads(line)["uri"]).name for line in lines.splitlines()} == {one.name for one in folder.iterdir()}
    text = page.read_text()
    assert "<script" not in text
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    tags = read(text).tags
    assert [tag for tag, attributes in tags if tag == "img" and attributes["src"].startswith("data:image/jpeg;base64,")] == ["img"] * 4
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.html", "x"]  # no half page is left


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_the_page_shows_every_picture(photos, tmp_path):
    page = tmp_path / "out.html"
    done = check(photos, "--ensemble", "tiny", "--html", page)
    assert done.returncode == 0, done.stderr
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()
    assert shown.count("<img") == 2
    assert shown.count("No picture") == 2
    for words in ("4 pictures", "(tiny)", "text, not an image", "default-src 'none'"):
        assert words in shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/a.jpg", "only https URLs are fetched"),
        ("https://127.0.0.1/a.jpg", "its host is not a full domain name"),
        ("https://localhost:8000/a.jpg", "only port 443 is used"),
    ],
)
def test_the_guard_s_refusal_is_shown(url, words, capsys):
    assert main(["check", url, "--ensemble", "tiny"]) == 3
    assert f"not fetched: {words}" in capsys.readouterr().out


def test_a_url_is_fetched_through_the_guard(monkeypatch, capsys):
    monkeypatch.setenv("SSL_CERT_FILE", authority()[0])

    async def scenario():
        async with Loopback({"/a.jpg": answer(picture())}) as server:

            async def here(_host, _port):
                return [("127.0.0.1", server.port)]

            allowed = lambda address: address == "127.0.0.1" or is_public_address(address)  # noqa: E731
            guarded = functools.partial(url_fetch.GuardedFetcher, resolver=here, is_allowed_address=allowed)
            monkeypatch.setattr(url_fetch, "GuardedFetcher", guarded)
            arguments = ["https://images.test/a.jpg", "https://images.test/gone.jpg", "--ensemble", "tiny", "--json"]
            return await asyncio.to_thread(_checked, arguments)

    assert asyncio.run(scenario()) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["status"] == "ok"
    assert found[1]["status"] != "ok"


def _checked(arguments):
    """As `main`, off the main thread, where no signal can be handled."""
    from ray_app.cli.check import check as command

    return command.main(arguments, standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to check"),
        (["EMPTY"], "nothing to check: there is no file in"),
        (["no-such-file"], "no such file or folder"),
        (["-", "-"], "stands for one picture on stdin"),
        (["a.jpg", "--html", "a.jpg"], "not the name of a local .html file"),
        (["a.jpg", "--html", "no/such/page.html"], "there is no folder no/such"),
        (["a.jpg", "--ensemble", "no-such"], "no-such"),
        (["a.jpg", "--ensemble", "tiny", "--detector", "npr"], "cannot be given together"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "a.jpg").write_bytes(picture())
    assert main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_not_one_score_is_exit_code_3(photos):
    assert check(photos / "z.jpg", "--ensemble", "tiny").returncode == 3
