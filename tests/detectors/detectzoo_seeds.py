"""Seeded weights in DetectZoo's own cache and format, for detectors that need no other download:
run by the Python that has it.

    cd FOLDER && VENV/bin/python …/detectzoo_seeds.py npr_deepfake safe ladeda

writes FOLDER/.detectzoo_data, where the package looks from that folder. The scores mean nothing;
the work is the published network's own.
"""

import sys
from pathlib import Path

import torch
from detectzoo.detectors.image import cnnspot, ladeda, npr_deepfake, resnet50_binary, safe

NETWORKS = {
    "npr_deepfake": (
        lambda: npr_deepfake._NPRResNet(num_classes=1),
        npr_deepfake._DEFAULT_CKPT_NAME,
    ),
    "safe": (lambda: safe._SAFEResNet(num_classes=2), safe._CKPT_NAME),
    "ladeda": (lambda: ladeda._LaDeDaNet(num_classes=1), ladeda._CKPT_NAME),
    "cnnspot": (resnet50_binary.build_resnet50_binary, cnnspot._CKPT_NAME),
}


def seed(name: str, cache: Path) -> Path:
    """Write a detector's file, its normalisations fitted to noise, so that scores differ between
    images and none overflows.
    """
    build, file = NETWORKS[name]
    torch.manual_seed(sum(name.encode()))
    network = build().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 128, 128))
    path = cache / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network.state_dict()}, path)
    return path


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(seed(name, Path(".detectzoo_data")))
