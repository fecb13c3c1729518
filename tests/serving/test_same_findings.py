"""A folder with one file of each ground: the command, Python, HTTP and the rows of a run find the
same in it, and in no other words.
"""

import contextlib
import io
import json

import pytest

from ray_app import load_ensemble
from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.images.provenance import ProvenanceConfig
from ray_app.images.provenance.trust_lists import update_cache
from ray_app.runs import RunDirectory
from ray_app.serving.config import ServeConfig
from tests.ensembles.grounds_folder import FINDINGS, write_grounds
from tests.runs.real_run import score_here
from tests.scoring.stages import without_ray
from tests.serving.in_process import client, local_endpoint

# `check` searches for watermarks; everything else does if it is configured
MARKS = ProvenanceConfig(watermarks=True)


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
    return {
        row["uri"].rpartition("/")[2]: row for row in map(json.loads, out.getvalue().splitlines())
    }


def test_check_finds_each_ground(found):
    assert {name: row["finding"] for name, row in found.items()} == FINDINGS
    assert [one["source"] for one in found["camera-signed-and-flagged.jpg"]["grounds"]] == [
        "credentials",
        "detectors",
    ]
    assert found["camera-signed-and-flagged.jpg"]["grounds"][1]["says"].startswith("against this, ")
    assert found["signed.jpg"]["grounds"][0]["error"].startswith(
        "signature sound, signer on the C2PA trust list of 20"
    )
    assert {row["grounds"][-1]["source"] for row in found.values()} == {"detectors", "camera"}
    # a declaration changes no verdict
    assert found["comfyui.png"]["verdict"] == found["nothing.jpg"]["verdict"] == "real"


def test_python_finds_the_same(found, folder):
    for name, result in zip(
        found, load_ensemble("tiny", device="cpu", provenance=MARKS).score(folder), strict=True
    ):
        row, expected = result.to_dict(), found[name]
        assert result.source.endswith(name)
        assert [row[key] for key in ("finding", "grounds", "verdict")] == [
            expected[key] for key in ("finding", "grounds", "verdict")
        ]


def test_rows_of_a_run_hold_the_same_and_are_counted_and_filtered(found, folder, tmp_path, capsys):
    url = score_here(
        load_ensemble_card("tiny"), folder, tmp_path / "run", provenance=MARKS.policy()
    )
    assert main(["results", url, "--json"]) == 0
    rows = {
        row["uri"].rpartition("/")[2]: row
        for row in map(json.loads, capsys.readouterr().out.splitlines())
    }
    for name, row in rows.items():
        assert (row["finding"], row["grounds"]) == (found[name]["finding"], found[name]["grounds"])
    assert rows.keys() == found.keys()
    counts = RunDirectory.open(url).read_json("summary.json")["findings"]
    assert (
        counts["no evidence found"],
        counts["says that ComfyUI made it"],
        sum(counts.values()),
    ) == (2, 1, len(found))
    assert main(["results", url, "--finding", "signed by throwaway", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_http_answers_the_same(found, folder):
    with (
        local_endpoint(ServeConfig(ensembles=("tiny",), provenance=MARKS)) as (url, _),
        client(url) as asking,
    ):
        for name, row in found.items():
            answer = (
                asking.post("/v1/score", content=(folder / name).read_bytes())
                .raise_for_status()
                .json()
            )
            assert (answer["finding"], answer["grounds"]) == (row["finding"], row["grounds"])


def test_watermarks_are_searched_only_if_configured(folder, found, tmp_path, capsys):
    name = "marked-and-saved-again.jpg"
    with without_ray():
        for settings, finding in (
            ([], "no evidence found"),
            (["--set", "provenance.watermarks=true"], found[name]["finding"]),
        ):
            out = tmp_path / str(len(settings))
            assert (
                main(
                    [
                        "score",
                        str(folder / name),
                        "--out",
                        str(out),
                        "--ensemble",
                        "tiny",
                        *settings,
                    ]
                )
                == 0
            )
            capsys.readouterr()
            assert main(["results", str(out), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["finding"] == finding
    assert load_ensemble("tiny", device="cpu").score(folder / name).finding == "no evidence found"
    with local_endpoint() as (url, _), client(url) as asking:
        answer = (
            asking.post("/v1/score", content=(folder / name).read_bytes()).raise_for_status().json()
        )
        assert answer["finding"] == "no evidence found"
