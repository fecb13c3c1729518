"""Trust lists in the user's cache: fetched over HTTP, kept where a fetch fails, used where no
config names another.
"""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from ray_app.errors import ConfigError
from ray_app.images.provenance import ProvenanceConfig, ProvenancePolicy, ProvenanceReader
from ray_app.images.provenance.trust_lists import (
    ADDRESSES,
    cached_files,
    load_cached_lists,
    update_cache,
)
from tests.make.provenance.signing import Authority, authority, signed
from tests.make.servers.faulty import FaultyServer

OTHER = Authority("Other")
# As the lists are published: remarks between the blocks, letters that are not ASCII, and no line
# end after the last.
FILES = {
    "official": f"Subject\tCN=Bücher\n{OTHER.root.strip()}",
    "time-stamps": OTHER.root,
    "interim": f"## frozen\n{Authority('Third').root.strip()}\n{authority().root.strip()}",
    "interim-signers": OTHER.leaf,
}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trust"


@pytest.fixture
def served(own_cache):
    with FaultyServer() as server:
        server.objects |= {f"/{name}": text.encode() for name, text in FILES.items()}
        yield server, {name: f"{server.url}/{name}" for name in FILES}


def outcome(addresses, **options):
    return {one.name: one for one in update_cache(addresses, **options)}


def test_trust_lists_are_fetched_and_used_in_order(served, own_cache):
    _, addresses = served
    assert load_cached_lists() == ()
    assert ProvenanceConfig().policy() == ProvenancePolicy()
    done = outcome(addresses)
    assert [one.failure for one in done.values()] == [None] * 4
    index = json.loads((own_cache / "lists.json").read_text())["files"]
    for name, text in FILES.items():
        digest = sha256(text.encode()).hexdigest()
        assert index[name]["address"] == addresses[name]
        assert (index[name]["sha256"], index[name]["certificates"]) == (digest, text.count("BEGIN"))
        assert (own_cache / f"{name}-{digest[:16]}.pem").read_bytes() == text.encode()
    official, interim = load_cached_lists()
    date, digests = index["official"]["fetched_at"][:10], [index[n]["sha256"][:12] for n in FILES]
    assert official.told == f"C2PA trust list of {date} (sha256 {digests[0]})"
    assert interim.told == f"interim trust list of {date} (sha256 {digests[2]}+{digests[3]})"
    reader = ProvenanceReader(ProvenanceConfig().policy())
    for data, used in ((OTHER.sign(signed()), official), (signed(), interim)):
        found = reader.read(data, "JPEG").c2pa
        assert (found.state, found.trust_lists) == ("trusted", (used.told,))
    assert ProvenanceConfig(trust_list="none").policy() == ProvenancePolicy()
    [own] = ProvenanceConfig(trust_list=OTHER.root).policy().trust_lists
    assert own.told.startswith("configured")


NO_BASE64 = FILES["official"].replace("MII", "AAA").encode()


@pytest.mark.parametrize(
    "bad", [b"<html>moved</html>", b"", NO_BASE64, b"\xff-----BEGIN CERTIFICATE-----"]
)
def test_trust_list_that_is_not_one_leaves_the_earlier(served, bad):
    server, addresses = served
    outcome(addresses)
    before = load_cached_lists()
    server.objects["/official"] = bad
    done = outcome(addresses)
    assert "no certificates, or one is damaged" in done["official"].failure
    assert done["official"].file.sha256 == sha256(FILES["official"].encode()).hexdigest()
    assert done["interim"].failure is None
    assert load_cached_lists() == before


def test_trust_list_of_an_unreachable_host_fails_alone(served):
    server, addresses = served
    del server.objects["/interim"]
    done = outcome(addresses | {"interim-signers": "http://127.0.0.1:9/allowed.pem"})
    assert done["interim"].file is None
    assert done["interim"].failure
    assert done["interim-signers"].failure
    assert list(cached_files()) == ["official", "time-stamps"]
    assert [one.told.partition(" of ")[0] for one in load_cached_lists()] == ["C2PA trust list"]


def test_trust_lists_offline_are_read_from_files_alone(served, tmp_path):
    server, addresses = served
    (tmp_path / "list.pem").write_text(FILES["official"])
    files = {"official": str(tmp_path / "list.pem"), "interim": addresses["interim"]}
    done = outcome(files, offline=True)
    assert done["official"].failure is None
    assert "offline" in done["interim"].failure
    assert not server.requests


def test_trust_lists_in_a_damaged_cache_name_the_command(served, own_cache):
    outcome(served[1])
    path = next(own_cache.glob("official-*.pem"))
    path.write_text(authority().root)
    with pytest.raises(ConfigError, match="changed since it was fetched") as caught:
        ProvenanceConfig().policy()
    assert "touchstone config trust update" in caught.value.hint
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        load_cached_lists()
    (own_cache / "lists.json").write_text("{")
    with pytest.raises(ConfigError, match=r"lists\.json"):
        load_cached_lists()


def test_trust_lists_of_the_user_are_not_read_by_tests():
    assert cached_files() == {}
    assert all(address.startswith("https://") for address in ADDRESSES.values())
    assert not Path(ADDRESSES["official"]).exists()
