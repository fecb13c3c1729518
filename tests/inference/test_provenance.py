"""Provenance next to the pixels, in this process and in a child, whatever its reader does."""

import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_app import load_ensemble
from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits, inspect_bytes, limits
from ray_app.images.provenance import ProvenancePolicy, attach_sidecar
from ray_app.images.provenance.trust_lists import load_own_list
from ray_app.inference import (
    BatchDecoder,
    DetectorOutputs,
    StageClock,
    decoder_pool,
    judge,
    make_spec,
)
from ray_app.inference.decoder_pool import DecoderProcess
from tests.inference.batches import rows_of
from tests.inference.children import request
from tests.make.images import encoded, jpeg, photo
from tests.make.provenance.files import png_with
from tests.make.provenance.marking import marked_photo
from tests.make.provenance.signing import authority, signed
from tests.make.real_run import score_photos

ROOT = Path(__file__).resolve().parents[2]
PLAIN = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
SPEC = make_spec(
    load_ensemble_card("tiny"),
    limits=ImageLimits(),
    precision="fp32",
    provenance=ProvenancePolicy(trust_lists=(load_own_list(authority().root),), watermarks=True),
)
# The process dies where a manifest is read, and nowhere else.
BROKEN = (
    "import os; from ray_app.images.provenance.reader import CredentialsReader; "
    "CredentialsReader.read = lambda *_: os.kill(os.getpid(), 11)"
)
WANTED = request(provenance=SPEC.provenance)


def decoded(spec, *members, marker_dir=None):
    decoder = BatchDecoder(spec, StageClock(), marker_dir)
    decoder.careful.read_crash_markers()
    batch = decoder.decode(list(enumerate(members)))
    decoder.close()
    return batch


def provenances(spec, *members, **options):
    return [outcome.provenance for outcome in decoded(spec, *members, **options).outcomes]


def test_provenance_reaches_the_rows_and_changes_no_pixel():
    files = (signed(), jpeg(), png_with(parameters="a cat\nSteps: 20, Sampler: Euler"), b"no image")
    batch, silent = decoded(SPEC, *files), decoded(PLAIN, *files)
    said = [outcome.provenance and json.loads(outcome.provenance) for outcome in batch.outcomes]
    assert said[0]["c2pa"]["state"] == "trusted"
    assert said[1] is said[3] is None
    assert said[2]["generator"]["steps"] == 20
    assert {outcome.provenance for outcome in silent.outcomes} == {None}
    without = [replace(outcome, provenance=None) for outcome in batch.outcomes]
    assert without == list(silent.outcomes)
    np.testing.assert_array_equal(batch.pixels[0], silent.pixels[0])
    assert SPEC == PLAIN, "the identity of a run does not depend on it"
    scores = np.array([np.nan, 2.0, 1.0, np.nan], np.float32)  # No detector scored the first.
    outputs = DetectorOutputs.clean(scores=dict.fromkeys(SPEC.cards, scores))
    rows = [row["provenance"] for row in rows_of(judge(SPEC, batch.outcomes, outputs))]
    declared = [text and json.loads(text)["ai_declared"] for text in rows]
    assert declared == [True, None, True, None]


def test_watermark_is_read_in_process_and_child():
    blind = replace(SPEC, provenance=ProvenancePolicy())
    with DecoderProcess(ImageLimits(), 60.0, 2**31) as child:
        for mode in ("L", "RGB", "RGBA", "CMYK"):
            marked = marked_photo().convert(mode)
            files = [encoded(image, "TIFF") for image in (marked, marked.rotate(90))]
            here = provenances(SPEC, *files)
            found = [child.prepare(file, WANTED).provenance for file in files]
            assert [one and one.row() for one in found] == here, mode
            assert [one is not None for one in here] == [mode != "L", False], mode  # no colour
            assert provenances(blind, *files) == [None, None], mode


def test_manifest_that_kills_its_reader_costs_no_score(tmp_path):
    dying = f"""
{BROKEN}
from pathlib import Path
from tests.inference.test_provenance import SPEC, decoded
from tests.make.images import jpeg
from tests.make.provenance.signing import signed
decoded(SPEC, jpeg(), signed(), marker_dir=Path({str(tmp_path)!r}))
"""
    assert subprocess.run([sys.executable, "-c", dying], cwd=ROOT).returncode == -11
    batch = decoded(SPEC, signed(), signed(), marker_dir=tmp_path)
    assert [outcome.status for outcome in batch.outcomes] == [Status.OK, Status.OK]
    states = [json.loads(outcome.provenance)["c2pa"]["state"] for outcome in batch.outcomes]
    assert states == ["trusted", "unreadable"]  # The crash marker names the second.


class Broken(DecoderProcess):
    first = BROKEN

    def _command(self):
        _, *flags, _, memory, wall, intake, library = super()._command()
        script = f"import sys; {self.first}; from ray_app.inference import decoder_child; decoder_child.main(sys.argv[1:])"
        return [sys.executable, *flags, "-c", script, memory, wall, intake, library]


@pytest.mark.parametrize(("child", "state"), [(DecoderProcess, "trusted"), (Broken, "unreadable")])
def test_child_reads_manifests_and_survives_a_crash(child, state, tmp_path):
    (tmp_path / "a.c2pa").write_bytes(authority().sidecar(jpeg()))
    with_sidecar = attach_sidecar(jpeg(), str(tmp_path / "a.jpg"))
    with child(ImageLimits(), 60.0, 2**31) as running:
        answer = running.prepare(signed(), WANTED)
        np.testing.assert_array_equal(answer.pixels[0], decoded(PLAIN, signed()).pixels[0][0])
        assert answer.provenance.c2pa.state == state
        assert running.prepare(jpeg(), WANTED).provenance is None
        assert running.prepare(signed(), request()).provenance is None
        answer = running.prepare(with_sidecar, WANTED)
    assert answer.provenance.c2pa.state == state
    assert answer.facts.sha256 == inspect_bytes(jpeg()).sha256
    [text] = provenances(SPEC, with_sidecar)
    assert json.loads(text)["c2pa"]["sidecar"] is True


def write_sidecar(folder):
    image = encoded(photo(seed=1), "PNG")
    (folder / "a.png").write_bytes(image)
    (folder / "a.c2pa").write_bytes(authority().sidecar(image, "PNG"))


def test_sidecar_is_read_by_every_command(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    write_sidecar(folder)
    (folder / "b.png").write_bytes(encoded(photo(seed=2), "PNG"))

    def rows(*words):
        assert main([*words, "--json"]) == 0
        found = map(json.loads, capsys.readouterr().out.splitlines())
        return {os.path.basename(row["uri"]): row for row in found}

    checked = rows("check", str(folder), "--ensemble", "tiny")
    assert checked["a.png"]["finding"] == "made by AI, signed by Throwaway (valid, signer unknown)"
    assert checked["a.c2pa"]["detail"].startswith("a C2PA manifest (sidecar)")
    expected = {name: row["finding"] for name, row in checked.items()}
    scored = rows("results", score_photos(load_ensemble_card("tiny"), folder, tmp_path / "run"))
    assert {name: row["finding"] for name, row in scored.items()} == expected
    results = load_ensemble("tiny").score(folder)
    assert {os.path.basename(one.source): one.finding for one in results} == expected


def test_sidecar_costs_no_request_on_object_storage(tmp_path, s3):
    bucket = s3.bucket("sidecars")
    write_sidecar(tmp_path)
    for name in ("a.png", "a.c2pa"):
        data = (tmp_path / name).read_bytes()
        s3.client().put_object(Bucket="sidecars", Key=name, Body=data)
    s3.clear_log()
    score_photos(load_ensemble_card("tiny"), bucket, tmp_path / "run")
    gets = [path for method, path in s3.requests() if path.startswith("/sidecars/a")]
    assert sorted(gets) == ["/sidecars/a.c2pa", "/sidecars/a.png"]  # as members of the archive


def test_metadata_is_read_up_to_the_limit_of_the_run():
    file = png_with(parameters="a cat\nSteps: 20, Sampler: Euler" + " " * 2000)
    unread = "text “parameters”: over max_text_bytes (1000)"
    for limit, is_read in ((4000, True), (1000, False)):
        limits = ImageLimits(max_text_bytes=limit)
        [outcome] = decoded(replace(SPEC, limits=limits), file).outcomes
        with DecoderProcess(limits, 60.0, 2**31) as child:
            answer = child.prepare(file, WANTED)
        assert answer.provenance.row() == outcome.provenance
        flags = () if is_read else ("metadata_unread",)
        assert answer.facts.flags == outcome.facts.flags == flags
        assert (answer.provenance.generator is not None) == is_read
        assert answer.provenance.unread == (() if is_read else (unread,))


def test_reader_that_dies_on_a_large_image_keeps_its_turn(monkeypatch):
    monkeypatch.setattr(limits, "SMALL_BYTES", 0)
    small = "from ray_app.images import limits; limits.SMALL_BYTES = 0"
    monkeypatch.setattr(Broken, "first", f"{BROKEN}; {small}")
    monkeypatch.setattr(decoder_pool, "DecoderProcess", Broken)
    pool = decoder_pool.IsolatedDecoders(ImageLimits(), processes=1, wall_limit_s=60.0)
    answers = queue.SimpleQueue()
    prepare = lambda: answers.put(pool.prepare(signed(), WANTED))  # noqa: E731
    threading.Thread(target=prepare, daemon=True).start()
    assert answers.get(timeout=120).provenance.c2pa.state == "unreadable"
    pool.close()
