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
    cached_lists,
    update_cache,
)
from tests.images.provenance.signing import Authority, authority, signed
from tests.storage.faulty_server import FaultyServer

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


def test_lists_are_fetched_whole_and_used_in_their_order(served, own_cache):
    _, addresses = served
    assert cached_lists() == ()
    assert ProvenanceConfig().policy() == ProvenancePolicy()
    done = outcome(addresses)
    assert [one.failure for one in done.values()] == [None] * 4
    index = json.loads((own_cache / "lists.json").read_text())["files"]
    for name, text in FILES.items():
        digest = sha256(text.encode()).hexdigest()
        assert index[name]["address"] == addresses[name]
        assert (index[name]["sha256"], index[name]["certificates"]) == (digest, text.count("BEGIN"))
        assert (own_cache / f"{name}-{digest[:16]}.pem").read_bytes() == text.encode()
    official, interim = cached_lists()
    date, digests = (
        index["official"]["fetched_at"][:10],
        [index[name]["sha256"][:12] for name in FILES],
    )
    assert official.told == f"C2PA trust list of {date} (sha256 {digests[0]})"
    assert interim.told == f"interim trust list of {date} (sha256 {digests[2]}+{digests[3]})"
    reader = ProvenanceReader(ProvenanceConfig().policy())
    told = {
        name: reader.read(data, "JPEG").c2pa
        for name, data in {"official": OTHER.sign(signed()), "interim": signed()}.items()
    }
    assert [(one.state, one.trust_lists) for one in told.values()] == [
        ("trusted", (official.told,)),
        ("trusted", (interim.told,)),
    ]
    assert ProvenanceConfig(trust_list="none").policy() == ProvenancePolicy()
    assert [
        one.told[:10] for one in ProvenanceConfig(trust_list=OTHER.root).policy().trust_lists
    ] == ["configured"]


@pytest.mark.parametrize(
    "bad",
    [
        b"<html>moved</html>",
        b"",
        FILES["official"].replace("MII", "AAA").encode(),
        b"\xff-----BEGIN CERTIFICATE-----",
    ],
)
def test_what_is_no_list_leaves_the_earlier_one_in_use(served, bad):
    server, addresses = served
    outcome(addresses)
    before = cached_lists()
    server.objects["/official"] = bad
    done = outcome(addresses)
    assert "no certificates, or one is damaged" in done["official"].failure
    assert done["official"].file.sha256 == sha256(FILES["official"].encode()).hexdigest()
    assert done["interim"].failure is None
    assert cached_lists() == before


def test_a_host_that_refuses_or_is_not_there_fails_one_list_alone(served):
    server, addresses = served
    del server.objects["/interim"]
    done = outcome(addresses | {"interim-signers": "http://127.0.0.1:9/allowed.pem"})
    assert done["interim"].file is None
    assert done["interim"].failure
    assert done["interim-signers"].failure
    assert list(cached_files()) == ["official", "time-stamps"]
    assert [one.told.partition(" of ")[0] for one in cached_lists()] == ["C2PA trust list"]


def test_offline_only_files_of_this_machine_are_read(served, tmp_path):
    server, addresses = served
    (tmp_path / "list.pem").write_text(FILES["official"])
    done = outcome(
        {"official": str(tmp_path / "list.pem"), "interim": addresses["interim"]}, offline=True
    )
    assert done["official"].failure is None
    assert "offline" in done["interim"].failure
    assert not server.requests


def test_a_damaged_cache_is_said_with_the_way_out(served, own_cache):
    outcome(served[1])
    path = next(own_cache.glob("official-*.pem"))
    path.write_text(authority().root)
    with pytest.raises(ConfigError, match="changed since it was fetched") as caught:
        ProvenanceConfig().policy()
    assert "touchstone config trust update" in caught.value.hint
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        cached_lists()
    (own_cache / "lists.json").write_text("{")
    with pytest.raises(ConfigError, match=r"lists\.json"):
        cached_lists()


def test_tests_never_read_the_lists_of_who_runs_them():
    assert cached_files() == {}
    assert all(address.startswith("https://") for address in ADDRESSES.values())
    assert not Path(ADDRESSES["official"]).exists()
