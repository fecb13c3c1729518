"""Provenance in a batch and in a child process: beside the pixels, never instead of them, whatever
the manifest's reader does.
"""

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
from ray_app.detectors import load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits, inspect_bytes, limits
from ray_app.images.provenance import ProvenancePolicy, attach_sidecar
from ray_app.images.provenance.trust_lists import own_list
from ray_app.inference import (
    BatchDecoder,
    DetectorOutputs,
    StageClock,
    decoder_pool,
    judge,
    make_spec,
)
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import DecoderProcess
from tests.images.factory import encoded, jpeg, photo
from tests.images.provenance.files import png_with
from tests.images.provenance.marking import marked_photo
from tests.images.provenance.signing import authority, signed
from tests.inference.batches import rows_of
from tests.runs.real_run import score_here

ROOT = Path(__file__).resolve().parents[2]
PLAIN = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
SPEC = make_spec(
    load_ensemble_card("tiny"),
    limits=ImageLimits(),
    precision="fp32",
    provenance=ProvenancePolicy(trust_lists=(own_list(authority().root),), watermarks=True),
)
# The library's reader gone wrong: the process dies where a manifest is read, and nowhere else.
BROKEN = (
    "import os; from ray_app.images.provenance.reader import CredentialsReader; "
    "CredentialsReader.read = lambda *_: os.kill(os.getpid(), 11)"
)


def decoded(spec, *members, crumbs=None):
    decoder = BatchDecoder(spec, StageClock(), crumbs)
    decoder.careful.look_for_crumbs()
    batch = decoder.decode(list(enumerate(members)))
    decoder.close()
    return batch


def test_statements_stand_beside_the_same_pixels_and_reach_the_rows():
    files = (signed(), jpeg(), png_with(parameters="a cat\nSteps: 20, Sampler: Euler"), b"no image")
    batch, silent = decoded(SPEC, *files), decoded(PLAIN, *files)
    said = [outcome.provenance and json.loads(outcome.provenance) for outcome in batch.outcomes]
    assert said[0]["c2pa"]["state"] == "trusted"
    assert said[1] is said[3] is None
    assert said[2]["generator"]["steps"] == 20
    assert {outcome.provenance for outcome in silent.outcomes} == {None}
    assert [replace(outcome, provenance=None) for outcome in batch.outcomes] == list(
        silent.outcomes
    )
    np.testing.assert_array_equal(batch.pixels[0], silent.pixels[0])
    assert SPEC == PLAIN  # no other run by it
    # of the first no detector gave a score
    scores = np.array([np.nan, 2.0, 1.0, np.nan], np.float32)
    scored = judge(
        SPEC, batch.outcomes, DetectorOutputs.clean(scores=dict.fromkeys(SPEC.cards, scores))
    )
    assert [
        row["provenance"] and json.loads(row["provenance"])["ai_declared"]
        for row in rows_of(scored)
    ] == [True, None, True, None]


@pytest.mark.parametrize("style", ["L", "RGB", "RGBA", "CMYK"])
def test_a_watermark_is_read_wherever_a_file_is_decoded(style):
    marked, plain = (
        encoded(marked_photo().convert(style), "TIFF"),
        encoded(marked_photo().convert(style).rotate(90), "TIFF"),
    )
    wanted = DecodeRequest(
        preprocessings=(load_card("touchstone-tiny").preprocessing,), provenance=SPEC.provenance
    )
    with DecoderProcess(ImageLimits(), 60.0, 2**31) as child:
        answers = [child.prepare(file, wanted).provenance for file in (marked, plain)]
    here = [outcome.provenance for outcome in decoded(SPEC, marked, plain).outcomes]
    assert [answer and answer.row() for answer in answers] == here
    assert [said is not None for said in here] == [style != "L", False]  # grey has no colour
    blind = replace(SPEC, provenance=ProvenancePolicy())
    assert {outcome.provenance for outcome in decoded(blind, marked, plain).outcomes} == {None}


def test_a_manifest_that_kills_its_reader_costs_no_score(tmp_path):
    dying = f"""
{BROKEN}
from pathlib import Path
from tests.inference.test_provenance import SPEC, decoded
from tests.images.factory import jpeg
from tests.images.provenance.signing import signed
decoded(SPEC, jpeg(), signed(), crumbs=Path({str(tmp_path)!r}))
"""
    assert subprocess.run([sys.executable, "-c", dying], cwd=ROOT).returncode == -11
    batch = decoded(SPEC, signed(), signed(), crumbs=tmp_path)
    assert [outcome.status for outcome in batch.outcomes] == [Status.OK, Status.OK]
    states = [json.loads(outcome.provenance)["c2pa"]["state"] for outcome in batch.outcomes]
    assert states == ["trusted", "unreadable"]  # the crumb names the second


class Broken(DecoderProcess):
    first = BROKEN

    def _command(self):
        _, *flags, _, memory, wall, intake, library = super()._command()
        script = f"import sys; {self.first}; from ray_app.inference import decoder_child; decoder_child.main(sys.argv[1:])"
        return [sys.executable, *flags, "-c", script, memory, wall, intake, library]


@pytest.mark.parametrize(("child", "state"), [(DecoderProcess, "trusted"), (Broken, "unreadable")])
def test_an_endpoint_s_child_reads_it_and_survives_it(child, state):
    tiny = load_card("touchstone-tiny").preprocessing
    wanted = DecodeRequest(preprocessings=(tiny,), resize="exact", provenance=SPEC.provenance)
    with child(ImageLimits(), 60.0, 2**31) as running:
        answer = running.prepare(signed(), wanted)
        np.testing.assert_array_equal(answer.pixels[0], decoded(PLAIN, signed()).pixels[0][0])
        assert answer.provenance.c2pa.state == state
        assert running.prepare(jpeg(), wanted).provenance is None
        assert (
            running.prepare(signed(), wanted.model_copy(update={"provenance": None})).provenance
            is None
        )


def test_a_sidecar_whose_reader_crashes_costs_no_score(tmp_path):
    (tmp_path / "a.c2pa").write_bytes(authority().sidecar(jpeg()))
    file = attach_sidecar(jpeg(), str(tmp_path / "a.jpg"))
    wanted = DecodeRequest(
        preprocessings=(load_card("touchstone-tiny").preprocessing,), provenance=SPEC.provenance
    )
    for child, state in ((DecoderProcess, "trusted"), (Broken, "unreadable")):
        with child(ImageLimits(), 60.0, 2**31) as running:
            answer = running.prepare(file, wanted)
            assert (answer.provenance.c2pa.state, answer.facts.sha256) == (
                state,
                inspect_bytes(jpeg()).sha256,
            )
            assert running.prepare(jpeg(), wanted).provenance is None
    assert json.loads(decoded(SPEC, file).outcomes[0].provenance)["c2pa"]["sidecar"] is True


def test_a_sidecar_is_read_by_every_command(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        (folder / f"{name}.png").write_bytes(encoded(photo(seed=seed), "PNG"))
    (folder / "a.c2pa").write_bytes(authority().sidecar(encoded(photo(seed=1), "PNG"), "PNG"))
    assert main(["check", str(folder), "--ensemble", "tiny", "--json"]) == 0
    rows = {
        row["uri"].rpartition("/")[2]: row
        for row in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert rows["a.png"]["finding"] == "made by AI, signed by Throwaway (valid, signer unknown)"
    assert rows["a.c2pa"]["detail"].startswith("a C2PA manifest (sidecar)")
    url = score_here(load_ensemble_card("tiny"), folder, tmp_path / "run")
    assert main(["results", url, "--json"]) == 0
    scored = {
        row["uri"].rpartition("/")[2]: row["finding"]
        for row in map(json.loads, capsys.readouterr().out.splitlines())
    }
    results = load_ensemble("tiny").score(folder)
    expected = {name: row["finding"] for name, row in rows.items()}
    assert (
        expected
        == scored
        == {os.path.basename(result.source): result.finding for result in results}
    )


def test_a_sidecar_costs_no_request_on_object_storage(tmp_path, s3):
    bucket = s3.bucket("sidecars")
    files = {
        "a.png": encoded(photo(seed=1), "PNG"),
        "a.c2pa": authority().sidecar(encoded(photo(seed=1), "PNG"), "PNG"),
    }
    for name, data in files.items():
        s3.client().put_object(Bucket="sidecars", Key=name, Body=data)
    s3.clear_log()
    score_here(load_ensemble_card("tiny"), bucket, tmp_path / "run")
    gets = [path for method, path in s3.requests() if path.startswith("/sidecars/a")]
    # each as a member of the archive
    assert sorted(gets) == ["/sidecars/a.c2pa", "/sidecars/a.png"]


def test_metadata_is_read_up_to_the_limit_of_the_run():
    text = "a cat\nSteps: 20, Sampler: Euler" + " " * 2000
    for limit, is_read in ((4000, True), (1000, False)):
        limits = ImageLimits(max_text_bytes=limit)
        outcome = decoded(replace(SPEC, limits=limits), png_with(parameters=text)).outcomes[0]
        wanted = DecodeRequest(
            preprocessings=(load_card("touchstone-tiny").preprocessing,), provenance=SPEC.provenance
        )
        with DecoderProcess(limits, 60.0, 2**31) as child:
            answer = child.prepare(png_with(parameters=text), wanted)
        assert answer.provenance.row() == outcome.provenance
        assert (
            answer.facts.flags == outcome.facts.flags == (() if is_read else ("metadata_unread",))
        )
        assert (answer.provenance.generator is not None) == is_read
        assert answer.provenance.unread == (
            () if is_read else ("text “parameters”: over max_text_bytes (1000)",)
        )


def test_a_large_image_whose_manifest_kills_its_reader_is_asked_again_within_its_turn(monkeypatch):
    monkeypatch.setattr(limits, "SMALL_BYTES", 0)
    monkeypatch.setattr(
        Broken, "first", f"{BROKEN}; from ray_app.images import limits; limits.SMALL_BYTES = 0"
    )
    monkeypatch.setattr(decoder_pool, "DecoderProcess", Broken)
    wanted = DecodeRequest(
        preprocessings=(load_card("touchstone-tiny").preprocessing,),
        resize="exact",
        provenance=SPEC.provenance,
    )
    pool = decoder_pool.IsolatedDecoders(ImageLimits(), processes=1, wall_limit_s=60.0)
    answers = queue.SimpleQueue()
    threading.Thread(
        target=lambda: answers.put(pool.prepare(signed(), wanted)), daemon=True
    ).start()
    assert answers.get(timeout=120).provenance.c2pa.state == "unreadable"
    pool.close()
