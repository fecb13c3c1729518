"""`touchstone config trust`: fetch trust lists, and check an image against them."""

import pytest

from ray_app.images.provenance.trust_lists import ADDRESSES
from tests.make.provenance.signing import Authority, authority, signed
from tests.make.servers.faulty import FaultyServer


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    for name in ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FaultyServer() as server:
        for name in ADDRESSES:
            server.objects[f"/{name}"] = Authority(name).root.encode()
        server.objects["/interim"] = authority().root.encode()
        yield server


@pytest.fixture
def update(server, touchstone):
    addresses = [f"--address={name}={server.url}/{name}" for name in ADDRESSES]
    return lambda: touchstone("config trust update", *addresses)


def test_check_trusts_signers_of_fetched_lists(server, update, tmp_path, touchstone):
    image, page = tmp_path / "signed.jpg", tmp_path / "page.html"
    image.write_bytes(signed())
    check = f"check {image} --detector touchstone-tiny"
    told = touchstone(f"{check} --html {page}").out
    assert "touchstone config trust update" in told
    assert "touchstone config trust update" in page.read_text()
    shown = update()
    assert shown.code == 0
    assert "interim: 1 certificates, " in shown.out
    assert f"from {server.url}/interim" in shown.out
    name = "on the interim trust list of 20"
    assert f"C2PA: 1 signer {name}" in touchstone(f"{check} --html {page}").out
    assert name in page.read_text()
    c2pa = touchstone(f"{check} --json").document["provenance"]["c2pa"]
    assert c2pa["state"] == "trusted"
    assert c2pa["trust_lists"][0].startswith("interim trust list of ")


def test_update_that_fails_keeps_the_earlier_list(server, update, touchstone):
    assert update().code == 0
    server.objects["/official"] = b"<html>"
    ended = update()
    assert ended.code == 5
    assert "no certificates, or one is damaged; the copy of 20" in ended.err
    assert ended.out.count("certificates") == len(ADDRESSES)
    assert set(touchstone("config trust show --json").document) == set(ADDRESSES)
    assert touchstone("config trust update --address=x=1").code == 2
