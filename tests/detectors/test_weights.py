"""Where a card's weights come from: next to the card, the cache, S3, a mirror, the hub; and what does
not fit the network or the card.
"""

import argparse
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.seeded import card_with_weights, seeded_state, write_weights
from ray_app.detectors import (
    MIRROR_VARIABLE,
    load_card,
    load_detector,
    publish_weights,
    resolve_weights,
    weights_digest,
)
from ray_app.detectors.card import Output
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import build_network
from ray_app.detectors.weights import (
    cached_name,
    combine_stated_digests,
    hash_file,
    is_shipped,
    list_parts,
    resolve_part,
)
from ray_app.errors import DetectorError
from tests.make.file_modes import modes_in, umask
from tests.make.networks.fill import with_part
from tests.make.unprivileged import closed, without_read_everything

HUB = "hf://touchstone/detector@" + "ab" * 20 + "/model.safetensors"
pytestmark = pytest.mark.usefixtures("own_cache")


def at(card, uri, **changes):
    return with_part(card, "weights", uri=uri, **changes)


def copy_of(card, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(resolve_weights(card), path))


def test_tensors_that_do_not_fit_are_named(small_card):
    network = build_network(small_card)
    good = network.state_dict()
    lacking = {key: good[key] for key in good if key != "head.bias"}
    for said, state in {
        "1 missing \\(head.bias\\)": lacking,
        "1 unexpected \\(head.extra\\)": {**good, "head.extra": torch.zeros(1)},
        "head.bias \\(3,\\), the network has \\(1,\\)": {**good, "head.bias": torch.zeros(3)},
    }.items():
        with pytest.raises(DetectorError, match=said):
            load_strictly(network, state, "small")
    with pytest.raises(DetectorError, match=f"{len(good)} missing .*…") as caught:
        load_strictly(network, {"other": torch.zeros(1)}, "small")
    assert len(caught.value.message) < 400, "many faults are counted, not listed"


def test_missing_weights_name_the_command_and_the_source():
    card = load_card("ladeda9")
    with pytest.raises(DetectorError) as caught:
        load_detector(card)
    assert card.name in caught.value.message
    assert card.weights.uri in caught.value.message
    assert "touchstone detectors fetch ladeda9" in caught.value.hint
    assert card.weights.obtain.split(".")[0] in caught.value.hint


def test_relative_weights_are_beside_the_card_or_in_the_cache(small_card, own_cache):
    relative = at(small_card, "model.safetensors")
    with pytest.raises(DetectorError, match="file not found next to the card"):
        resolve_weights(relative)
    cached = copy_of(small_card, own_cache / "model.safetensors")
    assert resolve_weights(relative) == cached


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("model.safetensors", "Too many levels of symbolic links"),
        ("/proc/self/mem", "Input/output error"),
        ("nowhere", "file not found next to the card"),
        (".", "file not found next to the card"),
    ],
)
def test_weights_that_do_not_open_are_explained(small_card, tmp_path, target, reason):
    path = tmp_path / "model.safetensors"
    path.symlink_to(target)
    with pytest.raises(DetectorError, match=f"small: .*{reason}") as caught:
        resolve_weights(at(small_card, str(path)))
    assert caught.value.hint


def test_weights_in_closed_folders_are_explained(small_card, own_cache, tmp_path, monkeypatch):
    """The folder of the card, the mirror, and a cache that cannot be read or only be read."""

    def refusal(card):
        with pytest.raises(DetectorError, match="Permission denied") as caught:
            resolve_weights(card)
        assert "(chmod), or set another cache" in caught.value.hint
        return caught.value.message

    local = at(small_card, str(copy_of(small_card, tmp_path / "card" / "small.safetensors")))
    remote = at(small_card, "https://127.0.0.1:1/none.safetensors")
    copy_of(small_card, tmp_path / "mirror" / cached_name(list_parts(remote)[0]))
    own_cache.mkdir()
    with closed(tmp_path / "card"):
        assert refusal(local).startswith(f"small: {tmp_path}/card/")
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    with closed(tmp_path / "mirror"):
        assert refusal(remote).startswith(f"small: {tmp_path}/mirror/")
    with closed(own_cache):
        assert refusal(remote).startswith(f"small: {own_cache}/")
    own_cache.chmod(0o500)
    with without_read_everything():
        assert refusal(remote).startswith(f"small: {own_cache}/")
    own_cache.chmod(0o700)
    with closed(tmp_path / "card"):
        assert resolve_weights(local).parent == own_cache, "the mirror has the file, too"


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("name", ["touchstone-photo", "touchstone-photo-detail", "touchstone-tiny"])
def test_moved_card_finds_the_shipped_weights(name, is_closed, tmp_path):
    """A card travels to a worker by value, with the folders that it has on the driver."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    with closed(checkout) if is_closed else nullcontext():
        for part in list_parts(load_card(name)):
            moved = replace(part, folder=checkout / "configs" / part.folder.name)
            path = resolve_part(moved)
            assert path.parent == part.folder
            assert is_shipped(path)


def test_s3_weights_are_fetched_once_into_the_cache(small_card, own_cache, s3):
    bucket = s3.bucket("weights-once")
    file = str(resolve_weights(small_card))
    s3.client().upload_file(file, "weights-once", "small.safetensors")
    card = at(small_card, f"{bucket}/small.safetensors")
    with pytest.raises(DetectorError, match="offline"):
        resolve_weights(card)
    path = resolve_weights(card, offline=False)
    assert path == own_cache / cached_name(list_parts(card)[0])
    assert [entry.name for entry in own_cache.iterdir()] == [path.name]
    s3.clear_log()
    assert resolve_weights(card) == path
    assert s3.requests() == []


def test_damaged_download_never_reaches_the_cache(small_card, own_cache, s3):
    bucket = s3.bucket("weights-damaged")
    s3.client().put_object(Bucket="weights-damaged", Key="small.safetensors", Body=b"half a fi")
    with pytest.raises(DetectorError, match="not the file that the card means"):
        resolve_weights(at(small_card, f"{bucket}/small.safetensors"), offline=False)
    assert list(own_cache.iterdir()) == []


def test_absent_and_unreachable_objects_are_one_error(small_card, s3):
    bucket = s3.bucket("weights-absent")
    for uri in (f"{bucket}/none.safetensors", "https://127.0.0.1:1/none.safetensors"):
        with pytest.raises(DetectorError, match="no weights"):
            resolve_weights(at(small_card, uri), offline=False)


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_worker_reads_the_mirror_instead_of_the_hub(
    small_card, own_cache, tmp_path, monkeypatch, mask
):
    """Copies are as readable as other files: several users of a machine may share a cache. The
    file itself is private, as safetensors 0.8 writes it.
    """
    card = at(small_card, HUB)
    with pytest.raises(DetectorError, match="offline"):
        resolve_weights(card)
    cached = copy_of(small_card, own_cache / cached_name(list_parts(card)[0]))
    cached.chmod(0o600)
    with umask(mask) as mode:
        assert publish_weights(card, str(tmp_path / "mirror")).endswith(cached.name)
        shutil.rmtree(own_cache)
        monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
        assert resolve_weights(card) == cached
    assert modes_in(tmp_path / "mirror") == modes_in(own_cache) == {mode}


def test_hub_weights_come_from_the_hub_s_own_cache(small_card, tmp_path, monkeypatch):
    snapshot = Path("hub", "models--touchstone--detector", "snapshots", "ab" * 20)
    copied = copy_of(small_card, tmp_path / snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = resolve_weights(at(small_card, HUB), offline=True)
    assert found.read_bytes() == copied.read_bytes()


@pytest.fixture
def two_logits(small_card, tmp_path):
    """A card of two logits, and the path of the configuration beside its weights."""
    output = Output(labels=("Fake", "Real"), fake_label="fake")
    card = small_card.model_copy(update={"output": output})
    path = write_weights(tmp_path / "two" / "model.safetensors", seeded_state(card))
    card = with_part(card_with_weights(card, path), "weights", config="config.json")
    return card, path.parent / "config.json"


def test_checkpoint_s_own_labels_decide(two_logits):
    card, config = two_logits

    def score(card):
        pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
        return load_detector(card, slots=1, precision="fp32").score(pixels)

    without = score(card)
    config.write_text(json.dumps({"id2label": {"0": "FAKE", "1": "real"}, "img_size": 64}))
    assert score(card) == without
    config.write_text(json.dumps({"id2label": {"0": "Real", "1": "Fake"}}))
    unlabelled = card.model_copy(update={"output": Output(fake_label="fake")})
    assert score(unlabelled) == -without


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "Real", "1": "Fake"}}, "1 by the checkpoint"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "LABEL_0"),
        (
            {"img_size": 224},
            "img_size is 64 on the card, but 224 in the checkpoint's own configuration",
        ),
    ],
    ids=["order", "labels", "size"],
)
def test_checkpoint_that_contradicts_the_card_is_refused(two_logits, config, said):
    card, path = two_logits
    path.write_text(json.dumps(config))
    with pytest.raises(DetectorError, match=said):
        load_detector(card)


def test_arguments_of_a_training_script_are_ignored(small_card, tmp_path):
    arguments = argparse.Namespace(lr=1e-4, device="cuda")
    state = {"model": {"weight": torch.ones(2)}, "args": arguments, "epoch": 49}
    torch.save(state, tmp_path / "checkpoint.pth")
    weights = small_card.weights.model_copy(update={"format": "torch", "unwrap": ("model",)})
    assert read_state_dict(tmp_path / "checkpoint.pth", weights)["weight"].tolist() == [1, 1]


SHARDS = {
    "model-00001-of-00002.safetensors": {"a.weight": torch.ones(2)},
    "model-00002-of-00002.safetensors": {"b.weight": torch.zeros(3)},
}


@pytest.fixture
def sharded(small_card, tmp_path):
    """The card of a checkpoint in two files and an index, in a folder of their own."""
    folder = tmp_path / "there"
    for name, tensors in SHARDS.items():
        write_weights(folder / name, tensors)
    index = folder / "model.safetensors.index.json"
    places = {key: name for name, tensors in SHARDS.items() for key in tensors}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    described = {"format": "safetensors-index", "beside": dict.fromkeys(SHARDS)}
    return at(small_card, str(index), sha256=None, unverified="a test", **described)


def test_checkpoint_in_shards_is_read_whole_or_refused(sharded):
    read = read_state_dict(resolve_weights(sharded), sharded.weights)
    assert {key: len(tensor) for key, tensor in read.items()} == {"a.weight": 2, "b.weight": 3}
    Path(sharded.weights.uri).with_name("model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DetectorError, match=r"required together: .*00002-of-00002"):
        resolve_weights(sharded)


def test_digest_covers_every_shard(sharded):
    index, before = Path(sharded.weights.uri), weights_digest(sharded)
    assert combine_stated_digests(sharded) is None
    beside = {name: hash_file(index.with_name(name)) for name in SHARDS}
    stated = with_part(sharded, "weights", sha256=hash_file(index), unverified=None, beside=beside)
    assert combine_stated_digests(stated) == before
    write_weights(index.with_name("model-00002-of-00002.safetensors"), {"b.weight": torch.ones(3)})
    assert weights_digest(sharded) != before


def test_shards_travel_through_a_mirror_together(sharded, tmp_path, own_cache, monkeypatch):
    url = publish_weights(sharded, str(tmp_path / "mirror"))
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    shutil.rmtree(tmp_path / "there")
    found = resolve_weights(sharded)
    assert found.is_relative_to(own_cache)
    assert url.endswith(str(found.relative_to(own_cache)))
    assert {path.name for path in found.parent.iterdir()} == {found.name, *SHARDS}


def test_configuration_travels_through_a_mirror(small_card, tmp_path, own_cache, monkeypatch):
    file = copy_of(small_card, tmp_path / "there" / "small.safetensors")
    (file.parent / "config.json").write_text(json.dumps({"img_size": 65}))
    card = at(small_card, str(file), config="config.json")
    url = publish_weights(card, str(tmp_path / "mirror"))
    assert (Path(url).parent / "config.json").is_file()
    before = Path(url).stat().st_mtime_ns
    publish_weights(card, str(tmp_path / "mirror"))
    assert Path(url).stat().st_mtime_ns == before, "an existing file is not copied again"
    shutil.rmtree(tmp_path / "there")
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    found = resolve_weights(card)
    assert found.is_relative_to(own_cache)
    assert (found.parent / "config.json").is_file()
