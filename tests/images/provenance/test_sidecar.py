"""A C2PA manifest in a file next to a local image is read with it, and is believed only if it is
about this image.
"""

import os
import pickle
from pathlib import Path

import pytest

from ray_app.images.formats import sniff_format
from ray_app.images.provenance import (
    ProvenancePolicy,
    ProvenanceReader,
    attach_sidecar,
    get_sidecar,
    has_manifest,
)
from ray_app.images.provenance.trust_lists import load_own_list
from tests.make import images
from tests.make.provenance.signing import MIME, OTHERS, authority, created, signed

AI = "trainedAlgorithmicMedia"
READER = ProvenanceReader(ProvenancePolicy(trust_lists=(load_own_list(authority().root),)))
PILLOW = {"HEIC": "HEIF", "PNM": "PPM"}


def read(path):
    data = attach_sidecar(path.read_bytes(), str(path))
    return READER.read(data, sniff_format(data))


@pytest.mark.parametrize("form", [*MIME, *OTHERS])
def test_sidecar_is_read_for_every_format(form, tmp_path):
    data = images.encoded(images.photo(), PILLOW.get(form, form))
    (tmp_path / "photo.jpg").write_bytes(data)
    (tmp_path / "photo.c2pa").write_bytes(authority().sidecar(data, form))
    found = read(tmp_path / "photo.jpg")
    assert (found.c2pa.state, found.c2pa.source_types) == ("trusted", (AI,))
    assert (found.c2pa.sidecar, found.ai_declared) == (True, True)


def test_sidecar_of_another_image_says_nothing(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(images.jpeg(quality=50))
    (tmp_path / "photo.c2pa").write_bytes(authority().sidecar(images.jpeg()))
    found = read(tmp_path / "photo.jpg")
    assert (found.c2pa.state, found.c2pa.ai_generated) == ("unreadable", False)
    assert not found.ai_declared
    [problem] = found.c2pa.problems
    assert problem == "the sidecar does not match this image: assertion.dataHash.mismatch"


@pytest.mark.parametrize("content", [b"no manifest", bytes(200), b"\0\0\0\x30jumb" + bytes(100)])
def test_sidecar_that_is_not_a_manifest_is_unreadable(content, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(images.jpeg())
    (tmp_path / "photo.c2pa").write_bytes(content)
    found = read(tmp_path / "photo.jpg")
    assert found.c2pa.state == "unreadable"
    assert found.c2pa.problems == ("the sidecar is not a C2PA manifest store",)


def test_manifest_in_the_image_counts_before_its_sidecar(tmp_path):
    camera = authority().sign(images.jpeg(), manifest=created("digitalCapture"))
    (tmp_path / "photo.jpg").write_bytes(camera)
    (tmp_path / "photo.c2pa").write_bytes(authority().sidecar(images.jpeg()))
    found = read(tmp_path / "photo.jpg")
    assert (found.c2pa.state, found.c2pa.sidecar) == ("trusted", None)
    assert found.c2pa.source_types == ("digitalCapture",)


def test_file_without_a_sidecar_stays_as_it_is(tmp_path):
    path, data = tmp_path / "photo.jpg", images.jpeg()
    path.write_bytes(data)
    assert attach_sidecar(data, str(path)) is data
    for make in (Path.mkdir, os.mkfifo, Path.touch):
        sidecar = path.with_suffix(".c2pa")
        make(sidecar)
        assert attach_sidecar(data, str(path)) is data
        assert attach_sidecar(data, str(sidecar)) is data
        sidecar.rmdir() if sidecar.is_dir() else sidecar.unlink()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the descriptors in /proc")
def test_folder_with_the_name_of_a_sidecar_leaks_no_descriptor(tmp_path):
    (tmp_path / "photo.c2pa").mkdir()
    attach_sidecar(b"image", str(tmp_path / "photo.jpg"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        attach_sidecar(b"image", str(tmp_path / "photo.jpg"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_device_with_the_name_of_a_sidecar_is_not_read(tmp_path):
    (tmp_path / "photo.c2pa").symlink_to("/dev/zero")
    assert get_sidecar(attach_sidecar(b"image", str(tmp_path / "photo.jpg"))) == b""


def test_file_with_a_sidecar_survives_pickling(tmp_path):
    (tmp_path / "photo.c2pa").write_bytes(b"store")
    file = attach_sidecar(b"image", str(tmp_path / "photo.jpg"))
    copy = pickle.loads(pickle.dumps(file))
    assert (copy, get_sidecar(copy), has_manifest(copy, None)) == (b"image", b"store", True)
    assert get_sidecar(signed()) == b""
