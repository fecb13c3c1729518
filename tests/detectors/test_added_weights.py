"""Weights that the user already has, copied into the cache by `touchstone detectors add FILE --as
NAME`.
"""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from ray_app.detectors import load_card, load_detector, resolve_weights
from ray_app.detectors.added_weights import add_weights
from ray_app.detectors.weights import cached_name, list_parts
from ray_app.errors import DetectorError
from tests.detectors.checkable import sha256, write_checkable
from tests.make.networks.fill import with_part
from tests.make.networks.small_clip import small_card

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def card(tmp_path):
    """The card of checkable.safetensors, which each test moves to the downloads."""
    return load_card(write_checkable(tmp_path))


def test_file_with_the_stated_sha256_is_copied(card, tmp_path, own_cache, downloads):
    file = shutil.move(tmp_path / "checkable.safetensors", downloads / "model (1)")
    added = add_weights("checkable", file, [card])
    assert added.path == resolve_weights(card) == own_cache / cached_name(list_parts(card)[0])
    assert added.sha256 == card.weights.sha256
    assert added.lacking == {"checkable": []}
    assert file.stat().st_ino != added.path.stat().st_ino
    assert [path.name for path in added.path.parent.iterdir()] == [added.path.name]


def test_file_with_another_sha256_is_refused(own_cache, downloads):
    file = downloads / "file"
    file.write_bytes(b"x" * 300)
    told = f"--as unifd: .* has the SHA-256 {sha256(file)}, the card states"
    with pytest.raises(DetectorError, match=told):
        add_weights("unifd", file)
    assert not own_cache.exists()
    with pytest.raises(DetectorError, match="unknown detector or backbone"):
        add_weights("no-such", file)


def test_file_without_a_stated_sha256_must_fit_the_network(tmp_path, own_cache, downloads):
    card, path = small_card(tmp_path)
    tower = shutil.move(tmp_path / "clip.safetensors", downloads / "tower, as downloaded")
    state = load_file(tower)
    del state["visual.proj"]
    save_file(state, downloads / "wrong")
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


def test_files_that_belong_together_are_copied_together(card, tmp_path, own_cache, downloads):
    file = shutil.move(tmp_path / "checkable.safetensors", downloads / "renamed.bin")
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"a": 1}')
    card = with_part(card, "weights", beside={"tokens.json": sha256(tokens)})
    with pytest.raises(DetectorError, match=r"files are missing in .*downloads: tokens\.json"):
        add_weights("checkable", file, [card])
    (downloads / "tokens.json").write_text('{"a": 2}')
    with pytest.raises(DetectorError, match=r"tokens\.json has the SHA-256"):
        add_weights("checkable", file, [card])
    assert not own_cache.exists()
    shutil.move(tokens, downloads / "tokens.json")
    assert add_weights("checkable", file, [card]).lacking == {"checkable": []}
    assert resolve_weights(card) == own_cache / cached_name(list_parts(card)[0])
