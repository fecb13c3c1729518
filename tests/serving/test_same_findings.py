"""A folder with one file of each ground: the command, Python, the endpoint, and the rows of a run
have the same findings, in the same words.
"""

import contextlib
import io
import json
from contextlib import closing

import pytest

from ray_app import load_ensemble
from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.images.provenance import ProvenanceConfig
from ray_app.images.provenance.trust_lists import update_cache
from ray_app.runs import RunDirectory
from ray_app.serving.config import ServeConfig
from ray_app.serving.engine import Engine
from tests.ensembles.grounds_folder import FINDINGS, write_grounds
from tests.make.real_run import score_photos
from tests.make.stages import without_ray
from tests.serving.in_process import answers_of

# `check` searches for watermarks; everything else does if it is configured.
MARKS = ProvenanceConfig(watermarks=True)
MARKED = "marked-and-saved-again.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grounds") / "folder"


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    """What `check --json` prints, by file; the signers of the tests are on the fetched trust list."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TOUCHSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        trusted = folder.with_suffix(".pem")
        trusted.write_text(write_grounds(folder))
        assert [one.failure for one in update_cache({"official": str(trusted)}, offline=True)] == [
            None
        ]
        yield checked(folder)


def checked(folder):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["check", str(folder), "--ensemble", "tiny", "--json"]) == 0
    return by_name(out.getvalue())


def by_name(text):
    return {row["uri"].rpartition("/")[2]: row for row in map(json.loads, text.splitlines())}


def engine_answers(files, **config):
    """What the engine of an endpoint answers for some files."""
    with closing(Engine(ServeConfig(ensembles=("tiny",), **config))) as engine:
        answers = answers_of(engine, [file.read_bytes() for file in files])
    return [json.loads(answer.model_dump_json()) for answer in answers]


def test_check_finds_each_ground(found):
    assert {name: row["finding"] for name, row in found.items()} == FINDINGS
    contradicted = found["camera-signed-and-flagged.jpg"]["grounds"]
    assert [one["source"] for one in contradicted] == ["credentials", "detectors"]
    assert contradicted[1]["says"].startswith("against this, ")
    signer = "signature sound, signer on the C2PA trust list of 20"
    assert found["signed.jpg"]["grounds"][0]["error"].startswith(signer)
    assert {row["grounds"][-1]["source"] for row in found.values()} == {"detectors", "camera"}
    # A declaration changes no verdict.
    assert found["comfyui.png"]["verdict"] == found["nothing.jpg"]["verdict"] == "real"


def test_python_and_endpoint_find_the_same(found, folder):
    results = load_ensemble("tiny", device="cpu", provenance=MARKS).score(folder)
    answers = engine_answers([folder / name for name in found], provenance=MARKS)
    for (name, row), result, answer in zip(found.items(), results, answers, strict=True):
        assert result.source.endswith(name)
        for key in ("finding", "grounds", "verdict"):
            assert row[key] == result.to_dict()[key] == answer[key], name


def test_rows_of_a_run_have_the_same_findings(found, folder, tmp_path, capsys):
    card = load_ensemble_card("tiny")
    url = score_photos(card, folder, tmp_path / "run", provenance=MARKS.policy())
    assert main(["results", url, "--json"]) == 0
    rows = by_name(capsys.readouterr().out)
    assert rows.keys() == found.keys()
    for name, row in rows.items():
        assert (row["finding"], row["grounds"]) == (found[name]["finding"], found[name]["grounds"])
    counts = RunDirectory.open(url).read_json("summary.json")["findings"]
    assert counts["no evidence found"] == 2
    assert counts["says that ComfyUI made it"] == 1
    assert sum(counts.values()) == len(found)
    assert main(["results", url, "--finding", "signed by throwaway", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_watermarks_are_searched_only_if_configured(folder, found, tmp_path, capsys):
    file, nothing = folder / MARKED, "no evidence found"
    marked = ["--set", "provenance.watermarks=true"]
    for settings, finding in (([], nothing), (marked, found[MARKED]["finding"])):
        out = tmp_path / str(len(settings))
        command = ["score", str(file), "--out", str(out), "--ensemble", "tiny", *settings]
        with without_ray():
            assert main(command) == 0
        capsys.readouterr()
        assert main(["results", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["finding"] == finding
    assert load_ensemble("tiny", device="cpu").score(file).finding == nothing
    assert engine_answers([file])[0]["finding"] == nothing
