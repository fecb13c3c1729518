"""`touchstone detectors fetch ENSEMBLE` from a hub, whatever happens on the way."""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks.seeded import seeded_state, write_weights
from ray_app.config import named_configs
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.weights import list_parts
from ray_app.ensembles import load_ensemble_card
from tests.make import images
from tests.make.cards import UNPUBLISHED
from tests.make.networks import small_clip
from tests.make.servers.model_hub import ModelHub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and a user with a network and nothing on the disk."""
    for name in ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE", "TOUCHSTONE_WEIGHTS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config.yaml"))
    with ModelHub() as server:
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(constants + "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants + "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants + "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def ensemble(hub, tmp_path):
    """Two small detectors in the published layout: a network of one file, and a head on a tower
    whose file also has a text tower.
    """
    preprocessing = {"resize": {"mode": "squash", "size": 64}}
    kind = {"name": "small", "title": "A small ViT", "family": "timm-classifier"}
    network = {
        "architecture": {"name": "test_vit", "arguments": {"img_size": 64}},
        "preprocessing": preprocessing,
    }
    card = DetectorCard.model_validate(kind | network | UNPUBLISHED)
    vit_file = write_weights(
        tmp_path / "made" / "small.safetensors", seeded_state(card)
    ).read_bytes()
    _, path = small_clip.small_card(tmp_path / "made")
    vit_at = hub.commit("owners/vit", {"model.safetensors": vit_file})
    clip_at = hub.commit(
        "owners/clip", {"clip.safetensors": (tmp_path / "made" / "clip.safetensors").read_bytes()}
    )
    folder = tmp_path / "cards"
    folder.mkdir()
    vit = card.model_dump(mode="json", exclude_unset=True)
    vit["weights"] = {
        "uri": f"hf://owners/vit@{vit_at}/model.safetensors",
        "sha256": hashlib.sha256(vit_file).hexdigest(),
    }
    clip = yaml.safe_load(path.read_text())
    clip["backbone"]["weights"]["uri"] = f"hf://owners/clip@{clip_at}/clip.safetensors"
    for name, content in (("small", vit), ("small-clip", clip)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(tmp_path / "made" / "weights.pth", folder / "weights.pth")
    shutil.rmtree(tmp_path / "made")
    members = [{"detector": f"{name}.yaml"} for name in ("small", "small-clip")]
    (folder / "both.yaml").write_text(
        yaml.safe_dump(
            {"name": "both", "title": "Both", "members": members, "rule": "mean-probability"}
        )
    )
    return folder / "both.yaml"


def downloads(hub):
    return {len(data): data for files in hub.commits.values() for data in files.values()}


def test_fetched_ensemble_checks_an_image_offline(hub, ensemble, tmp_path, monkeypatch, touchstone):
    ended = touchstone("detectors fetch", ensemble)
    assert ended.code == 0
    total = sum(downloads(hub)) / 1e6
    assert f"to fetch: {total:,.1f} MB in 2 of 2 downloads" in ended.err
    assert f"next: touchstone check PHOTO.jpg --ensemble {ensemble}" in ended.err
    assert "not calibrated" in ended.err
    assert len(ended.out.splitlines()) == 3
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    (tmp_path / "photo.jpg").write_bytes(images.jpeg())
    ended = touchstone("check", tmp_path / "photo.jpg", "--ensemble", ensemble)
    assert ended.code == 0
    assert "not calibrated" in ended.out
    assert touchstone("detectors fetch", ensemble).code == 0
    assert hub.requests == []


def test_fetch_resumes_a_download_that_was_cut(hub, ensemble, monkeypatch, touchstone):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # from 10 MiB
    hub.cuts.append(1000)
    assert touchstone("detectors fetch", ensemble).code == 0
    assert hub.elsewhere.ranges == ["", "bytes=1000-", ""]


def test_fetch_refuses_a_damaged_file_and_names_it(hub, ensemble, touchstone):
    for size, data in downloads(hub).items():
        hub.damaged[size] = data[:-1] + bytes([data[-1] ^ 1])
    ended = touchstone("detectors fetch", ensemble)
    assert ended.code == 4
    assert "the card states" in ended.err  # The card has the SHA-256 of one file,
    assert "the hub states" in ended.err  # and the hub that of the other.
    hub.damaged.clear()
    for line in ended.err.splitlines():
        if "is not the file" in line:
            place = line.split(": ")[2].partition(" is not")[0]
            assert "/blobs/" in place
            Path(place).unlink()
    assert touchstone("detectors fetch", ensemble).code == 0


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ("gated", "accepted terms: https://huggingface.co/owners/clip"),
        ("private", "hf auth login"),
    ],
)
def test_fetch_names_a_closed_repository(hub, ensemble, refusal, said, touchstone):
    getattr(hub, refusal).add("owners/clip")
    ended = touchstone("detectors fetch", ensemble)
    assert ended.code == 4
    assert said in ended.err
    assert "1 of 2 downloads; 1 of unknown size" in ended.err
    assert "next:" not in ended.err
    assert len(ended.out.splitlines()) == 1


def test_fetch_refuses_a_full_disk_before_it_starts(hub, ensemble, monkeypatch, touchstone):
    usage = shutil._ntuple_diskusage(10**12, 10**12, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    ended = touchstone("detectors fetch", ensemble)
    assert ended.code == 4
    assert "MB are needed" in ended.err
    assert hub.elsewhere.ranges == []


def test_fetch_offline_sends_no_request(hub, ensemble, monkeypatch, touchstone):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = touchstone("detectors fetch", ensemble)
    assert ended.code == 4
    assert "offline, and model.safetensors is not in the hub's cache" in ended.err
    assert hub.requests == []


def test_recommended_detectors_are_free_and_can_be_fetched():
    card = load_ensemble_card("recommended")
    assert card.guarantee is None
    assert "recommended" not in named_configs("detectors")
    for member in card.members:
        detector = load_card(member.detector)
        assert detector.terms == "permissive", member.detector
        for part in list_parts(detector):
            assert part.weights.uri.startswith(("hf://", "https://")), part.name
            assert part.weights.obtain is None
            assert not part.weights.fitted
