"""Write the tuned tower of the ensemble `default` as the weight files of its cards.

    python -m tools.default_ensemble.export_tower clip-vit-b16.safetensors \\
        UNTUNED.safetensors TUNED.safetensors --share 0.8 --out DIR

Additions, norms, and head are mixed with those before the tuning (WiSE-FT, Wortsman et al. 2022, arXiv
2109.01903): (1 − share) · before + share · after. Writes tower.safetensors, of the format
`safetensors-6bit`, and head.safetensors.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ray_app.detectors.packed_weights import pack
from tools.default_ensemble.mix_weights import mix_tensors
from tools.default_ensemble.tune_tower import TunedTower


def mix(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Mix the learned tensors, and with them the products of the additions' factors.

    The factor `up` is zero before the tuning, so the product is mixed if `down` stays.
    """
    kept = {name: tensor for name, tensor in after.items() if name.endswith(".down")}
    return mix_tensors(before, after, share) | kept


def export(network: TunedTower, before: Path, after: Path, share: float, out: Path) -> None:
    """Write the two weight files of a network, after its additions are mixed."""
    learned = mix(load_file(before), load_file(after), share)
    missing = network.load_state_dict(learned, strict=False).unexpected_keys
    assert not missing, missing
    tower, head = network.plain()
    out.mkdir(parents=True, exist_ok=True)
    save_file(pack(tower), out / "tower.safetensors", {"format": "pt"})
    save_file(head, out / "head.safetensors", {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("weights", type=Path, help="the tower before it was tuned, of read_clip")
    parser.add_argument("before", type=Path, help="untuned.safetensors of tune_tower")
    parser.add_argument("after", type=Path, help="tuned.safetensors of tune_tower")
    parser.add_argument("--share", type=float, required=True, help="of the tuned weights")
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 8])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    export(
        TunedTower(load_file(asked.weights), asked.depths, asked.rank),
        asked.before,
        asked.after,
        asked.share,
        asked.out,
    )
