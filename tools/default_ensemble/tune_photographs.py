"""How the detectors of the ensemble `default` were tuned: one EfficientNet-Lite0, with a head for
wholes and one for crops.

    python -m tools.default_ensemble.tune_photographs data/photos configs/backbones/efficientnet-lite0-photo.safetensors \\
        --taesd CLONE --out DIR

First linear heads on the frozen network, then all of it together (LP-FT, Kumar et al. 2022, arXiv
2202.10054): small steps, so that what the network knows is not torn by a start from random heads. A
batch has as many real as generated pictures and as many wholes as crops; a source with n pictures
is drawn as often as √n. Some crops are aligned pairs, after DRCT and B-Free (arXiv 2412.17671): a
real crop beside its twin through FLUX.2's tiny autoencoder, of a clone of madebyollin/taesd (MIT),
cut and flipped alike. What is kept is the moving average of the weights.

Writes backbone.safetensors and a file for each head (fp16, fp32), which mix_weights mixes with
those before, and keeps the views of all pictures below DIR/views. A run that was ended goes on from DIR/state.pt.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ray_app.detectors import load_card
from ray_app.detectors.cpu import cpu_precision
from ray_app.detectors.families.frozen import StageBackbone
from ray_app.detectors.private_api import keep_freed_memory
from ray_app.detectors.weights import write_aside
from ray_app.images import ImageLimits, decode_image
from ray_app.training.head import even_weights
from ray_app.transforms import ops
from ray_app.transforms.policies.in_the_wild import InTheWild

SIDE, CROP = 224, 192  # of the views that are kept, and of what is cut from them at each step
MOST = 120  # pictures of one source
WHOLE, DETAIL = (
    load_card(name).preprocessing for name in ("touchstone-photo", "touchstone-photo-detail")
)
HALF_BATCH = 16  # wholes, and as many crops
# crops of a real source that get a twin, and the share of pairs in a batch of crops
TWINS, PAIRED = 12, 0.25
SAVED_EVERY = 100  # steps
WARM_UP = 60  # steps
# one is as found
KINDS = {
    "whole": ("whole", "whole-wild", "whole-wild"),
    "detail": ("detail", "detail-wild", "detail-wild"),
}


class Views:
    """The pictures of a training split as (SIDE, SIDE, 3) uint8: of each the whole and a crop, as
    found and degraded `in-the-wild`.
    """

    def __init__(self, photos: Path, out: Path) -> None:
        self._sources: tuple[list[Path], list[Path]] = ([], [])  # real, generated
        sizes: tuple[list[int], list[int]] = ([], [])
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        rows = pq.read_table(
            photos / "index.parquet", filters=[("split", "=", "train")]
        ).to_pylist()
        for source in sorted({row["source"] for row in rows}):
            mine = [row for row in rows if row["source"] == source][:MOST]
            folder = out / "views" / source
            if not folder.exists():
                views = [
                    _views((photos / row["uri"]).read_bytes(), int(row["sha256"][:12], 16))
                    for row in mine
                ]
                folder.mkdir(parents=True)
                for name in views[0]:
                    np.save(folder / f"{name}.npy", np.stack([one[name] for one in views]))
            label = mine[0]["label"] == "fake"
            self._sources[label].append(folder)
            sizes[label].append(len(mine))
        self._chances = [np.sqrt(each) / np.sqrt(each).sum() for each in sizes]

    def pair_with_twins(self, taesd: Path) -> None:
        """Have (real crop, twin) of some pictures of every real source: `batch` draws from them."""
        twin = load_autoencoder(taesd)
        for folder in self._sources[0]:
            crops = np.array(np.load(folder / "detail.npy", mmap_mode="r")[:TWINS])
            kept = folder / "twins.npy"
            if not kept.exists():
                np.save(kept, np.stack([decode_again(twin, crop) for crop in crops]))
            self._pairs += zip(crops, np.load(kept), strict=True)

    def batch(self, kind: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """HALF_BATCH cuts, (N, 3, CROP, CROP) in −1…1, half of them generated, and their labels
        (N,); of crops, some are pairs of twins.
        """
        pixels, labels = [], [number % 2 for number in range(HALF_BATCH)]
        pairs = max(1, round(HALF_BATCH * PAIRED / 2)) if kind == "detail" else 0
        for _ in range(pairs):
            pair = self._pairs[rng.integers(len(self._pairs))]
            top, left, is_flipped, quality = (
                *rng.integers(SIDE - CROP + 1, size=2),
                rng.random() < 0.5,
                int(rng.integers(60, 96)),
            )
            is_saved = rng.random() < 0.3
            for view in pair:
                saved = np.asarray(ops.jpeg(Image.fromarray(view), quality)) if is_saved else view
                cut = saved[top : top + CROP, left : left + CROP]
                pixels.append(cut[:, ::-1] if is_flipped else cut)
        for label in labels[2 * pairs :]:
            folder = self._sources[label][
                rng.choice(len(self._sources[label]), p=self._chances[label])
            ]
            views = np.load(folder / f"{rng.choice(KINDS[kind])}.npy", mmap_mode="r")
            (top, left), view = (
                rng.integers(SIDE - CROP + 1, size=2),
                views[rng.integers(len(views))],
            )
            cut = view[top : top + CROP, left : left + CROP]
            pixels.append(cut[:, ::-1] if rng.random() < 0.5 else cut)
        return _scaled(np.stack(pixels)), torch.tensor(labels, dtype=torch.float32)

    def degraded(self, kind: str, most: int = 20) -> Iterator[tuple[torch.Tensor, int, str]]:
        """Per source some degraded views (N, 3, SIDE, SIDE), their label and its name, for the
        heads that come first.
        """
        for label, folders in enumerate(self._sources):
            for folder in folders:
                yield (
                    _scaled(np.array(np.load(folder / f"{kind}-wild.npy", mmap_mode="r")[:most])),
                    label,
                    folder.name,
                )


class Pair(nn.Module):
    """The backbone and a linear head for each view, on statistics that are centred and scaled."""

    def __init__(self, backbone: StageBackbone) -> None:
        super().__init__()
        self.backbone, width = backbone, backbone.widths["statistics"]
        for module in backbone.modules():
            # their gradients in bf16 take five times as long as in fp32 on a CPU
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.forward = _in_fp32(module)
        for kind in KINDS:
            self.register_buffer(f"{kind}_mean", torch.zeros(width))
            self.register_buffer(f"{kind}_scale", torch.ones(width))
        self.heads = nn.ModuleDict({kind: nn.Linear(width, 1) for kind in KINDS})

    def forward(self, pixels: torch.Tensor, kind: str) -> torch.Tensor:
        """(N, 3, H, W) in −1…1 → (N,) log-odds of having been generated."""
        features = (self.backbone(pixels).statistics - getattr(self, f"{kind}_mean")) / getattr(
            self, f"{kind}_scale"
        )
        return self.heads[kind](features)[:, 0]

    def plain_head(self, kind: str) -> dict[str, torch.Tensor]:
        """The head of a view as one linear layer on the statistics as they come."""
        weight = self.heads[kind].weight.detach() / getattr(self, f"{kind}_scale")
        return {
            "fc.weight": weight,
            "fc.bias": self.heads[kind].bias.detach() - weight @ getattr(self, f"{kind}_mean"),
        }

    def fit_head(self, kind: str, views: Views, penalty: float = 0.1) -> None:
        """The head of a view on the network as it is: logistic regression, classes alike, sources
        by the root of their pictures.
        """
        features, labels, sources = [], [], []
        with torch.inference_mode(), autocast():
            for pixels, label, source in views.degraded(kind):
                features.append(self.backbone(pixels).statistics.float())
                labels += [label] * len(pixels)
                sources += [source] * len(pixels)
        known, wanted = torch.cat(features), torch.tensor(labels, dtype=torch.float32)
        mean, scale = known.mean(0), known.std(0) + 1e-3
        fit_linear(self.heads[kind], (known - mean) / scale, wanted, sources, penalty)
        getattr(self, f"{kind}_mean").copy_(mean)
        getattr(self, f"{kind}_scale").copy_(scale)


class Tuning:
    """The tuning of a pair, which another process can continue: weights, their moving average, the
    optimiser, and the random numbers.
    """

    def __init__(self, pair: Pair, steps: int, rate: float, seed: int) -> None:
        self.pair, self.steps, self.step = pair, steps, 0
        self._rng = np.random.default_rng(seed)
        # The heads learn four times as slowly as the backbone.
        groups = [
            {"params": list(pair.backbone.parameters()), "lr": rate, "base": rate},
            {"params": list(pair.heads.parameters()), "lr": rate / 4, "base": rate / 4},
        ]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=0.02)
        self.average = {name: tensor.detach().clone() for name, tensor in pair.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the state to a file, all of it or nothing."""
        state = {
            "pair": self.pair.state_dict(),
            "average": self.average,
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "random": json.dumps(self._rng.bit_generator.state),
        }
        with write_aside(path) as aside:
            torch.save(state, aside)

    def load(self, path: Path) -> None:
        """Continue from the state in a file."""
        state = torch.load(path, weights_only=True)
        self.pair.load_state_dict(state["pair"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rng.bit_generator.state = json.loads(state["random"])
        self.average, self.step = state["average"], state["step"]

    def take_step(self, views: Views) -> float:
        """Learn from a batch of wholes and a batch of crops. Returns their mean loss. Labels are
        smoothed by 0.03.
        """
        set_rates(self._optimiser, self.step, self.steps)
        losses = 0.0
        for kind in KINDS:
            pixels, labels = views.batch(kind, self._rng)
            with autocast():
                logits = self.pair(pixels, kind)
            loss = functional.binary_cross_entropy_with_logits(
                logits.float(), labels * 0.94 + 0.03
            ) / len(KINDS)
            loss.backward()
            losses += loss.item()
        nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.step += 1
        update_average(self.average, self.pair.state_dict(), self.step)
        return losses


def autocast() -> torch.autocast:
    """Return the context for bf16. It has no effect on a CPU that only emulates bf16, very slowly."""
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu_precision() == "bf16")


def fit_linear(
    head: nn.Linear, known: torch.Tensor, wanted: torch.Tensor, sources: list[str], penalty: float
) -> None:
    """Logistic regression of labels (N,) on features (N, width) that are centred and scaled: classes
    alike, sources by the root of their pictures.
    """
    known = known.clone()  # Features of inference mode have no gradients.
    weights = torch.from_numpy(even_weights(wanted.numpy(), sources, 0.5)).float()
    for chosen in (wanted == 0, wanted == 1):
        weights[chosen] *= len(weights) / 2 / weights[chosen].sum()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        error = functional.binary_cross_entropy_with_logits(head(known)[:, 0], wanted, weights)
        error = error + penalty * head.weight.square().sum()
        error.backward()
        return error

    optimiser.step(loss)


def set_rates(optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rates of a step: WARM_UP steps up to `base`, and down along a cosine."""
    share = min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * share


@torch.no_grad()
def update_average(
    average: dict[str, torch.Tensor], current: dict[str, torch.Tensor], step: int
) -> None:
    """Add the weights after a step to their moving average, which is shorter at the start."""
    kept = min(0.998, step / (step + 20))
    for name, tensor in current.items():
        average[name].mul_(kept).add_(tensor, alpha=1 - kept)


def degrade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Degrade a whole picture `in-the-wild`. A large one is reduced first, which is faster."""
    shrunk = image.reduce(min(image.size) // 512) if min(image.size) > 1024 else image
    return InTheWild(short_side=(224, 512))(ops.ImageSample(shrunk, None, 0), rng).image


def load_autoencoder(taesd: Path) -> nn.Module:
    """Load FLUX.2's tiny autoencoder from a clone of madebyollin/taesd."""
    sys.path.insert(0, str(taesd))
    from taesd import TAESD

    return TAESD(str(taesd / "taef2_encoder.pth"), str(taesd / "taef2_decoder.pth")).eval()


def _views(data: bytes, seed: int) -> dict[str, np.ndarray]:
    image, rng = (
        decode_image(data, ImageLimits(max_bytes=8_000_000)).pixels.convert("RGB"),
        np.random.default_rng(seed),
    )
    wild = degrade(image, rng)
    part = InTheWild(crop=SIDE)(ops.ImageSample(image, None, 0), rng).image
    return {
        "whole": WHOLE.prepare(image),
        "detail": DETAIL.prepare(image),
        "whole-wild": WHOLE.prepare(wild),
        "detail-wild": np.asarray(part),
    }


def decode_again(autoencoder: nn.Module, crop: np.ndarray) -> np.ndarray:
    """Encode and decode pixels (H, W, 3) uint8."""
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None].float().div(255)
    with torch.inference_mode(), autocast():
        made = autoencoder.decoder(autoencoder.encoder(pixels)).float().clamp(0, 1)[0]
    return made.mul(255).round().permute(1, 2, 0).byte().numpy()


def _scaled(pixels: np.ndarray) -> torch.Tensor:
    return (
        torch.from_numpy(pixels)
        .permute(0, 3, 1, 2)
        .float()
        .div(127.5)
        .sub(1)
        .contiguous(memory_format=torch.channels_last)
    )


def _in_fp32(convolution):
    forward = convolution.forward

    def run(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(features.float())

    return run


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "photos", type=Path, help="folder of gather_photographs: index.parquet and images"
    )
    parser.add_argument("backbone", type=Path, help="the weights to begin with")
    parser.add_argument("--taesd", type=Path, required=True, help="a clone of madebyollin/taesd")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(asked.seed)
    backbone = StageBackbone("tf_efficientnet_lite0")
    backbone.network.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(asked.backbone).items()}
    )
    pair = Pair(backbone).to(memory_format=torch.channels_last)
    views = Views(asked.photos, asked.out)
    views.pair_with_twins(asked.taesd)
    tuning, state = Tuning(pair, asked.steps, asked.rate, asked.seed), asked.out / "state.pt"
    if state.exists():
        tuning.load(state)
    else:
        for kind in KINDS:
            pair.fit_head(kind, views)
        tuning = Tuning(pair, asked.steps, asked.rate, asked.seed)
    losses = []
    while tuning.step < asked.steps:
        losses.append(tuning.take_step(views))
        if tuning.step % SAVED_EVERY == 0 or tuning.step == asked.steps:
            tuning.save(state)
            print(f"step {tuning.step} of {asked.steps}: loss {np.mean(losses):.3f}", flush=True)
            losses = []
    pair.load_state_dict(tuning.average)
    save_file(
        {
            name: tensor.half().contiguous()
            for name, tensor in pair.backbone.network.state_dict().items()
        },
        asked.out / "backbone.safetensors",
        {"format": "pt"},
    )
    for kind in KINDS:
        save_file(pair.plain_head(kind), asked.out / f"{kind}.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
