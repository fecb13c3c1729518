"""`touchstone detectors fetch ENSEMBLE` from a hub: all in one command, whatever happens on the
way, and what to do next.
"""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks.seeded import seeded_state, write_weights
from ray_app.cli.main import main
from ray_app.config import named_configs
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.weights import parts_of
from ray_app.ensembles import load_ensemble_card
from tests.detectors import small_clip
from tests.detectors.conftest import UNPUBLISHED
from tests.images import factory
from tests.model_hub import ModelHub


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


def large(hub):
    return {len(data): data for files in hub.commits.values() for data in files.values()}


def test_one_command_brings_an_ensemble_and_the_next_one_runs_it(
    hub, ensemble, tmp_path, monkeypatch, capsys
):
    assert main(["detectors", "fetch", str(ensemble)]) == 0
    told = capsys.readouterr()
    total = sum(large(hub)) / 1e6
    assert f"to fetch: {total:,.1f} MB in 2 of 2 downloads" in told.err
    assert f"next: touchstone check PHOTO.jpg --ensemble {ensemble}" in told.err
    assert "not calibrated" in told.err
    assert len(told.out.splitlines()) == 3
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    (tmp_path / "photo.jpg").write_bytes(factory.jpeg())
    assert main(["check", str(tmp_path / "photo.jpg"), "--ensemble", str(ensemble)]) == 0
    assert "not calibrated" in capsys.readouterr().out
    assert main(["detectors", "fetch", str(ensemble)]) == 0
    assert hub.requests == []


def test_what_was_cut_off_goes_on_where_it_was(hub, ensemble, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # from 10 MiB
    hub.cuts.append(1000)
    assert main(["detectors", "fetch", str(ensemble)]) == 0
    assert hub.elsewhere.ranges == ["", "bytes=1000-", ""]


def test_a_damaged_file_is_refused_and_the_way_out_that_is_named_works(hub, ensemble, capsys):
    for size, data in large(hub).items():
        hub.damaged[size] = data[:-1] + bytes([data[-1] ^ 1])
    assert main(["detectors", "fetch", str(ensemble)]) == 4
    told = capsys.readouterr()
    assert "the card says" in told.err  # of the file whose SHA-256 is on the card
    assert "the hub said" in told.err  # of the other
    hub.damaged.clear()
    for place in [
        line.split(": ")[2].partition(" is not")[0]
        for line in told.err.splitlines()
        if "is not the file" in line
    ]:
        assert "/blobs/" in place
        Path(place).unlink()
    assert main(["detectors", "fetch", str(ensemble)]) == 0


@pytest.mark.parametrize(
    ("shut", "said"),
    [
        ("gated", "accepted the terms of https://huggingface.co/owners/clip"),
        ("private", "hf auth login"),
    ],
)
def test_a_repository_that_is_shut_is_said_and_the_others_come(hub, ensemble, shut, said, capsys):
    getattr(hub, shut).add("owners/clip")
    assert main(["detectors", "fetch", str(ensemble)]) == 4
    told = capsys.readouterr()
    assert said in told.err
    assert "1 of 2 downloads; 1 of unknown size" in told.err
    assert "next:" not in told.err
    assert len(told.out.splitlines()) == 1


def test_a_disk_without_room_is_said_before_anything_is_fetched(hub, ensemble, monkeypatch, capsys):
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 1000)
    )
    assert main(["detectors", "fetch", str(ensemble)]) == 4
    assert "MB are to be fetched" in capsys.readouterr().err
    assert hub.elsewhere.ranges == []


def test_offline_nothing_is_asked(hub, ensemble, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["detectors", "fetch", str(ensemble)]) == 4
    assert "offline, and model.safetensors is not in the hub's cache" in capsys.readouterr().err
    assert hub.requests == []


def test_the_recommended_detectors_are_free_to_use_and_can_be_fetched_by_a_program():
    card = load_ensemble_card("recommended")
    assert card.guarantee is None
    assert "recommended" not in named_configs("detectors")
    for member in card.members:
        detector = load_card(member.detector)
        assert detector.terms == "permissive", member.detector
        for part in parts_of(detector):
            assert part.weights.uri.startswith(("hf://", "https://")), part.name
            assert part.weights.obtain is None
            assert not part.weights.fitted
