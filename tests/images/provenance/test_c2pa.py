"""C2PA manifests: intact, trusted, invalid and unreadable told apart, signed here by authorities of our own."""

import socket

import c2pa
import pytest

from ray_app.images.formats import sniff_format
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader
from ray_app.images.provenance import c2pa as credentials
from tests.images import factory
from tests.images.provenance.files import said
from tests.images.provenance.signing import MIME, Authority, authority, created, signed, tampered

AI = "trainedAlgorithmicMedia"


def c2pa_of(data, trust_list=None):
    return ProvenanceReader(ProvenancePolicy(trust_list=trust_list)).read(data, sniff_format(data)).c2pa


@pytest.mark.parametrize("form", MIME)
def test_intact_trusted_and_invalid_in_every_format(form):
    intact, trusted, invalid = c2pa_of(signed(form)), c2pa_of(signed(form), authority().root), said(tampered(signed(form)))
    assert (intact.state, intact.problems) == ("intact", ())
    assert (trusted.state, trusted.problems) == ("trusted", ())
    for one in (intact, trusted):
        assert (one.claim_generator, one.signer, one.ai_generated, one.source_types) == ("Throwaway 1", "Throwaway", True, (AI,))
    assert invalid.c2pa.state == "invalid"
    assert invalid.c2pa.problems[0] in ("assertion.dataHash.mismatch", "assertion.bmffHash.mismatch", "claimSignature.mismatch")
    assert not invalid.ai_declared  # what an invalid manifest says does not count


def test_another_authority_does_not_make_it_trusted():
    one = c2pa_of(signed(), Authority().root)
    assert (one.state, one.problems) == ("intact", ("signingCredential.untrusted",))


def test_a_manifest_moved_to_another_picture_is_invalid():
    data, other = signed("PNG"), factory.encoded(factory.photo(seed=5), "PNG")
    at = data.index(b"caBX") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    assert c2pa_of(other[:33] + chunk + other[33:], authority().root).state == "invalid"


def test_an_edited_picture_keeps_what_its_parent_declared_and_a_camera_declares_no_model():
    camera = c2pa_of(authority().sign(factory.jpeg(), manifest=created("digitalCapture")))
    assert (camera.ai_generated, camera.source_types) == (False, ("digitalCapture",))
    edited = authority().sign(signed(), manifest={"claim_generator_info": [{"name": "Editor"}]}, intent="edit")
    assert (c2pa_of(edited).state, c2pa_of(edited).ai_generated) == ("intact", True)
    for relationship, declared in (("componentOf", True), ("inputTo", False)):
        one = c2pa_of(authority().sign(factory.jpeg(), manifest=created("digitalCreation"), ingredient=(relationship, signed())))
        assert (one.state, one.ai_generated) == ("intact", declared)


def test_what_cannot_be_read_is_said(monkeypatch):
    data = bytearray(signed("PNG"))
    at = data.index(b"c2pa.claim")
    data[at - 60 : at + 40] = bytes(100)
    one = said(bytes(data)).c2pa
    assert (one.state, one.ai_generated) == ("unreadable", False)
    assert len(one.problems) == 1
    monkeypatch.setattr(credentials, "MOST_STORE_BYTES", 1000)
    assert "is over 1000" in said(signed()).c2pa.problems[0]


def test_nothing_is_ever_fetched():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/manifest.c2pa"
        embedded, elsewhere = (authority().sign(factory.jpeg(), remote=url, embed=embed) for embed in (True, False))
        assert c2pa_of(embedded, authority().root).state == "trusted"
        assert (c2pa_of(elsewhere).state, c2pa_of(elsewhere).remote) == ("unreadable", True)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_the_library_knows_the_limit_on_what_a_manifest_inflates_to():
    with pytest.raises(c2pa.C2paError, match="max_decompressed_manifest_size_in_mb"):
        c2pa.Context.from_dict({"core": {"max_decompressed_manifest_size_in_mb": 10**9}})


def test_a_file_that_killed_a_process_is_not_given_to_native_code_again():
    one = ProvenanceReader(ProvenancePolicy()).read(signed(), "JPEG", native=False).c2pa
    assert (one.state, one.problems) == ("unreadable", ("not read: a process died while it worked on this file",))
