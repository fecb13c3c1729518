import torch
from safetensors.torch import load_file, save_file

from tools.default_ensemble.mix_weights import NAMES, mix


def test_tensors_are_mixed_and_keep_their_types(tmp_path):
    for folder, value in (("before", 1.0), ("after", 2.0)):
        (tmp_path / folder).mkdir()
        for name in NAMES:
            tensors = {"a": torch.full((2, 3), value).half(), "b": torch.full((3,), value)}
            save_file(tensors, tmp_path / folder / name)
    mix(tmp_path / "before", tmp_path / "after", 0.75, tmp_path / "out")
    for name in NAMES:
        mixed = load_file(tmp_path / "out" / name)
        assert torch.equal(mixed["a"], torch.full((2, 3), 1.75).half())
        assert torch.equal(mixed["b"], torch.full((3,), 1.75))
