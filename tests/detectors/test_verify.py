import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.card_sections import FormulaScore, generate_formula_image
from ray_app.detectors.verify import verify_detector
from tests.detectors.checkable import sha256, write_checkable
from tests.make.networks.fill import pattern_image, with_part
from tests.make.networks.small_clip import small_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As written, shared: tests that damage something make their own."""
    folder = tmp_path_factory.mktemp("checkable")
    write_checkable(folder)
    return folder


NAMES = ["present", "sha256", "keys", "parameters", "tensors", "loads", "golden"]


def outcomes(checks):
    """In the order of NAMES."""
    assert [check.name for check in checks] == NAMES
    return [check.outcome for check in checks]


def test_sound_detector_passes_every_check(folder):
    checks = list(verify_detector(load_card(folder / "card.yaml"), folder / "images"))
    assert outcomes(checks) == ["ok"] * 7
    assert [check.part for check in checks] == ["checkable"] * 3 + [""] * 4
    assert sha256(folder / "checkable.safetensors") in checks[1].told


def test_the_golden_score_tells_one_preprocessing_from_another(folder):
    """The check would be worth nothing if a detector with other constants passed it."""
    card = load_card(folder / "card.yaml")
    other = with_part(card, "preprocessing", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    check = list(verify_detector(other, folder / "images"))[-1]
    assert (check.name, check.outcome) == ("golden", "failed")
    assert f"published {card.golden[0].probability:.4f}" in check.told


def test_another_file_is_not_loaded(tmp_path):
    path = write_checkable(tmp_path)
    state = load_file(tmp_path / "checkable.safetensors")
    state["head.bias"] += 1
    save_file(state, tmp_path / "checkable.safetensors")
    checks = list(verify_detector(load_card(path), tmp_path / "images"))
    assert outcomes(checks) == ["ok", "failed", "skipped", "ok", "ok", "skipped", "skipped"]
    assert sha256(tmp_path / "checkable.safetensors") in checks[1].told
    assert load_card(path).weights.sha256 in checks[1].told


def test_wrong_counts_of_the_card_fail(folder):
    card = load_card(folder / "card.yaml")
    parameters, tensors = card.size.parameters, card.size.tensors
    wrong = with_part(card, "size", parameters=parameters + 1, tensors=3)
    told = {check.name: check for check in verify_detector(wrong)}
    assert told["parameters"].outcome == told["tensors"].outcome == "failed"
    assert told["parameters"].told == f"{parameters:,}, the card states {parameters + 1:,}"
    assert told["tensors"].told == f"{tensors:,}, the card states 3"


def test_check_without_a_value_on_the_card_is_skipped(tmp_path):
    path = write_checkable(
        tmp_path,
        size=None,
        golden=[],
        weights={"uri": "checkable.safetensors", "unverified": "nobody published one"},
    )
    checks = list(verify_detector(load_card(path), tmp_path / "images"))
    assert outcomes(checks) == ["ok", "skipped", "ok", "skipped", "skipped", "ok", "skipped"]
    assert "nobody published one" in checks[1].told
    assert sha256(tmp_path / "checkable.safetensors") in checks[1].told


def test_missing_weights_fail_with_the_command(tmp_path, own_cache):
    path = write_checkable(tmp_path)
    (tmp_path / "checkable.safetensors").unlink()
    checks = list(verify_detector(load_card(path)))
    assert (checks[0].name, checks[0].outcome) == ("present", "failed")
    assert "checkable: no weights: checkable.safetensors" in checks[0].told
    assert "touchstone detectors fetch checkable" in checks[0].told


def test_each_part_is_checked_on_its_own(tmp_path, own_cache):
    """A wrong head does not hide the checks of the backbone, nor the other way round."""
    _, path = small_card(tmp_path)

    def checks():
        return {(check.part, check.name): check for check in verify_detector(load_card(path))}

    sound = checks()
    assert sound["small-clip", "keys"].outcome == sound["small-tower", "keys"].outcome == "ok"
    torch.save({"model": {"fc.weight": torch.zeros(1, 3)}}, tmp_path / "weights.pth")
    found = checks()
    assert found["small-clip", "keys"].outcome == "failed"
    assert "fc.bias" in found["small-clip", "keys"].told
    assert found["small-tower", "keys"].outcome == "ok"
    (tmp_path / "clip.safetensors").unlink()
    found = checks()
    assert found["small-tower", "present"].outcome == "failed"
    assert found["small-clip", "keys"].outcome == "failed"
    assert found["", "loads"].outcome == "skipped"


def test_a_file_that_belongs_beside_is_named(tmp_path, own_cache):
    path = write_checkable(tmp_path)
    beside = tmp_path / "tokens.json"
    beside.write_text("{}")
    card = load_card(path)
    card = with_part(card, "weights", beside={"tokens.json": sha256(beside)})
    told = [check.told for check in verify_detector(card) if check.name == "sha256"]
    assert told[1].startswith(str(beside))
    beside.unlink()
    check = next(verify_detector(card))
    assert (check.name, check.outcome) == ("present", "failed")
    assert (
        "checkable.safetensors is present, but files next to it are missing: tokens.json"
        in check.told
    )


def test_a_golden_score_of_an_image_by_formula_needs_no_file(folder):
    card = load_card(folder / "card.yaml")
    pixels = pattern_image(48, 100)
    assert np.array_equal(generate_formula_image(100, 48), pixels), (
        "the formula of all golden values"
    )
    detector = load_detector(card, precision="fp32", slots=1)
    logit = float(detector.score(detector.prepare(Image.fromarray(pixels))[None])[0])
    described = {"image": "formula", "width": 100, "height": 48, "source": "this test"}
    for stated, outcome in ((logit, "ok"), (logit + 2e-4, "failed")):
        golden = FormulaScore(logit=stated, tolerance=1e-4, **described)
        check = list(verify_detector(card.model_copy(update={"golden": (golden,)})))[-1]
        assert (check.name, check.outcome) == ("golden", outcome)
        assert "formula 100 × 48" in check.told
