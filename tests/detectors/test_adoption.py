"""Files that somebody has already are known by their content, whatever they are called."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_app.detectors import load_card, load_detector, resolve_weights
from ray_app.detectors.adoption import adopt, adopt_as, known_cards
from ray_app.detectors.files_by_hash import find_by_sha256, may_be_weights
from ray_app.detectors.weights import cached_name, parts_of
from ray_app.errors import DetectorError
from tests.detectors.checkable import sha256, write_checkable
from tests.detectors.small_clip import small_card

pytestmark = pytest.mark.usefixtures("own_cache")


def elsewhere(card, folder, *, named=str):
    """The card with its files gone from beside it, into `folder`, under other names; known by their hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {}
    for place, part in enumerate(parts_of(card)):
        file = part.folder / part.weights.uri
        weights = part.weights.model_copy(update={"sha256": sha256(file), "unverified": None})
        shutil.move(file, folder / named(place))
        changes |= {"weights": weights} if place == 0 else {"backbone": card.backbone.model_copy(update={"weights": weights})}
    return card.model_copy(update=changes)


def test_own_weights_and_backbone_under_any_name_are_found_in_a_folder(tmp_path, own_cache):
    original, _ = small_card(tmp_path)
    card = elsewhere(original, tmp_path / "old server" / "deep", named=lambda place: f"no suffix {place}")
    (tmp_path / "old server" / "notes.txt").write_text("not weights " * 100)
    save_file({"other": torch.zeros(100)}, tmp_path / "old server" / "other.safetensors")
    assert adopt([tmp_path / "old server" / "deep" / "no suffix 0"], [card]).lacking == {"small-clip": ["small-tower"]}
    shutil.rmtree(own_cache)
    done = adopt([tmp_path / "old server"], [card])
    assert [(one.file.name, one.part, one.how) for one in done.adopted] == [
        ("no suffix 0", "small-clip", "linked"),
        ("no suffix 1", "small-tower", "linked"),
    ]
    assert [(one.file.name, one.what) for one in done.unknown] == [("other.safetensors", "a safetensors file")]
    assert done.lacking == {"small-clip": []}
    assert load_detector(card).network is not None
    assert [one.how for one in adopt([tmp_path / "old server"], [card]).adopted] == ["there", "there"]


def test_files_that_belong_beside_go_beside(tmp_path, own_cache):
    card = load_card(write_checkable(tmp_path))
    beside = tmp_path / "tokens.json"
    beside.write_text('{"a": 1}')
    card = card.model_copy(update={"weights": card.weights.model_copy(update={"beside": {"tokens.json": sha256(beside)}})})
    shutil.move(tmp_path / "checkable.safetensors", tmp_path / "renamed.bin")
    assert adopt([tmp_path / "renamed.bin"], [card]).lacking == {"checkable": ["checkable (tokens.json)"]}
    shutil.move(beside, tmp_path / "any.txt")
    assert adopt([tmp_path / "any.txt"], [card]).lacking == {"checkable": []}  # a file that is named is hashed
    assert resolve_weights(card) == own_cache / cached_name(parts_of(card)[0])


def test_another_file_system_gets_a_copy(tmp_path, monkeypatch):
    card = elsewhere(load_card(write_checkable(tmp_path)), tmp_path / "there")
    monkeypatch.setattr("pathlib.Path.hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    [one] = adopt([tmp_path / "there"], [card]).adopted
    assert one.how == "copied"
    assert sha256(one.kept) == card.weights.sha256
    assert one.kept.stat().st_ino != one.file.stat().st_ino


def test_a_card_without_a_hash_takes_a_file_by_name_if_it_fits(tmp_path, own_cache):
    card, path = small_card(tmp_path)
    tower = tmp_path / "tower, as downloaded"
    shutil.move(tmp_path / "clip.safetensors", tower)
    state = load_file(tower)
    save_file({key: tensor for key, tensor in state.items() if key != "visual.proj"}, tmp_path / "wrong")
    with pytest.raises(DetectorError, match=r"1 missing \(proj\)"):
        adopt_as("small-tower", tmp_path / "wrong", [card])
    assert not own_cache.exists()
    done = adopt_as("small-tower", tower, [card])
    assert done.lacking == {"small-clip": []}
    load_detector(load_card(path))


def test_a_name_that_does_not_do_is_told(tmp_path):
    cards = known_cards()
    stated = {part.weights.sha256: card.name for card in cards for part in parts_of(card)}
    assert load_card("corvi2023:thumb1024").weights.sha256 in stated
    assert load_card("unifd").backbone.weights.sha256 in stated
    (tmp_path / "file").write_bytes(b"x" * 300)
    for name, said in (("unifd", "states the SHA-256"), ("no-such", "no detector or backbone")):
        with pytest.raises(DetectorError, match=said):
            adopt_as(name, tmp_path / "file", cards)


def test_a_mirror_folder_is_used_whatever_its_files_are_called(tmp_path, own_cache, monkeypatch):
    original, _ = small_card(tmp_path)
    card = elsewhere(original, tmp_path / "mirror" / "theirs", named=lambda place: f"{place}.bin")
    monkeypatch.setenv("TOUCHSTONE_WEIGHTS_MIRROR", str(tmp_path / "absent"))
    with pytest.raises(DetectorError, match="no weights"):
        resolve_weights(card)
    monkeypatch.setenv("TOUCHSTONE_WEIGHTS_MIRROR", str(tmp_path / "mirror"))
    assert resolve_weights(card) == own_cache / cached_name(parts_of(card)[0])
    load_detector(card)


def test_one_file_is_looked_at_once_under_all_its_names(tmp_path):
    card = elsewhere(load_card(write_checkable(tmp_path)), tmp_path / "blobs")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "model.safetensors").symlink_to(tmp_path / "blobs" / "0")
    assert len(adopt([tmp_path / "blobs", tmp_path / "snapshots"], [card]).adopted) == 1


def test_only_what_may_be_weights_is_hashed(tmp_path):
    kinds = {"photo.jpg": b"\xff\xd8\xff" + b"x" * 5000, "list.csv": b"a,b\n" * 200, "tiny.pth": b"x" * 20, "big.pth": b"x" * 2000}
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    save_file({"a": torch.zeros(200)}, tmp_path / "blob")
    torch.save({"a": torch.zeros(200)}, tmp_path / "blob2.dat")
    worth = {path.name for path in tmp_path.iterdir() if may_be_weights(path, {"tokenizer.json"})}
    assert worth == {"big.pth", "blob", "blob2.dat"}
    looked = []
    find_by_sha256(tmp_path, {"0" * 64}, lambda path: bool(looked.append(path.name)))
    assert set(looked) == {*kinds, "blob", "blob2.dat"}
