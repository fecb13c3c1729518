"""Weights that the user already has, copied into the cache by `touchstone detectors add FILE --as
NAME`.
"""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from ray_app.detectors import load_card, load_detector, resolve_weights
from ray_app.detectors.added_weights import add_weights
from ray_app.detectors.weights import cached_name, parts_of
from ray_app.errors import DetectorError
from tests.detectors.checkable import sha256, write_checkable
from tests.detectors.small_clip import small_card

pytestmark = pytest.mark.usefixtures("own_cache")


def with_weights(card, **changes):
    return card.model_copy(update={"weights": card.weights.model_copy(update=changes)})


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


def test_file_with_the_stated_sha256_is_copied(tmp_path, own_cache, downloads):
    card = load_card(write_checkable(tmp_path))
    file = shutil.move(tmp_path / "checkable.safetensors", downloads / "model (1)")
    card = with_weights(card, sha256=sha256(file), unverified=None)
    added = add_weights("checkable", file, [card])
    assert added.path == resolve_weights(card) == own_cache / cached_name(parts_of(card)[0])
    assert added.sha256 == card.weights.sha256
    assert added.lacking == {"checkable": []}
    assert file.stat().st_ino != added.path.stat().st_ino
    assert [path.name for path in added.path.parent.iterdir()] == [added.path.name]


def test_file_with_another_sha256_is_refused(tmp_path, own_cache, downloads):
    card = with_weights(load_card(write_checkable(tmp_path)), sha256="0" * 64, unverified=None)
    file = shutil.move(tmp_path / "checkable.safetensors", downloads / "model.bin")
    with pytest.raises(
        DetectorError, match=f"has the SHA-256 {sha256(file)}, the card states 0000"
    ):
        add_weights("checkable", file, [card])
    assert not own_cache.exists()


def test_shipped_cards_and_their_variants_state_sha256(downloads):
    (downloads / "file").write_bytes(b"x" * 300)
    for name in ("unifd", "corvi2023"):
        with pytest.raises(
            DetectorError, match=f"--as {name}: .* has the SHA-256 .*, the card states"
        ):
            add_weights(name, downloads / "file")
    with pytest.raises(DetectorError, match="no detector or backbone with that name"):
        add_weights("no-such", downloads / "file")


def test_file_without_a_stated_sha256_must_fit_the_network(tmp_path, own_cache, downloads):
    card, path = small_card(tmp_path)
    tower = shutil.move(tmp_path / "clip.safetensors", downloads / "tower, as downloaded")
    state = load_file(tower)
    save_file(
        {key: tensor for key, tensor in state.items() if key != "visual.proj"}, downloads / "wrong"
    )
    with pytest.raises(DetectorError, match=r"1 missing \(proj\)"):
        add_weights("small-tower", downloads / "wrong", [card])
    assert not own_cache.exists()
    assert add_weights("small-tower", tower, [card]).lacking == {"small-clip": []}
    load_detector(load_card(path))


def test_missing_parts_of_a_detector_are_named(tmp_path, downloads):
    card, _ = small_card(tmp_path)
    (tmp_path / "clip.safetensors").unlink()
    head = shutil.move(tmp_path / card.weights.uri, downloads / "head")
    assert add_weights("small-clip", head, [card]).lacking == {"small-clip": ["small-tower"]}


def test_files_that_belong_together_are_copied_together(tmp_path, own_cache, downloads):
    card = load_card(write_checkable(tmp_path))
    file = shutil.move(tmp_path / "checkable.safetensors", downloads / "renamed.bin")
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"a": 1}')
    card = with_weights(card, beside={"tokens.json": sha256(tokens)})
    with pytest.raises(DetectorError, match=r"not in .*downloads: tokens\.json"):
        add_weights("checkable", file, [card])
    (downloads / "tokens.json").write_text('{"a": 2}')
    with pytest.raises(DetectorError, match=r"tokens\.json has the SHA-256"):
        add_weights("checkable", file, [card])
    assert not own_cache.exists()
    shutil.move(tokens, downloads / "tokens.json")
    assert add_weights("checkable", file, [card]).lacking == {"checkable": []}
    assert resolve_weights(card) == own_cache / cached_name(parts_of(card)[0])
