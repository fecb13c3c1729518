"""C2PA manifests: intact, trusted, invalid and unreadable told apart, signed here by authorities of
our own.
"""

import socket
from pathlib import Path

import c2pa
import pytest

from ray_app.images.formats import sniff_format
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader, trust_lists
from ray_app.images.provenance import reader as credentials
from ray_app.images.provenance.trust_lists import TrustList, certificates, own_list
from tests.images import factory
from tests.images.provenance.files import said
from tests.images.provenance.signing import (
    MIME,
    SOURCE_TYPE,
    Authority,
    authority,
    created,
    signed,
    tampered,
)

AI = "trainedAlgorithmicMedia"


def c2pa_of(data, *trust_lists):
    lists = tuple(one if isinstance(one, TrustList) else own_list(one) for one in trust_lists)
    return ProvenanceReader(ProvenancePolicy(trust_lists=lists)).read(data, sniff_format(data)).c2pa


@pytest.mark.parametrize("form", MIME)
def test_intact_trusted_and_invalid_in_every_format(form):
    intact, trusted, invalid = (
        c2pa_of(signed(form)),
        c2pa_of(signed(form), authority().root),
        said(tampered(signed(form))),
    )
    assert (intact.state, intact.problems) == ("intact", ())
    assert (trusted.state, trusted.problems) == ("trusted", ())
    for one in (intact, trusted):
        assert (one.claim_generator, one.signer, one.ai_generated, one.source_types) == (
            "Throwaway 1",
            "Throwaway",
            True,
            (AI,),
        )
    assert invalid.c2pa.state == "invalid"
    assert invalid.c2pa.problems[0] in (
        "assertion.dataHash.mismatch",
        "assertion.bmffHash.mismatch",
        "claimSignature.mismatch",
    )
    assert not invalid.ai_declared  # what an invalid manifest says does not count


def test_another_authority_does_not_make_it_trusted():
    one = c2pa_of(signed(), Authority().root)
    assert (one.state, one.problems) == ("intact", ("signingCredential.untrusted",))


def test_the_first_list_that_a_signer_leads_to_is_named_and_of_a_stranger_all_that_were_asked():
    one, other, data = own_list(authority().root), own_list(Authority("Other").root), signed()
    for lists, state, told in (
        ((), "intact", ()),
        ((one, other), "trusted", (one.told,)),
        ((other, one), "trusted", (one.told,)),
        ((one.model_copy(update={"told": "first"}), one), "trusted", ("first",)),
        ((other,), "intact", (other.told,)),
    ):
        found = c2pa_of(data, *lists)
        assert (found.state, found.trust_lists) == (state, told)
    assert c2pa_of(tampered(data), one, other).trust_lists == ()


def test_a_list_may_name_signers_themselves_and_authorities_of_time_are_none():
    other = Authority("Other")
    [leaf] = certificates(authority().leaf.encode(), "leaf")
    by_name = TrustList(
        told="named", anchors=other.root, signers=(trust_lists._base64_sha256(leaf),)
    )
    clock = TrustList(told="clock", anchors=other.root, time_stamps=authority().root)
    both = TrustList(
        told="both", anchors=authority().root, time_stamps=f"{authority().root}\n{other.root}"
    )
    assert [c2pa_of(signed(), one).state for one in (by_name, clock, both)] == [
        "trusted",
        "intact",
        "trusted",
    ]


def test_a_signature_whose_certificate_ended_since_is_no_changed_file():
    # signed for three seconds of 2026 by an authority that nobody knows
    data = (Path(__file__).parent / "ended.jpg").read_bytes()
    for found in (c2pa_of(data), c2pa_of(data, authority().root)):
        assert (found.state, "signingCredential.expired" in found.problems, found.ai_generated) == (
            "intact",
            True,
            True,
        )
    assert c2pa_of(tampered(data)).state == "invalid"


def test_a_manifest_moved_to_another_picture_is_invalid():
    data, other = signed("PNG"), factory.encoded(factory.photo(seed=5), "PNG")
    at = data.index(b"caBX") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    assert c2pa_of(other[:33] + chunk + other[33:], authority().root).state == "invalid"


def test_an_edited_picture_keeps_what_its_parent_declared_and_a_camera_declares_no_model():
    camera = c2pa_of(authority().sign(factory.jpeg(), manifest=created("digitalCapture")))
    assert (camera.ai_generated, camera.source_types) == (False, ("digitalCapture",))
    edited = authority().sign(
        signed(), manifest={"claim_generator_info": [{"name": "Editor"}]}, intent="edit"
    )
    assert (c2pa_of(edited).state, c2pa_of(edited).ai_generated) == ("intact", True)
    for relationship, declared in (("componentOf", True), ("inputTo", False)):
        one = c2pa_of(
            authority().sign(
                factory.jpeg(),
                manifest=created("digitalCreation"),
                ingredient=(relationship, signed()),
            )
        )
        assert (one.state, one.ai_generated) == ("intact", declared)


PARTLY = "compositeWithTrainedAlgorithmicMedia"
EDITED = {"action": "c2pa.edited"}
ADOBE = {
    "com.adobe.digitalSourceType": SOURCE_TYPE + AI,
    "com.adobe.type": "remoteProvider.3rdParty",
    "com.adobe.details": "A model",
}
FORMS = {
    "an action": (
        "c2pa.actions",
        {"actions": [EDITED | {"digitalSourceType": SOURCE_TYPE + AI}]},
        AI,
    ),
    "an action of the second kind": (
        "c2pa.actions.v2",
        {"actions": [EDITED | {"digitalSourceType": SOURCE_TYPE + PARTLY}]},
        PARTLY,
    ),
    "C2PA's own vocabulary": (
        "c2pa.actions",
        {
            "actions": [
                EDITED
                | {"digitalSourceType": "http://c2pa.org/digitalsourcetype/trainedAlgorithmicData"}
            ]
        },
        "trainedAlgorithmicData",
    ),
    "https and a slash": (
        "c2pa.actions",
        {
            "actions": [
                EDITED
                | {"digitalSourceType": f"https://cv.iptc.org/newscodes/digitalsourcetype/{AI}/"}
            ]
        },
        AI,
    ),
    "Adobe's parameters": ("c2pa.actions", {"actions": [EDITED | {"parameters": ADOBE}]}, AI),
    "Adobe's parameters of the second kind": (
        "c2pa.actions.v2",
        {"actions": [EDITED | {"parameters": ADOBE}]},
        AI,
    ),
    "parameters": (
        "c2pa.actions",
        {"actions": [EDITED | {"parameters": {"digitalSourceType": SOURCE_TYPE + PARTLY}}]},
        PARTLY,
    ),
    "Adobe's assertion of 2023": (
        "com.adobe.generative-ai",
        {"description": "Adobe Firefly", "version": "0.9"},
        AI,
    ),
    "metadata in the clear": (
        "c2pa.metadata",
        {
            "@context": {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"},
            "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE + AI,
        },
        AI,
    ),
    "metadata with a list": (
        "c2pa.metadata",
        {
            "@context": {"e": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"},
            "e:DigitalSourceType": [{"@id": SOURCE_TYPE + AI}],
        },
        AI,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_source_type_is_read_wherever_a_manifest_has_it(name):
    label, content, code = FORMS[name]
    manifest = {
        "claim_generator_info": [{"name": "Editor"}],
        "assertions": [{"label": label, "data": content}],
    }
    found = c2pa_of(authority().sign(factory.jpeg(), manifest=manifest, intent="edit"))
    assert (found.state, found.ai_generated, found.source_types) == ("intact", True, (code,))


def test_source_type_of_a_component_counts_and_of_an_input_not():
    for relationship, declared in (("parentOf", True), ("componentOf", True), ("inputTo", False)):
        part = (relationship, factory.jpeg(), {"digital_source_type": SOURCE_TYPE + AI})
        found = c2pa_of(
            authority().sign(factory.jpeg(), manifest=created("digitalCreation"), ingredient=part)
        )
        assert (found.state, found.ai_generated) == ("intact", declared)


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
        embedded, elsewhere = (
            authority().sign(factory.jpeg(), remote=url, embed=embed) for embed in (True, False)
        )
        assert c2pa_of(embedded, authority().root).state == "trusted"
        assert (c2pa_of(elsewhere).state, c2pa_of(elsewhere).remote) == ("unreadable", True)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_the_library_knows_the_limit_on_what_a_manifest_inflates_to():
    with pytest.raises(c2pa.C2paError, match="max_decompressed_manifest_size_in_mb"):
        c2pa.Context.from_dict({"core": {"max_decompressed_manifest_size_in_mb": 10**9}})


def test_a_file_that_killed_a_process_is_not_given_to_native_code_again():
    one = ProvenanceReader(ProvenancePolicy()).read(signed(), "JPEG", native=False).c2pa
    assert (one.state, one.problems) == (
        "unreadable",
        ("not read: a process died while it worked on this file",),
    )
