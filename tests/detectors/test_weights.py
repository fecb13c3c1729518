import argparse
import hashlib
import json
import shutil
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
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import build_network
from ray_app.detectors.weights import cached_name, file_sha256, parts_of, stated_digest
from ray_app.errors import DetectorError

HUB = "hf://touchstone/detector@" + "ab" * 20 + "/model.safetensors"


pytestmark = pytest.mark.usefixtures("own_cache")


def file_of(card):
    return resolve_weights(card)


def at(card, uri, **changes):
    return card.model_copy(
        update={"weights": card.weights.model_copy(update={"uri": uri, **changes})}
    )


def test_what_does_not_fit_is_named(small_card):
    network = build_network(small_card)
    good = network.state_dict()
    cases = {
        "1 missing \\(head.bias\\)": {
            key: value for key, value in good.items() if key != "head.bias"
        },
        "1 unexpected \\(head.extra\\)": {**good, "head.extra": torch.zeros(1)},
        "head.bias \\(3,\\), the network has \\(1,\\)": {**good, "head.bias": torch.zeros(3)},
    }
    for said, state in cases.items():
        with pytest.raises(DetectorError, match=said):
            load_strictly(network, state, "small")
    with pytest.raises(DetectorError, match=f"{len(good)} missing .*…") as caught:
        load_strictly(network, {"other": torch.zeros(1)}, "small")
    assert len(caught.value.message) < 400, "many faults are counted, not listed"


def test_missing_weights_are_one_error_that_says_what_to_do():
    card = load_card("ladeda9")
    with pytest.raises(DetectorError) as caught:
        load_detector(card)
    assert card.name in caught.value.message
    assert card.weights.uri in caught.value.message
    assert "touchstone detectors fetch ladeda9" in caught.value.hint
    assert card.weights.obtain.split(".")[0] in caught.value.hint


def test_another_file_under_the_right_name_is_refused(small_card, tmp_path):
    path = write_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(DetectorError) as caught:
        resolve_weights(at(small_card, str(path)))
    assert small_card.weights.sha256 in caught.value.message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in caught.value.message


def test_relative_weights_lie_beside_the_card_or_in_the_cache(small_card, own_cache, tmp_path):
    relative = at(small_card, "model.safetensors")
    with pytest.raises(DetectorError, match="no such file beside the card"):
        resolve_weights(relative)
    own_cache.mkdir()
    shutil.copy(file_of(small_card), own_cache / "model.safetensors")
    assert resolve_weights(relative) == own_cache / "model.safetensors"


def test_s3_weights_are_fetched_once_into_the_cache(small_card, own_cache, s3):
    bucket = s3.bucket("weights-once")
    s3.client().upload_file(str(file_of(small_card)), "weights-once", "small.safetensors")
    card = at(small_card, f"{bucket}/small.safetensors")
    with pytest.raises(DetectorError, match="offline"):
        resolve_weights(card)
    path = resolve_weights(card, offline=False)
    assert path == own_cache / cached_name(parts_of(card)[0])
    assert [entry.name for entry in own_cache.iterdir()] == [path.name]
    s3.clear_log()
    assert resolve_weights(card) == path
    assert s3.requests() == []


def test_a_damaged_download_never_reaches_the_cache(small_card, own_cache, s3):
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


def test_workers_read_the_mirror_and_leave_the_hub_alone(
    small_card, own_cache, tmp_path, monkeypatch
):
    card = at(small_card, HUB)
    with pytest.raises(DetectorError, match="offline"):
        resolve_weights(card)
    own_cache.mkdir()
    shutil.copy(file_of(small_card), own_cache / cached_name(parts_of(card)[0]))
    url = publish_weights(card, str(tmp_path / "mirror"))
    assert url.endswith(cached_name(parts_of(card)[0]))
    shutil.rmtree(own_cache)
    monkeypatch.setenv("TOUCHSTONE_WEIGHTS_MIRROR", str(tmp_path / "mirror"))
    assert resolve_weights(card) == own_cache / cached_name(parts_of(card)[0])


def test_copied_weights_are_as_readable_as_other_files(
    small_card, own_cache, tmp_path, monkeypatch
):
    """Several users of one machine may share a cache."""
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    publish_weights(small_card, str(tmp_path / "mirror"))
    found = resolve_weights(at(small_card, HUB))
    assert found.is_relative_to(own_cache)
    (tmp_path / "other").touch()
    assert found.stat().st_mode == (tmp_path / "other").stat().st_mode


def hub_cache(cache, card, config=None):
    snapshot = cache / "hub" / "models--touchstone--detector" / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    shutil.copy(file_of(card), snapshot / "model.safetensors")
    if config is not None:
        (snapshot / "config.json").write_text(json.dumps(config))


def test_hub_weights_come_from_the_hubs_own_cache(small_card, tmp_path, monkeypatch):
    hub_cache(tmp_path, small_card)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    path = resolve_weights(at(small_card, HUB), offline=True)
    assert path.read_bytes() == file_of(small_card).read_bytes()


@pytest.fixture
def two_logits(small_card, tmp_path):
    card = small_card.model_copy(
        update={"output": type(small_card.output)(labels=("Fake", "Real"), fake_label="fake")}
    )
    path = write_weights(tmp_path / "two" / "model.safetensors", seeded_state(card))
    card = card_with_weights(card, path)
    return card.model_copy(
        update={"weights": card.weights.model_copy(update={"config": "config.json"})}
    ), path.parent / "config.json"


def test_the_checkpoints_own_labels_decide(two_logits):
    card, config = two_logits
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    without = load_detector(card, slots=1, precision="fp32").score(pixels)
    config.write_text(json.dumps({"id2label": {"0": "FAKE", "1": "real"}, "img_size": 64}))
    assert load_detector(card, slots=1, precision="fp32").score(pixels) == without
    unlabelled = card.model_copy(update={"output": type(card.output)(fake_label="fake")})
    config.write_text(json.dumps({"id2label": {"0": "Real", "1": "Fake"}}))
    assert load_detector(unlabelled, slots=1, precision="fp32").score(pixels) == -without


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "Real", "1": "Fake"}}, "the checkpoint at 1"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "LABEL_0"),
        ({"img_size": 224}, "img_size = 64, the checkpoint's own configuration says 224"),
    ],
)
def test_a_checkpoint_that_contradicts_the_card_is_refused(two_logits, config, said):
    card, path = two_logits
    path.write_text(json.dumps(config))
    with pytest.raises(DetectorError, match=said):
        load_detector(card)


def test_a_training_script_s_arguments_beside_the_weights_do_no_harm(small_card, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {
            "model": {"weight": torch.ones(2)},
            "args": argparse.Namespace(lr=1e-4, device="cuda"),
            "epoch": 49,
        },
        path,
    )
    weights = small_card.weights.model_copy(update={"format": "torch", "unwrap": ("model",)})
    assert read_state_dict(path, weights)["weight"].tolist() == [1, 1]


@pytest.fixture
def sharded(small_card, tmp_path):
    """The card of a checkpoint in two files and an index, in a folder of their own."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_weights(tmp_path / "there" / names[0], {"a.weight": torch.ones(2)})
    write_weights(tmp_path / "there" / names[1], {"b.weight": torch.zeros(3)})
    index = tmp_path / "there" / "model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {"metadata": {}, "weight_map": dict(zip(("a.weight", "b.weight"), names, strict=True))}
        )
    )
    return at(
        small_card,
        str(index),
        format="safetensors-index",
        beside=dict.fromkeys(names),
        sha256=None,
        unverified="a test",
    )


def test_a_checkpoint_in_several_files_is_read_whole_or_not_at_all(sharded):
    read = read_state_dict(resolve_weights(sharded), sharded.weights)
    assert {key: len(tensor) for key, tensor in read.items()} == {"a.weight": 2, "b.weight": 3}
    Path(sharded.weights.uri).with_name("model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DetectorError, match=r"needed together: .*00002-of-00002"):
        resolve_weights(sharded)


def test_the_digest_covers_every_shard(sharded):
    index, before = Path(sharded.weights.uri), weights_digest(sharded)
    assert stated_digest(sharded) is None
    beside = {name: file_sha256(index.with_name(name)) for name in sharded.weights.beside}
    assert (
        stated_digest(
            at(sharded, str(index), sha256=file_sha256(index), unverified=None, beside=beside)
        )
        == before
    )
    write_weights(index.with_name("model-00002-of-00002.safetensors"), {"b.weight": torch.ones(3)})
    assert weights_digest(sharded) != before


def test_shards_travel_through_a_mirror_together(sharded, tmp_path, own_cache, monkeypatch):
    url = publish_weights(sharded, str(tmp_path / "mirror"))
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    shutil.rmtree(tmp_path / "there")
    found = resolve_weights(sharded)
    assert found.is_relative_to(own_cache)
    assert url.endswith(str(found.relative_to(own_cache)))
    assert {path.name for path in found.parent.iterdir()} == {found.name, *sharded.weights.beside}


def test_the_checkpoint_s_own_configuration_travels_through_a_mirror(
    small_card, tmp_path, own_cache, monkeypatch
):
    (tmp_path / "there").mkdir()
    file = Path(shutil.copy(file_of(small_card), tmp_path / "there" / "small.safetensors"))
    (file.parent / "config.json").write_text(json.dumps({"img_size": 65}))
    card = at(small_card, str(file), config="config.json")
    url = publish_weights(card, str(tmp_path / "mirror"))
    assert (Path(url).parent / "config.json").is_file()
    before = Path(url).stat().st_mtime_ns
    publish_weights(card, str(tmp_path / "mirror"))
    assert Path(url).stat().st_mtime_ns == before, "what is there is not copied again"
    shutil.rmtree(tmp_path / "there")
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    found = resolve_weights(card)
    assert found.is_relative_to(own_cache)
    assert (found.parent / "config.json").is_file()
