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
from ray_app.images.provenance.trust_lists import TrustList, load_own_list, parse_certificates
from tests.make import images
from tests.make.provenance.files import said
from tests.make.provenance.signing import (
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
    lists = tuple(one if isinstance(one, TrustList) else load_own_list(one) for one in trust_lists)
    return ProvenanceReader(ProvenancePolicy(trust_lists=lists)).read(data, sniff_format(data)).c2pa


@pytest.mark.parametrize("form", MIME)
def test_manifest_is_intact_trusted_or_invalid_in_every_format(form):
    intact, trusted = c2pa_of(signed(form)), c2pa_of(signed(form), authority().root)
    for found, state in ((intact, "intact"), (trusted, "trusted")):
        assert (found.state, found.problems, found.ai_generated) == (state, (), True)
        assert (found.claim_generator, found.signer) == ("Throwaway 1", "Throwaway")
        assert found.source_types == (AI,)
    invalid = said(tampered(signed(form)))
    assert invalid.c2pa.state == "invalid"
    assert invalid.c2pa.problems[0].endswith("Hash.mismatch") or invalid.c2pa.problems[0] == (
        "claimSignature.mismatch"
    )
    assert not invalid.ai_declared, "what an invalid manifest says does not count"


def test_manifest_names_the_first_list_with_its_signer():
    """Of a stranger it names all lists that were asked."""
    ours, other, data = (
        load_own_list(authority().root),
        load_own_list(Authority("Other").root),
        signed(),
    )
    named = ours.model_copy(update={"told": "first"})
    for lists, state, told in (
        ((), "intact", ()),
        ((ours, other), "trusted", (ours.told,)),
        ((other, ours), "trusted", (ours.told,)),
        ((named, ours), "trusted", ("first",)),
        ((other,), "intact", (other.told,)),
    ):
        found = c2pa_of(data, *lists)
        assert (found.state, found.trust_lists) == (state, told)
    assert c2pa_of(data, other).problems == ("signingCredential.untrusted",)
    assert c2pa_of(tampered(data), ours, other).trust_lists == ()


def test_trust_list_may_name_signers_and_no_clocks():
    other, root = Authority("Other"), authority().root
    [leaf] = parse_certificates(authority().leaf.encode(), "leaf")
    signers = (trust_lists._base64_sha256(leaf),)
    by_name = TrustList(told="named", anchors=other.root, signers=signers)
    clock = TrustList(told="clock", anchors=other.root, time_stamps=root)
    both = TrustList(told="both", anchors=root, time_stamps=f"{root}\n{other.root}")
    states = [c2pa_of(signed(), trust_list).state for trust_list in (by_name, clock, both)]
    assert states == ["trusted", "intact", "trusted"]


def test_manifest_of_an_expired_certificate_is_intact():
    # signed for three seconds of 2026 by an authority that nobody knows
    data = (Path(__file__).parent / "ended.jpg").read_bytes()
    for found in (c2pa_of(data), c2pa_of(data, authority().root)):
        assert (found.state, found.ai_generated) == ("intact", True)
        assert "signingCredential.expired" in found.problems
    assert c2pa_of(tampered(data)).state == "invalid"


def test_manifest_of_another_image_is_invalid():
    data, other = signed("PNG"), images.encoded(images.photo(seed=5), "PNG")
    at = data.index(b"caBX") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    assert c2pa_of(other[:33] + chunk + other[33:], authority().root).state == "invalid"


def test_manifest_of_a_camera_declares_no_model():
    camera = c2pa_of(authority().sign(images.jpeg(), manifest=created("digitalCapture")))
    assert (camera.ai_generated, camera.source_types) == (False, ("digitalCapture",))


def test_manifest_of_an_edit_keeps_what_its_parent_declared():
    editor = {"claim_generator_info": [{"name": "Editor"}]}
    edited = c2pa_of(authority().sign(signed(), manifest=editor, intent="edit"))
    assert (edited.state, edited.ai_generated) == ("intact", True)


INGREDIENT = {"digital_source_type": SOURCE_TYPE + AI}


@pytest.mark.parametrize(
    ("ingredient", "declared"),
    [
        (("componentOf", signed()), True),
        (("inputTo", signed()), False),
        (("parentOf", images.jpeg(), INGREDIENT), True),
        (("componentOf", images.jpeg(), INGREDIENT), True),
        (("inputTo", images.jpeg(), INGREDIENT), False),
    ],
    ids=["signed-component", "signed-input", "parent", "component", "input"],
)
def test_source_type_of_a_component_counts_and_of_an_input_not(ingredient, declared):
    manifest = created("digitalCreation")
    found = c2pa_of(authority().sign(images.jpeg(), manifest=manifest, ingredient=ingredient))
    assert (found.state, found.ai_generated) == ("intact", declared)


PARTLY = "compositeWithTrainedAlgorithmicMedia"
OWN = "http://c2pa.org/digitalsourcetype/trainedAlgorithmicData"
ADOBE = {"com.adobe.digitalSourceType": SOURCE_TYPE + AI, "com.adobe.details": "A model"}
ADOBE["com.adobe.type"] = "remoteProvider.3rdParty"
SPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"


def action(source_type: str) -> dict[str, str]:
    return {"digitalSourceType": source_type}


# Name → the label of an assertion, the fields of its action or its content, the code.
FORMS = {
    "an action": ("c2pa.actions", action(SOURCE_TYPE + AI), AI),
    "an action of the second kind": ("c2pa.actions.v2", action(SOURCE_TYPE + PARTLY), PARTLY),
    "C2PA's own vocabulary": ("c2pa.actions", action(OWN), "trainedAlgorithmicData"),
    "https and a slash": (
        "c2pa.actions",
        action(f"https://cv.iptc.org/newscodes/digitalsourcetype/{AI}/"),
        AI,
    ),
    "Adobe's parameters": ("c2pa.actions", {"parameters": ADOBE}, AI),
    "Adobe's parameters of the second kind": ("c2pa.actions.v2", {"parameters": ADOBE}, AI),
    "parameters": ("c2pa.actions", {"parameters": action(SOURCE_TYPE + PARTLY)}, PARTLY),
    "Adobe's assertion of 2023": (
        "com.adobe.generative-ai",
        {"description": "Adobe Firefly", "version": "0.9"},
        AI,
    ),
    "metadata in the clear": (
        "c2pa.metadata",
        {"@context": {"Iptc4xmpExt": SPACE}, "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE + AI},
        AI,
    ),
    "metadata with a list": (
        "c2pa.metadata",
        {"@context": {"e": SPACE}, "e:DigitalSourceType": [{"@id": SOURCE_TYPE + AI}]},
        AI,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_source_type_is_read_from_every_assertion(name):
    label, content, code = FORMS[name]
    if label.startswith("c2pa.actions"):
        content = {"actions": [{"action": "c2pa.edited"} | content]}
    assertions = [{"label": label, "data": content}]
    manifest = {"claim_generator_info": [{"name": "Editor"}], "assertions": assertions}
    found = c2pa_of(authority().sign(images.jpeg(), manifest=manifest, intent="edit"))
    assert (found.state, found.ai_generated, found.source_types) == ("intact", True, (code,))


def test_manifest_that_is_damaged_or_large_is_unreadable(monkeypatch):
    data = bytearray(signed("PNG"))
    at = data.index(b"c2pa.claim")
    data[at - 60 : at + 40] = bytes(100)
    one = said(bytes(data)).c2pa
    assert (one.state, one.ai_generated) == ("unreadable", False)
    assert len(one.problems) == 1
    monkeypatch.setattr(credentials, "MAX_STORE_BYTES", 1000)
    assert "is over 1000" in said(signed()).c2pa.problems[0]


def test_manifest_elsewhere_is_never_fetched():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/manifest.c2pa"
        embedded, elsewhere = (
            authority().sign(images.jpeg(), remote=url, embed=embed) for embed in (True, False)
        )
        assert c2pa_of(embedded, authority().root).state == "trusted"
        assert (c2pa_of(elsewhere).state, c2pa_of(elsewhere).remote) == ("unreadable", True)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_c2pa_library_has_the_limit_on_inflated_manifests():
    with pytest.raises(c2pa.C2paError, match="max_decompressed_manifest_size_in_mb"):
        c2pa.Context.from_dict({"core": {"max_decompressed_manifest_size_in_mb": 10**9}})


def test_manifest_that_killed_a_process_is_not_read_again():
    one = ProvenanceReader(ProvenancePolicy()).read(signed(), "JPEG", native=False).c2pa
    assert (one.state, one.problems) == (
        "unreadable",
        ("not read: a process died while it worked on this file",),
    )
