"""Files that were taken for weights: named for what they are, by real ones of each kind, and no
advice to open one with less care.
"""

import gzip
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ray_app.detectors import load_card
from ray_app.detectors.card import Weights
from ray_app.detectors.checkpoints import detect_file_kind, read_arrays, read_state_dict
from ray_app.detectors.weights import resolve_weights
from ray_app.errors import DetectorError
from tests.make.networks.fill import with_part

NETWORK = torch.nn.Linear(4, 2)
NEITHER = "not a safetensors file or a PyTorch checkpoint"
WEB_PAGE = "a web page or a server error"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


def saved(path, save) -> bytes:
    save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every kind as bytes, with a piece of what is said of it."""
    folder = tmp_path_factory.mktemp("kinds")
    modern = saved(folder / "a", lambda path: torch.save(NETWORK.state_dict(), path))
    legacy = saved(
        folder / "b",
        lambda path: torch.save(NETWORK.state_dict(), path, _use_new_zipfile_serialization=False),
    )
    script = saved(folder / "c", lambda path: torch.jit.script(NETWORK).save(str(path)))
    tensors = saved(folder / "d", lambda path: save_file(NETWORK.state_dict(), path))
    module = saved(folder / "e", lambda path: torch.save(NETWORK, path))
    evil = saved(
        folder / "f",
        lambda path: torch.save({"model": {"weight": torch.zeros(1)}, "extra": Evil()}, path),
    )
    return {
        "empty": (b"", "an empty file"),
        "lfs": (LFS, "a Git LFS pointer"),
        "login": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", WEB_PAGE),
        "json error": (b'{"error": "Repository not found"}', WEB_PAGE),
        "not found": (b"Entry not found\n", NEITHER),
        "index": (b'{"weight_map": {"a": "1.safetensors"}}', "the index of a checkpoint"),
        "pickle": (pickle.dumps({"weight": [1.0]}), NEITHER),
        "gz": (gzip.compress(modern), NEITHER),
        "half": (modern[: len(modern) // 2], NEITHER),
        "noise": (np.random.default_rng(1).bytes(5000), NEITHER),
        "half of tensors": (tensors[:-9], "it is damaged or incomplete"),
        "torchscript": (script, "a TorchScript program"),
        "a module": (module, "an object of torch.nn.modules.linear.Linear in addition to tensors"),
        "evil": (evil, "an object of "),
        "torch": (modern, "a PyTorch checkpoint"),
        "old torch": (legacy, "a PyTorch checkpoint"),
        "half of an old one": (legacy[: len(legacy) // 2], "it is damaged or incomplete"),
        "safetensors": (tensors, "a safetensors file"),
    }


def refusal(path, format):
    with pytest.raises(DetectorError) as caught:
        read_state_dict(path, Weights(uri=path.name, unverified="made here", format=format))
    told = f"{caught.value.message} {caught.value.hint}"
    assert f"not readable as {format} weights" in told
    assert caught.value.hint
    for advice in ("weights_only", "add_safe_globals", "arbitrary code", "re-run", "False"):
        assert advice.lower() not in told.lower()
    return told


# What only a reader of torch's or of safetensors files can tell apart: the tests further down.
PROGRAMS = ("a module", "evil", "torchscript", "half of an old one")
CHECKPOINTS = {*PROGRAMS, "torch", "old torch", "half of tensors", "safetensors"}


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_file_that_is_not_weights_is_named(files, format, tmp_path):
    path = tmp_path / f"weights.{'pth' if format == 'torch' else 'safetensors'}"
    for data, what in (said for kind, said in files.items() if kind not in CHECKPOINTS):
        path.write_bytes(data)
        assert what in refusal(path, format)
        assert what in detect_file_kind(path).what


@pytest.mark.parametrize("kind", PROGRAMS)
def test_checkpoint_of_more_than_tensors_is_not_opened(files, kind, tmp_path, capsys):
    data, what = files[kind]
    (tmp_path / "weights.pth").write_bytes(data)
    told = refusal(tmp_path / "weights.pth", "torch")
    assert what in told
    assert "it ran" not in capsys.readouterr().out


def test_cut_safetensors_file_is_refused(files, tmp_path):
    data, what = files["half of tensors"]
    (tmp_path / "weights.safetensors").write_bytes(data)
    assert what in refusal(tmp_path / "weights.safetensors", "safetensors")


def test_weights_of_the_other_format_name_the_key_to_set(files, tmp_path):
    for kind in ("torch", "old torch"):
        (tmp_path / "w.safetensors").write_bytes(files[kind][0])
        told = refusal(tmp_path / "w.safetensors", "safetensors")
        assert files[kind][1] in told
        assert "`format: torch`" in told
    (tmp_path / "w.pth").write_bytes(files["safetensors"][0])
    told = refusal(tmp_path / "w.pth", "torch")
    assert "it is a safetensors file" in told
    assert "`format: safetensors`" in told
    (tmp_path / "model.json").write_bytes(files["safetensors"][0])
    assert "it is a safetensors file" in refusal(tmp_path / "model.json", "safetensors-index")


def test_heads_without_torch_refuse_the_same_files(files, tmp_path):
    (tmp_path / "head.safetensors").write_bytes(files["login"][0])
    with pytest.raises(DetectorError, match="it is a web page"):
        read_arrays(tmp_path / "head.safetensors")


def test_file_with_another_hash_is_named(files, tmp_path):
    card = load_card("tiny-ladeda").model_copy(update={"terms": "permissive"})
    path = tmp_path / "lfs.pth"
    path.write_bytes(files["lfs"][0])
    stated = with_part(card, "weights", uri=str(path), sha256="0" * 64, unverified=None)
    told = r"not the file that the card means: .*; it is a Git LFS pointer"
    with pytest.raises(DetectorError, match=told) as caught:
        resolve_weights(stated)
    assert "git lfs pull" in caught.value.hint
    assert "touchstone detectors fetch" in caught.value.hint


@pytest.mark.parametrize(
    ("unwrap", "expected", "warns"),
    [
        (("state_dict",), 1.0, True),
        (("model", "state_dict", "state_dict_ema"), 1.0, False),
        (("state_dict_ema",), 2.0, False),
    ],
)
def test_averaged_weights_are_read_or_named(unwrap, expected, warns, tmp_path, caplog):
    """A checkpoint of timm's training script, which loads the averaged weights."""
    weights, averages = ({"weight": torch.full((1,), value)} for value in (1.0, 2.0))
    content = {"epoch": 3, "state_dict": weights, "state_dict_ema": averages, "optimizer": {}}
    torch.save(content, tmp_path / "model_best.pth.tar")
    stated = Weights(
        uri="model_best.pth.tar", unverified="made here", format="torch", unwrap=unwrap
    )
    state = read_state_dict(tmp_path / "model_best.pth.tar", stated)
    assert state["weight"].item() == expected
    assert (["`state_dict_ema`" in record.message for record in caplog.records]) == [True] * warns
