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
from ray_app.cli.main import main
from ray_app.reports.check import name_rows
from ray_app.storage import guarded_http
from ray_app.storage.ssrf import is_public_address
from tests.images.factory import chunk
from tests.reports.page_reader import read
from tests.scoring.conftest import write_points
from tests.storage.tls_server import Loopback, answer, authority
from tests.unprivileged import closed, nested

KILLS = b"this one kills the decoder"
# In a decoder process, before it begins: a picture that holds those words ends it, as a bug in a
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
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(picture(1))
    (folder / "below" / "b.png").write_bytes(picture(2, (640, 480), "PNG"))
    (folder / "below" / "notes.txt").write_text("no picture")
    (folder / "z.jpg").write_bytes(picture(3)[:900])
    return folder


@pytest.fixture
def check(capsys, monkeypatch):
    """The command in this process: its exit code and what it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = main(["check", *map(str, arguments)])
        return code, capsys.readouterr().out

    return run


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_gives_the_scores_that_python_gives_and_leaves_nothing_out(
    photos, tmp_path, check
):
    (photos / "nowhere").symlink_to("gone")
    (photos / "linked").symlink_to(tmp_path)
    os.mkfifo(photos / "pipe")
    code, text = check(photos, "--json")
    assert code == 0
    found = {Path(row["uri"]).relative_to(photos).as_posix(): row for row in rows_of(text)}
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
        # the last bits are those of the number of threads
        assert row["score"] == pytest.approx(result.score, abs=1e-5)
        assert row["scores"] == pytest.approx(result.scores, abs=1e-5)
        assert (row["verdict"], row["verdict_reason"]) == (result.verdict, result.verdict_reason)
        assert (row["width"], row["height"], row["sha256"]) == (
            result.facts.width,
            result.facts.height,
            result.facts.sha256,
        )


def test_closed_and_nested_folders_are_rows_among_others(photos, check):
    with closed(photos / "below"), nested(photos, "d", 1000):
        code, text = check(photos, "--ensemble", "tiny", "--json")
        found = {
            row["uri"].removeprefix(f"{photos}/"): (row["status"], row["detail"])
            for row in rows_of(text)
        }
        assert check(photos / "below", "--ensemble", "tiny")[0] == 3
    assert code == 0
    assert found.pop("below") == (
        "source_denied",
        "this folder cannot be listed: Permission denied",
    )
    assert found.pop("d/" * 1000 + "x.jpg")[0] == "empty_file"
    assert set(found) == {"a.jpg", "z.jpg"}


def test_batches_side_by_side_give_what_one_after_another_gives():
    """`Ensemble.twin`: the same weights, and none of the other's features."""
    many = [picture(seed) for seed in range(12)]
    ensemble = load_ensemble("tiny")

    def scored(one, start):
        return [result.scores for result in one.score(many[start : start + 4])]

    one_by_one = [scored(ensemble, start) for start in (0, 4, 8)]
    with ThreadPoolExecutor(3) as pool:
        assert (
            list(pool.map(scored, (ensemble, ensemble.twin(), ensemble.twin()), (0, 4, 8)))
            == one_by_one
        )


@pytest.mark.slow
def test_one_thread_gives_the_bits_of_a_run_s_worker(photos):
    """A worker of a run has one thread; so has this command unless somebody says otherwise."""
    code = f"from ray_app import load_ensemble; print(repr(load_ensemble('default').score([{str(photos / 'a.jpg')!r}])[0].score))"
    alone = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
    )
    command = [sys.executable, "-m", "ray_app.cli", "check", str(photos / "a.jpg"), "--json"]
    checked = subprocess.run(command, capture_output=True, timeout=200, check=True).stdout.decode()
    assert rows_of(checked)[0]["score"] == float(alone.stdout)


def test_a_picture_that_kills_the_decoder_is_a_row_among_others(
    photos, tmp_path, check, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (photos / "below" / "killer.jpg").write_bytes(picture(4) + KILLS)
    code, text = check(photos, "--json")
    assert code == 0
    found = {Path(row["uri"]).name: row for row in rows_of(text)}
    assert (found["killer.jpg"]["status"], found["killer.jpg"]["detail"]) == (
        "decoder_crashed",
        "the decoder process died of SIGSEGV",
    )
    assert found["killer.jpg"]["score"] is None
    assert [found[name]["status"] for name in ("a.jpg", "b.png")] == ["ok", "ok"]


def test_stdin_is_one_picture(photos, check, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((photos / "a.jpg").read_bytes())))
    code, text = check("-", "--ensemble", "tiny", "--json")
    [row] = rows_of(text)
    assert (code, row["uri"], row["status"]) == (0, "-", "ok")


def test_the_table_says_why_and_not_one_score_is_exit_code_3(photos, check):
    lines = check(photos, "--ensemble", "tiny")[1].splitlines()
    assert lines[0] == "in photos/"
    assert lines[1].split()[:2] == ["file", "finding"]
    assert [line.split()[0] for line in lines[2:6]] == [
        "a.jpg",
        "below/b.png",
        "below/notes.txt",
        "z.jpg",
    ]
    assert any(line.endswith("text, not an image") for line in lines)
    assert any(line.startswith("Demonstration detector") for line in lines)
    assert (
        sum(
            line.startswith("The ensemble tiny flags about 2.5 % of real pictures")
            for line in lines
        )
        == 1
    )
    assert check(photos / "z.jpg", "--ensemble", "tiny")[0] == 3


def test_operating_point_decides_and_is_named(photos, check, tmp_path, capsys):
    card = write_points(tmp_path / "points.yaml")
    page = tmp_path / "page.html"
    options = ("--ensemble", card, "--fpr", "0.1")
    code, text = check(photos / "a.jpg", "--json", "--html", page, *options)
    [row] = rows_of(text)
    assert (code, row["fpr"], row["verdict"]) == (0, 0.1, "fake")
    assert (
        "Operating point 10 %: the ensemble points flags about 9 %" in read(page.read_text()).text
    )
    _, text = check(photos / "a.jpg", *options)
    assert "Operating point 10 %: the ensemble points flags about 9 %" in text
    [row] = csv.DictReader(io.StringIO(check(photos / "a.jpg", "--csv", *options)[1]))
    assert row["fpr"] == "0.1"
    _, text = check(photos / "a.jpg", "--json", "--ensemble", card)
    assert rows_of(text)[0]["fpr"] == 0.01


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--ensemble", "POINTS", "--fpr", "10"), "write 0.1 for 10 %"),
        (("--ensemble", "POINTS", "--fpr", "0.03"), "choose one of 0.01, 0.1"),
        (("--detector", "touchstone-tiny", "--fpr", "0.1"), "touchstone detectors calibrate RUN"),
    ],
)
def test_operating_point_that_is_missing_has_a_way_out(photos, tmp_path, capsys, options, hint):
    card = str(write_points(tmp_path / "points.yaml"))
    words = [card if word == "POINTS" else word for word in options]
    assert main(["check", str(photos / "a.jpg"), *words]) == 2
    assert hint in capsys.readouterr().err


def test_csv_parses_and_starts_no_formula_and_no_escape(tmp_path, check, monkeypatch):
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
    code, text = check("--csv", "--detector", "touchstone-tiny", "--", *names)
    assert code == 0
    assert text.replace("\n", "").isprintable()
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == len(names)
    for row in found:
        assert row["status"] == "ok"
        assert float(row["score"]) == float(row["score_touchstone-tiny"])
        assert not row["uri"].startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize(("named", "shown"), [
    (["photos"], ["photos/a.jpg", "photos/below/b.png"]),
    (["photos/a.jpg", "photos/below/b.png"], ["a.jpg", "below/b.png"]),
    (["photos/below/b.png"], ["b.png"]),
    (["-", "photos/below", "https://example.org/c.jpg"], ["-", "below/b.png", "https://example.org/c.jpg"]),
])  # fmt: skip
@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_is_shown_by_its_way_from_what_was_named(
    named, shown, absolute, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    place = {
        one.rpartition("/")[2]: str(tmp_path / "photos" / one.removeprefix("photos/"))
        for one in ("photos/a.jpg", "photos/below/b.png")
    }
    rows = [{"uri": place.get(one.rpartition("/")[2], one)} for one in shown]
    assert (
        name_rows(
            rows, [str(tmp_path / one) if absolute and "photos" in one else one for one in named]
        )
        == shown
    )


def test_no_name_gets_out_of_the_table_the_json_or_the_page(tmp_path, check):
    folder, page = tmp_path / "x", tmp_path / "out.html"
    folder.mkdir()
    for name in ("<script>alert(1)<", "\x1b]0;owned\x07.jpg", "\x9b31m.jpg", "\u202egpj.exe"):
        (folder / name).write_bytes(picture())
    code, table = check(folder, "--ensemble", "tiny", "--html", page)
    assert code == 0
    assert table.replace("\n", "").isprintable()
    lines = check(folder, "--ensemble", "tiny", "--json")[1]
    assert lines.replace("\n", "").isprintable()
    assert {Path(row["uri"]).name for row in rows_of(lines)} == {
        one.name for one in folder.iterdir()
    }
    text = page.read_text()
    assert text.count("<script") == 1
    assert text.count("The ensemble tiny flags about 2.5") == 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    tags = read(text).tags
    assert [
        tag
        for tag, attributes in tags
        if tag == "img" and attributes["src"].startswith("data:image/jpeg;base64,")
    ] == ["img"] * 4
    # no half page is left
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.html", "x"]


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e{{ 7 * 7 }}'
# named by the finding
LARGE = chunk(
    b"zTXt", HOSTILE.encode("latin-1", "ignore")[:79] + b"\0\0" + zlib.compress(bytes(17 * 2**20))
)


@pytest.mark.parametrize(
    ("texts", "more"),
    [
        (
            {
                "parameters": f"{HOSTILE}\nNegative prompt: {HOSTILE}\nSteps: 20, Sampler: {HOSTILE}, Seed: 1, Model: {HOSTILE}"
            },
            b"",
        ),
        (
            {
                "prompt": json.dumps(
                    {"1": {"class_type": HOSTILE, "inputs": {"ckpt_name": HOSTILE}}}
                ),
                "Software": HOSTILE,
            },
            b"",
        ),
        ({"AISystemUsed": HOSTILE, "AIPromptInformation": HOSTILE}, b""),
        ({}, LARGE),
    ],
    ids=["parameters", "graph", "system", "unread"],
)
def test_metadata_is_text_in_the_table_the_json_and_the_page(texts, more, tmp_path, check):
    file, page, notes = tmp_path / "a.png", tmp_path / "out.html", PngInfo()
    for name, text in texts.items():
        notes.add_itxt(name, text)
    Image.open(io.BytesIO(picture())).save(file, pnginfo=notes)
    data = file.read_bytes()
    file.write_bytes(data[:33] + more + data[33:])
    code, table = check(file, "--ensemble", "tiny", "--html", page)
    assert code == 0
    assert table.replace("\n", "").isprintable()
    assert check(file, "--ensemble", "tiny", "--json")[1].replace("\n", "").isprintable()
    text = page.read_text()
    assert "<script>alert(1)" in read(text).text
    assert "<script>alert" not in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert not [attributes for _, attributes in read(text).tags if "onerror" in attributes]


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
            fetch = functools.partial(
                guarded_http.fetch_image, resolver=here, is_allowed_address=allowed
            )
            monkeypatch.setattr(guarded_http, "fetch_image", fetch)
            arguments = [
                "https://images.test/a.jpg",
                "https://images.test/gone.jpg",
                "--ensemble",
                "tiny",
                "--json",
            ]
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
        (["a.jpg/x"], "no such file or folder"),
        (["-", "-"], "stands for one picture on stdin"),
        (["a.jpg", "--html", "a.jpg"], "not the name of a local .html file"),
        (["a.jpg", "--ensemble", "tiny", "--detector", "npr"], "cannot be given together"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "a.jpg").write_bytes(picture())
    assert main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err
