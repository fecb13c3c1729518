"""Signatures with keys that openssl made, and what is no such key."""

import base64
import copy
import json
import shutil
import subprocess

import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError
from ray_app.evaluation.evidence.record import canonical, digest, make_evidence
from ray_app.evaluation.evidence.signature import check_signature, signed
from ray_app.evaluation.evidence.verify import read_evidence
from tests.reports.page_reader import read as read_page

if shutil.which("openssl") is None:
    pytest.skip("openssl makes the keys and checks the signatures, and is not on this machine", allow_module_level=True)


def openssl(*words, **how):
    return subprocess.run(["openssl", *words], check=True, capture_output=True, **how).stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs as openssl writes them: (private, public) each."""
    folder, pairs = tmp_path_factory.mktemp("keys"), []
    for name in ("mine", "others"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        openssl("genpkey", "-algorithm", "ed25519", "-out", str(private))
        openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
        pairs.append((private, public))
    return pairs


@pytest.fixture(scope="module")
def told(plain_run, photos):
    return make_evidence(plain_run, str(photos / "photo-3.jpg"))


def test_a_signature_is_of_the_whole_record(told, keys, tmp_path):
    (mine, public), (_, others) = keys
    record = signed(told, mine)
    assert check_signature(record, public).outcome == "agrees"
    assert record["signature"]["key"] in check_signature(record, public).told
    assert (check_signature(record, others).outcome, check_signature(told, public).outcome) == ("differs", "differs")
    assert "not signed" in check_signature(told, public).told
    for change in (
        lambda one: one["record"]["row"].update(score=9.0),
        lambda one: one.update(touchstone_evidence=2),
        lambda one: one["signature"].update(signature=base64.b64encode(bytes(64)).decode()),
        lambda one: one["signature"].update(signature="no base64!"),
        lambda one: one["signature"].update(algorithm="none"),
        lambda one: one.update(signature="x"),
    ):
        other = copy.deepcopy(record)
        change(other)
        assert check_signature(other, public).outcome == "differs"
    forged = copy.deepcopy(record)
    forged["record"]["row"]["verdict"] = "fake"
    forged["sha256"] = digest(forged["record"])
    assert check_signature(forged, public).told.endswith("of another record than this")


def test_another_program_checks_it_too(told, keys, tmp_path):
    (mine, public), _ = keys
    record = signed(told, mine)
    signature = record.pop("signature")
    (tmp_path / "message").write_bytes(canonical(record))
    (tmp_path / "signature").write_bytes(base64.b64decode(signature["signature"]))
    words = ["pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", "message", "-sigfile", "signature"]
    assert b"Verified" in openssl(*words, cwd=tmp_path)


def test_what_is_no_key_is_said(told, keys, tmp_path):
    (mine, public), _ = keys
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(tmp_path / "ec.pem"))
    openssl("pkey", "-in", str(mine), "-aes256", "-passout", "pass:x", "-out", str(tmp_path / "locked.pem"))
    (tmp_path / "empty.pem").write_bytes(b"")
    for path, said in (
        (public, "no private Ed25519 key"), (tmp_path / "ec.pem", "no private Ed25519 key"), (tmp_path / "empty.pem", "no private"),
        (tmp_path / "locked.pem", "with a password"), (tmp_path / "none.pem", "No such file"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            signed(told, path)
    with pytest.raises(ConfigError, match="no public Ed25519 key") as caught:
        check_signature(told, mine)
    assert "openssl" in caught.value.hint


def test_from_the_command_line(plain_run, photos, keys, tmp_path, capsys):
    (mine, public), (_, others) = keys
    record = tmp_path / "ev" / "evidence.json"
    assert main(["runs", "evidence", plain_run, str(photos / "photo-3.jpg"), "--out", str(record.parent), "--sign", str(mine)]) == 0
    key = read_evidence(record)["signature"]["key"]
    assert f"signed with the key: {key}" in capsys.readouterr().out
    assert key in read_page(record.with_suffix(".html").read_text()).text
    verify = ["evidence", "--verify", str(record), "--json"]
    for words, code, outcome in ((["--signer", str(public)], 0, "agrees"), ([], 0, None), (["--signer", str(others)], 3, "differs")):
        assert main([*verify, *words]) == code
        answer = json.loads(capsys.readouterr().out)
        assert {check["name"]: check["outcome"] for check in answer["checks"]}.get("signature") == outcome
        assert ("signature" in {field for one in answer["not_verified"] for field in one["fields"]}) == (outcome is None)
    for words in (
        [*verify, "--signer", str(tmp_path / "none.pem")], [*verify, "--sign", str(mine)],
        ["runs", "evidence", plain_run, "1", "--out", str(tmp_path), "--signer", str(public)],
    ):  # fmt: skip
        assert main(words) == 2
