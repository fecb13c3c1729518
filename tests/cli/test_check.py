"""`touchstone check` of files, a pipe, a URL; hostile names, bad files, and a decoder that dies."""

import asyncio
import csv
import functools
import io
import json
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ray_app import load_ensemble
from ray_app.cli.check import check
from ray_app.reports.check import name_rows
from ray_app.storage import guarded_http
from ray_app.storage.ssrf import is_public_address
from tests.make.cards import write_points
from tests.make.images import chunk
from tests.make.page_reader import read
from tests.make.servers.tls import Loopback, answer, authority
from tests.make.unprivileged import closed, nested

KILLS = b"this one kills the decoder"
# A decoder process runs this first. An image with these bytes ends the process, as a bug in a
# codec would.
DYING = f"""
import sys
if any(word.endswith("decoder_child.py") for word in sys.orig_argv):
    import os, signal
    from ray_app.images import decode
    proper = decode.peek_image
    def dies(data, *rest):
        if {KILLS!r} in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        return proper(data, *rest)
    decode.peek_image = dies
"""


def picture(seed=1, size=(300, 200), format="JPEG"):
    pixels = np.random.default_rng(seed).integers(
        0, 255, (size[1] // 20, size[0] // 20, 3), dtype=np.uint8
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, format)
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(picture(1))
    (folder / "below" / "b.png").write_bytes(picture(2, (640, 480), "PNG"))
    (folder / "below" / "notes.txt").write_text("no picture")
    (folder / "z.jpg").write_bytes(picture(3)[:900])
    return folder


def test_check_folder_has_a_row_per_file_as_python(photos, tmp_path, touchstone, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (photos / "below" / "killer.jpg").write_bytes(picture(4) + KILLS)
    (photos / "nowhere").symlink_to("gone")
    (photos / "linked").symlink_to(tmp_path)
    os.mkfifo(photos / "pipe")
    ended = touchstone("check --json", photos)
    assert ended.code == 0
    found = {Path(row["uri"]).relative_to(photos).as_posix(): row for row in ended.rows}
    assert {name: row["status"] for name, row in found.items()} == {
        "a.jpg": "ok",
        "below/b.png": "ok",
        "below/killer.jpg": "decoder_crashed",
        "below/notes.txt": "unsupported_format",
        "linked": "source_denied",
        "nowhere": "source_missing",
        "pipe": "unsupported_format",
        "z.jpg": "truncated_image",
    }
    assert list(found) == sorted(found)
    assert "SIGSEGV" in found["below/killer.jpg"]["detail"]
    assert found["below/killer.jpg"]["score"] is None
    expected = load_ensemble("default").score([photos / "a.jpg", photos / "below" / "b.png"])
    for name, result in zip(("a.jpg", "below/b.png"), expected, strict=True):
        row = found[name]
        # The last bits depend on the number of threads.
        assert row["score"] == pytest.approx(result.score, abs=1e-5)
        assert row["scores"] == pytest.approx(result.scores, abs=1e-5)
        assert (row["verdict"], row["verdict_reason"]) == (result.verdict, result.verdict_reason)
        facts = result.facts
        size = (facts.width, facts.height, facts.sha256)
        assert (row["width"], row["height"], row["sha256"]) == size


def test_check_keeps_rows_of_closed_and_nested_folders(photos, touchstone):
    with closed(photos / "below"), nested(photos, "d", 1000):
        ended = touchstone("check --ensemble tiny --json", photos)
        assert touchstone("check --ensemble tiny", photos / "below").code == 3
    found = {row["uri"].removeprefix(f"{photos}/"): row for row in ended.rows}
    assert ended.code == 0
    assert {name: row["status"] for name, row in found.items()} == {
        "a.jpg": "ok",
        "below": "source_denied",
        "d/" * 1000 + "x.jpg": "empty_file",
        "z.jpg": "truncated_image",
    }
    assert "Permission denied" in found["below"]["detail"]


def test_twins_in_threads_give_the_scores_of_one():
    many = [picture(seed) for seed in range(12)]
    ensemble = load_ensemble("tiny")

    def scored(twin, start):
        return [result.scores for result in twin.score(many[start : start + 4])]

    expected = [scored(ensemble, start) for start in (0, 4, 8)]
    twins = (ensemble, ensemble.twin(), ensemble.twin())
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(scored, twins, (0, 4, 8))) == expected


@pytest.mark.slow
def test_check_gives_the_bits_of_one_thread(photos):
    """A worker of a run has one thread too, thus the same bits."""
    image = str(photos / "a.jpg")
    code = f"from ray_app import load_ensemble; print(repr(load_ensemble('default').score([{image!r}])[0].score))"
    alone = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
    )
    command = [sys.executable, "-m", "ray_app.cli", "check", image, "--json"]
    checked = subprocess.run(command, capture_output=True, timeout=200, check=True)
    assert json.loads(checked.stdout)["score"] == float(alone.stdout)


def test_check_of_stdin_is_one_image(touchstone, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture())))
    ended = touchstone("check - --ensemble tiny --json")
    [row] = ended.rows
    assert (ended.code, row["uri"], row["status"]) == (0, "-", "ok")


def test_check_table_names_files_reasons_and_error_rate(photos, touchstone):
    lines = touchstone("check --ensemble tiny", photos).out.splitlines()
    assert lines[0] == "in photos/"
    assert lines[1].split()[:2] == ["file", "finding"]
    names = [line.split()[0] for line in lines[2:6]]
    assert names == ["a.jpg", "below/b.png", "below/notes.txt", "z.jpg"]
    assert any(line.endswith("text, not an image") for line in lines)
    assert any(line.startswith("Demonstration detector") for line in lines)
    rate = "The ensemble tiny flags about 2.5 % of real images"
    assert sum(line.startswith(rate) for line in lines) == 1


def test_check_says_how_to_score_archives_and_their_parts(tmp_path, touchstone):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, data in {
        "a.tar.aa": picture(),
        "b.tar.aa": b"\x1f\x8b\x08",
        "b.tar.ab": b"\1\2",
        "c.zip": b"PK\3\4",
    }.items():
        (folder / name).write_bytes(data)
    rows = touchstone("check --ensemble tiny --json", folder).rows
    advice = "a part of an archive: join the parts (cat b.tar.* > b.tar)"
    assert [row["detail"] for row in rows[:3]] == [None, advice, advice]
    assert "touchstone score reads the images in files named .zip" in rows[3]["detail"]


def test_check_without_any_score_exits_3(photos, touchstone):
    assert touchstone("check --ensemble tiny", photos / "z.jpg").code == 3


def test_check_rejects_a_percentage_and_two_formats(photos, touchstone):
    ended = touchstone(f"check {photos / 'a.jpg'} --fpr 5%")
    assert (ended.code, "'5%' is not a number; write 5 % as 0.05" in ended.err) == (2, True)
    ended = touchstone(f"check {photos / 'a.jpg'} --json --csv")
    assert (ended.code, "--json and --csv cannot be given together" in ended.err) == (2, True)


def test_name_of_an_ensemble_is_recognised_where_a_detector_is_needed(photos, touchstone):
    for command in ("detectors show default", f"check {photos / 'a.jpg'} --detector default"):
        ended = touchstone(command)
        assert ended.code == 2
        assert "pass it to --ensemble, or run touchstone ensembles show default" in ended.err


def test_operating_point_decides_in_every_form(photos, tmp_path, touchstone):
    image, page = photos / "a.jpg", tmp_path / "page.html"
    line = f"check {image} --ensemble {write_points(tmp_path / 'points.yaml')}"
    point = "With thresholds chosen for 10 % false positives, the ensemble points flags about 9 %"
    [row] = touchstone(f"{line} --fpr 0.1 --json --html {page}").rows
    assert (row["fpr"], row["verdict"]) == (0.1, "fake")
    assert point in read(page.read_text()).text
    assert point in touchstone(f"{line} --fpr 0.1").out
    [row] = csv.DictReader(io.StringIO(touchstone(f"{line} --fpr 0.1 --csv").out))
    assert row["fpr"] == "0.1"
    assert touchstone(f"{line} --json").rows[0]["fpr"] == 0.01


def test_csv_starts_no_formula_and_no_escape(tmp_path, touchstone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "=HYPERLINK(1).jpg",
        "-a.jpg",
        "\x1b[31mred.jpg",
        'b,"c"\nd.jpg',
        "\u202egpj.exe",
        os.fsdecode(b"\xff.jpg"),
    ]
    for name in names:
        (tmp_path / name).write_bytes(picture())
    ended = touchstone("check --csv --detector touchstone-tiny --", *names)
    assert ended.code == 0
    assert ended.out.replace("\n", "").isprintable()
    found = list(csv.DictReader(io.StringIO(ended.out)))
    assert len(found) == len(names)
    for row in found:
        assert row["status"] == "ok"
        assert float(row["score"]) == float(row["score_touchstone-tiny"])
        assert not row["uri"].startswith(("=", "+", "-", "@"))


def test_file_is_shown_relative_to_what_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b, url = "photos/a.jpg", "photos/below/b.png", "https://example.org/c.jpg"
    for named, found, shown in (
        (["photos"], [a, b], [a, b]),
        ([a, b], [a, b], ["a.jpg", "below/b.png"]),
        ([b], [b], ["b.png"]),
        (["-", "photos/below", url], ["-", b, url], ["-", "below/b.png", url]),
    ):
        rows = [{"uri": str(tmp_path / uri) if uri in (a, b) else uri} for uri in found]
        absolute = [str(tmp_path / name) if "photos" in name else name for name in named]
        assert name_rows(rows, named) == shown, named
        assert name_rows(rows, absolute) == shown, absolute


def test_hostile_names_break_out_of_no_output(tmp_path, touchstone):
    folder, page = tmp_path / "x", tmp_path / "out.html"
    folder.mkdir()
    for name in ("<script>alert(1)<", "\x1b]0;owned\x07.jpg", "\x9b31m.jpg", "\u202egpj.exe"):
        (folder / name).write_bytes(picture())
    table = touchstone(f"check {folder} --ensemble tiny --html {page}")
    assert table.code == 0
    assert table.out.replace("\n", "").isprintable()
    ended = touchstone(f"check {folder} --ensemble tiny --json")
    assert ended.out.replace("\n", "").isprintable()
    assert {Path(row["uri"]).name for row in ended.rows} == set(os.listdir(folder))
    text = page.read_text()
    assert text.count("<script") == 1
    assert text.count("The ensemble tiny flags about 2.5") == 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    sources = [attributes["src"] for tag, attributes in read(text).tags if tag == "img"]
    assert sum(source.startswith("data:image/jpeg;base64,") for source in sources) == 4
    assert sorted(os.listdir(tmp_path)) == ["out.html", "x"]  # No half page is left.


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e{{ 7 * 7 }}'
GRAPH = {"1": {"class_type": HOSTILE, "inputs": {"ckpt_name": HOSTILE}}}
# The finding names this chunk, which is too large to be read.
LARGE = chunk(
    b"zTXt", HOSTILE.encode("latin-1", "ignore")[:79] + b"\0\0" + zlib.compress(bytes(17 * 2**20))
)
METADATA = {
    "parameters": {
        "parameters": f"{HOSTILE}\nNegative prompt: {HOSTILE}\nSteps: 20, Sampler: {HOSTILE}, Seed: 1, Model: {HOSTILE}"
    },
    "graph": {"prompt": json.dumps(GRAPH), "Software": HOSTILE, "AISystemUsed": HOSTILE},
    "unread": {},
}


@pytest.mark.parametrize("kind", METADATA)
def test_hostile_metadata_breaks_out_of_no_output(kind, tmp_path, touchstone):
    file, page, notes = tmp_path / "a.png", tmp_path / "out.html", PngInfo()
    for name, text in METADATA[kind].items():
        notes.add_itxt(name, text)
    Image.open(io.BytesIO(picture())).save(file, pnginfo=notes)
    if kind == "unread":
        data = file.read_bytes()
        file.write_bytes(data[:33] + LARGE + data[33:])
    table = touchstone(f"check {file} --ensemble tiny --html {page}")
    assert table.code == 0
    assert table.out.replace("\n", "").isprintable()
    text = page.read_text()
    assert "<script>alert(1)" in read(text).text
    assert "<script>alert" not in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert not [attributes for _, attributes in read(text).tags if "onerror" in attributes]


def test_refused_url_is_shown_with_its_reason(touchstone):
    ended = touchstone("check http://example.org/a.jpg --ensemble tiny")
    assert ended.code == 3
    assert "not fetched: only https URLs are fetched" in ended.out


def test_url_is_fetched_through_the_guard(monkeypatch, capsys):
    monkeypatch.setenv("SSL_CERT_FILE", authority()[0])
    urls = ["https://images.test/a.jpg", "https://images.test/gone.jpg"]

    async def scenario():
        async with Loopback({"/a.jpg": answer(picture())}) as server:

            async def here(_host, _port):
                return [("127.0.0.1", server.port)]

            def is_allowed(address):
                return address == "127.0.0.1" or is_public_address(address)

            fetch = functools.partial(
                guarded_http.fetch_image, resolver=here, is_allowed_address=is_allowed
            )
            monkeypatch.setattr(guarded_http, "fetch_image", fetch)
            # `main` handles a signal, which only the main thread can.
            words = [*urls, "--ensemble", "tiny", "--json"]
            return await asyncio.to_thread(check.main, words, standalone_mode=False)

    assert asyncio.run(scenario()) == 0
    found, missing = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert found["status"] == "ok"
    assert missing["status"] != "ok"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "nothing to check"),
        ("empty", "nothing to check: there is no file in"),
        ("no-such-file", "no such file or folder"),
        ("a.jpg/x", "no such file or folder"),
        ("- -", "stands for one image on stdin"),
        ("a.jpg --html a.jpg", "--html must be the path of a local .html file"),
        ("a.jpg --ensemble tiny --detector npr", "cannot be given together"),
        ("a.jpg --ensemble tiny --fpr 0.1", "touchstone detectors calibrate RUN"),
    ],
)
def test_check_usage_error_exits_2(arguments, said, photos, monkeypatch, touchstone):
    monkeypatch.chdir(photos)
    (photos / "empty").mkdir()
    ended = touchstone(f"check {arguments}")
    assert ended.code == 2
    assert said in ended.err
