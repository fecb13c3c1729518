"""Mix the weights of the default before a tuning with those after it (WiSE-FT, Wortsman et al. 2022,
arXiv 2109.01903).

    python -m tools.default_ensemble.mix_weights BEFORE AFTER --share 0.6 --out DIR

The tuned weights rank new families better, and the ones before rank families of older sources and
shrunken files better. Their mean is better at both. The folders have the files that
tune_photographs writes: backbone.safetensors, whole.safetensors, detail.safetensors.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NAMES = ("backbone.safetensors", "whole.safetensors", "detail.safetensors")


def mix_tensors(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Return (1 − share) · before + share · after, tensor by tensor, in the types of `after`."""
    return {
        key: ((1 - share) * before[key].double() + share * tensor.double()).to(tensor.dtype)
        for key, tensor in after.items()
    }


def mix(before: Path, after: Path, share: float, out: Path) -> None:
    """Write the mixed weights of two folders."""
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        mixed = mix_tensors(load_file(before / name), load_file(after / name), share)
        save_file(mixed, out / name, {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the weights after it")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    mix(asked.before, asked.after, asked.share, asked.out)
