"""`touchstone config trust`: lists come by one command, what does not come is said, and a check
names the list that counted.
"""

import json

import pytest

from ray_app.cli.main import main
from ray_app.images.provenance.trust_lists import ADDRESSES
from tests.images.provenance.signing import Authority, authority, signed
from tests.storage.faulty_server import FaultyServer


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    for name in ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FaultyServer() as server:
        server.objects |= {f"/{name}": Authority(name).root.encode() for name in ADDRESSES} | {
            "/interim": authority().root.encode()
        }
        yield server


def update(server):
    return main(
        [
            "config",
            "trust",
            "update",
            *(f"--address={name}={server.url}/{name}" for name in ADDRESSES),
        ]
    )


def test_a_check_trusts_the_signers_on_the_fetched_lists_and_without_them_says_how_to_get_them(
    server, tmp_path, capsys
):
    (tmp_path / "signed.jpg").write_bytes(signed())
    check = [
        "check",
        str(tmp_path / "signed.jpg"),
        "--detector",
        "touchstone-tiny",
        "--html",
        str(tmp_path / "page.html"),
    ]
    assert main(check) == 0
    page = (tmp_path / "page.html").read_text()
    for told in (capsys.readouterr().out, page):
        assert "touchstone config trust update" in told
    assert update(server) == 0
    shown = capsys.readouterr().out
    assert "interim: 1 certificates, " in shown
    assert f"from {server.url}/interim" in shown
    assert main(check) == 0
    name = "on the interim trust list of 20"
    assert f"C2PA: 1 signer {name}" in capsys.readouterr().out
    assert name in (tmp_path / "page.html").read_text()
    assert main([*check[:4], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["provenance"]["c2pa"]
    assert (said["state"], said["trust_lists"][0].partition(" of ")[0]) == (
        "trusted",
        "interim trust list",
    )


def test_what_was_not_fetched_is_said_and_the_earlier_one_stays(server, capsys):
    assert update(server) == 0
    capsys.readouterr()
    server.objects["/official"] = b"<html>"
    assert update(server) == 5
    captured = capsys.readouterr()
    assert "no certificates, or one is damaged; the one of 20" in captured.err
    assert captured.out.count("certificates") == len(ADDRESSES)
    assert main(["config", "trust", "show", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(ADDRESSES)
    assert main(["config", "trust", "update", "--address=x=1"]) == 2
