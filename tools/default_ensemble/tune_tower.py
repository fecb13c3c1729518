"""How the tower of the ensemble `default` was tuned: the first blocks of CLIP ViT-B/16, with a linear
head.

    python -m tools.default_ensemble.tune_tower data/photos clip-vit-b16.safetensors --taesd CLONE --out DIR

First a linear head on the tower as it is (LP-FT, Kumar et al. 2022, arXiv 2202.10054). Then layer
norms, and low-rank additions to all matrices (LoRA, arXiv 2106.09685), learn with it. A batch has as
many real as generated images, and a source with n images is drawn as often as √n. Each image is seen
twice: as found, and after damage; a loss keeps the two scores together (arXiv 2604.10102). Some
pairs are aligned: a real image beside its twin through FLUX.2's tiny autoencoder, of a clone of
madebyollin/taesd (MIT), after DRCT and B-Free (arXiv 2412.17671). A step sees a random half of the
patches of each view (PatchDropout, arXiv 2208.07220), and takes half as long. Images are read again
for every step: no cache freezes the damage. What is kept is the moving average of the weights.

Writes tuned.safetensors: additions, norms, and head. A run that was ended goes on from
DIR/state.pt. Every random number comes from the seed and the number of the step, so a run that goes
on draws what it would have drawn.
"""

import argparse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ray_app.detectors import load_card
from ray_app.detectors.families.clip_tower import Attention
from ray_app.detectors.families.frozen import StatisticsTower
from ray_app.detectors.families.mae import headwise_attention
from ray_app.detectors.private_api import keep_freed_memory
from ray_app.detectors.weights import write_aside
from ray_app.images import ImageLimits, decode_image
from ray_app.transforms import ops
from ray_app.transforms.perturbations import Perturbation, load_perturbations
from tools.default_ensemble.tune_photographs import (
    autocast,
    decode_again,
    degrade,
    fit_linear,
    load_autoencoder,
    set_rates,
    update_average,
)

# The tower reads the view of the small network, so an image is resized once for both.
VIEW = load_card("touchstone-photo").preprocessing
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255
TOWER = {"image_size": 224, "patch_size": 16, "width": 768, "heads": 12, "quick_gelu": True}
DAMAGE = "everyday"  # Beside the policy in-the-wild.
EVERYDAY = 0.3  # Share of images with this damage.
PAIRED = 1 / 8  # Share of images that are an aligned pair.
LABEL_SMOOTHING = 0.03
CONSISTENCY = 0.5  # Weight of the loss that keeps the scores of two views together.
PENALTY = 0.1  # Of the first head.
KEPT = 0.5  # Share of the patches that a step sees.


class Batch(NamedTuple):
    """Images as found and after damage.

    Attributes:
        found: (N, 3, 224, 224), normalised.
        damaged: The same images, damaged.
        labels: 1 for generated (N,).
        patches: Patches of each view that the step sees: first of all as found, then of all after
            damage, (2 N, kept).
    """

    found: torch.Tensor
    damaged: torch.Tensor
    labels: torch.Tensor
    patches: torch.Tensor


class Archive:
    """The training images of an index, by source and label."""

    def __init__(self, photos: Path, taesd: Path) -> None:
        rows = pq.read_table(
            photos / "index.parquet", filters=[("split", "=", "train")]
        ).to_pylist()
        self._photos = photos
        # For each label, for each source, its rows.
        self._sources: tuple[list[list[dict]], list[list[dict]]] = ([], [])
        for source in sorted({row["source"] for row in rows}):
            mine = [row for row in rows if row["source"] == source]
            self._sources[mine[0]["label"] == "fake"].append(mine)
        roots = [np.sqrt([len(mine) for mine in sources]) for sources in self._sources]
        self._chances = [each / each.sum() for each in roots]
        self._damage = load_perturbations([DAMAGE])
        self._twin = load_autoencoder(taesd)

    def batch(self, size: int, rng: np.random.Generator) -> Batch:
        """Draw a batch: half of it is generated, and some of it pairs of twins."""
        found, damaged, labels = [], [], []
        while len(labels) < size:
            label = len(labels) % 2
            image = self._draw(label, rng)
            # Real images come at even places, so a pair fills its own place and the next.
            images = (
                self._twins(image, rng) if label == 0 and rng.random() < 2 * PAIRED else [image]
            )
            seed = int(rng.integers(2**32))
            for place, one in enumerate(images):
                found.append(VIEW.prepare(one))
                # Twins are damaged alike.
                damaged.append(VIEW.prepare(self._damaged(one, np.random.default_rng(seed))))
                labels.append(label + place)
        patches = (TOWER["image_size"] // TOWER["patch_size"]) ** 2
        order = rng.random((2 * len(labels), patches)).argsort(axis=1)
        return Batch(
            normalise(found),
            normalise(damaged),
            torch.tensor(labels, dtype=torch.float32),
            torch.from_numpy(order[:, : round(KEPT * patches)]),
        )

    def sample(self, most: int, seed: int) -> Iterator[tuple[torch.Tensor, int, str]]:
        """For each source some images, half of them damaged, (N, 3, 224, 224), with label and name:
        for the head that comes first.
        """
        rng = np.random.default_rng(seed)
        for label, sources in enumerate(self._sources):
            for rows in sources:
                views = []
                for number, place in enumerate(rng.permutation(len(rows))[:most]):
                    image = self._read(rows[place])
                    views.append(VIEW.prepare(self._damaged(image, rng) if number % 2 else image))
                yield normalise(views), label, rows[0]["source"]

    def _draw(self, label: int, rng: np.random.Generator) -> Image.Image:
        sources = self._sources[label]
        rows = sources[rng.choice(len(sources), p=self._chances[label])]
        image = self._read(rows[rng.integers(len(rows))])
        return (
            ops.mirror(ops.ImageSample(image, None, label)).image if rng.random() < 0.5 else image
        )

    def _read(self, row: Mapping) -> Image.Image:
        content = (self._photos / row["uri"]).read_bytes()
        return decode_image(content, ImageLimits(max_bytes=8_000_000)).pixels.convert("RGB")

    def _damaged(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() < EVERYDAY:
            damage: Perturbation = self._damage[rng.integers(len(self._damage))]
            return damage.apply(image, int(rng.integers(2**32)))
        return degrade(image, rng)

    def _twins(self, image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
        """A real image, cropped to a size that the autoencoder takes, and its twin."""
        short = int(rng.integers(240, 305))
        sample = ops.resize_short_side(
            ops.ImageSample(image, None, 0), short, ops.Resampling.BICUBIC, rng
        ).image
        sample = sample.crop((0, 0, *(min(side, 304) // 16 * 16 for side in sample.size)))
        return [sample, Image.fromarray(decode_again(self._twin, np.array(sample)))]


class LowRank(nn.Module):
    """A linear layer (…, inputs) → (…, outputs) with a low-rank addition, which begins at zero."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", bias.detach(), persistent=False)
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        plain = functional.linear(features, self.weight, self.bias)
        return plain + functional.linear(functional.linear(features, self.down), self.up)


class TunedAttention(nn.Module):
    """The attention of a block with low-rank additions."""

    def __init__(self, attention: Attention, rank: int) -> None:
        super().__init__()
        self.heads = attention.heads
        self.in_proj = LowRank(attention.in_proj_weight, attention.in_proj_bias, rank)
        self.out_proj = LowRank(attention.out_proj.weight, attention.out_proj.bias, rank)

    def forward(self, tokens: torch.Tensor, mask: None) -> torch.Tensor:
        packed = self.in_proj(tokens)
        query, key, value = packed.view(*packed.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended, _ = headwise_attention(self, query, key, value, mask)
        return self.out_proj(attended.flatten(2))


class TunedTower(nn.Module):
    """The tower with low-rank additions, and a linear head on centred and scaled statistics."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        depths: list[int],
        rank: int,
        shape: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tower = StatisticsTower(depths=depths, **(shape or TOWER))
        self.tower.load_state_dict(
            {name: weights[name] for name in self.tower.state_dict()}, strict=True
        )
        self.tower.requires_grad_(False)
        for block in self.tower.transformer.resblocks:
            block.attn = TunedAttention(block.attn, rank)
            for name in ("c_fc", "c_proj"):
                layer = getattr(block.mlp, name)
                setattr(block.mlp, name, LowRank(layer.weight, layer.bias, rank))
            for norm in (block.ln_1, block.ln_2):
                norm.requires_grad_(True)
        width = self.tower.widths["statistics"]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.head = nn.Linear(width, 1)

    def forward(self, pixels: torch.Tensor, patches: torch.Tensor | None = None) -> torch.Tensor:
        """(N, 3, 224, 224), normalised → (N,) log-odds of having been generated. If `patches`
        (N, kept) is given, the tower sees only these patches of each view.
        """
        with autocast():
            tokens = self.tower.embed(pixels)
            if patches is not None:
                chosen = patches[..., None].expand(-1, -1, tokens.shape[2])
                tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, chosen)], dim=1)
            statistics = self.tower.summarise(tokens).statistics
        return self.head((statistics.float() - self.mean) / self.scale)[:, 0]

    def fit_head(self, archive: Archive, most: int) -> None:
        """Fit the head on the tower as it is: logistic regression, classes alike, sources by the
        root of their images.
        """
        features, labels, sources = [], [], []
        with torch.inference_mode(), autocast():
            for pixels, label, source in archive.sample(most, seed=0):
                features.append(self.tower(pixels).statistics.float())
                labels += [label] * len(pixels)
                sources += [source] * len(pixels)
        known, wanted = torch.cat(features).clone(), torch.tensor(labels, dtype=torch.float32)
        self.mean.copy_(known.mean(0))
        self.scale.copy_(known.std(0) + 1e-3)
        fit_linear(self.head, (known - self.mean) / self.scale, wanted, sources, PENALTY)

    @torch.no_grad()
    def plain(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The tower as tensors with OpenAI's names, additions merged, and the head as one linear
        layer on the statistics as they come. The tower takes the pixels of `VIEW`, in −1…1, instead
        of CLIP's: scale and shift are in its first layer and in the positions of the patches.
        """
        tower = {
            name: tensor
            for name, tensor in self.tower.state_dict().items()
            if not name.endswith((".down", ".up"))
        }
        for name, layer in self.tower.named_modules():
            if isinstance(layer, LowRank):
                place = (
                    name.replace(".in_proj", ".in_proj_")
                    if name.endswith("in_proj")
                    else f"{name}."
                )
                tower[f"{place}weight"] = layer.weight + layer.up @ layer.down
                tower[f"{place}bias"] = layer.bias
        scale = torch.from_numpy(127.5 / STD)[:, None, None]
        shift = torch.from_numpy((127.5 - MEAN) / STD)[:, None, None]
        first, positions = tower["conv1.weight"], tower["positional_embedding"].clone()
        positions[1:] += (first * shift).sum(dim=(1, 2, 3))
        tower |= {"conv1.weight": first * scale, "positional_embedding": positions}
        weight = self.head.weight / self.scale
        return tower, {"fc.weight": weight, "fc.bias": self.head.bias - weight @ self.mean}

    def learned(self) -> dict[str, torch.Tensor]:
        """What the tuning changes, by name."""
        names = {name for name, each in self.named_parameters() if each.requires_grad}
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in names or name in ("mean", "scale")
        }


class Tuning:
    """The tuning of a tower, which another process can continue: weights, their moving average, and
    the optimiser.
    """

    def __init__(self, network: TunedTower, steps: int, rate: float, head_rate: float) -> None:
        self.network, self.steps, self.step = network, steps, 0
        head = list(network.head.parameters())
        others = [
            each
            for name, each in network.named_parameters()
            if each.requires_grad and not name.startswith("head.")
        ]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": others, "lr": rate, "base": rate},
                {"params": head, "lr": head_rate, "base": head_rate},
            ],
            weight_decay=0.02,
        )
        self._others = [*others, *head]
        self.average = {name: each.detach().clone() for name, each in network.learned().items()}

    def save(self, path: Path) -> None:
        """Write the state to a file, all of it or nothing."""
        state = {
            "network": self.network.learned(),
            "average": self.average,
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
        }
        with write_aside(path) as aside:
            torch.save(state, aside)

    def load(self, path: Path) -> None:
        """Continue from the state in a file."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"], strict=False)
        self._optimiser.load_state_dict(state["optimiser"])
        self.average, self.step = state["average"], state["step"]

    def take_step(self, batch: Batch) -> tuple[float, float]:
        """Learn from a batch. Returns the mean loss of both views, and that of consistency."""
        set_rates(self._optimiser, self.step, self.steps)
        logits = self.network(torch.cat([batch.found, batch.damaged]), batch.patches)
        smoothed = batch.labels * (1 - 2 * LABEL_SMOOTHING) + LABEL_SMOOTHING
        error = functional.binary_cross_entropy_with_logits(logits, smoothed.repeat(2))
        found, damaged = logits.chunk(2)
        apart = functional.binary_cross_entropy_with_logits(
            damaged, found.detach().sigmoid()
        ) - functional.binary_cross_entropy_with_logits(found.detach(), found.detach().sigmoid())
        (error + CONSISTENCY * apart).backward()
        nn.utils.clip_grad_norm_(self._others, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.step += 1
        update_average(self.average, self.network.learned(), self.step)
        return error.item(), apart.item()


def normalise(views: list[np.ndarray]) -> torch.Tensor:
    """Return views (N, H, W, 3) uint8 as CLIP's input (N, 3, H, W)."""
    return torch.from_numpy((np.stack(views) - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "photos", type=Path, help="folder of gather_photographs: index.parquet and images"
    )
    parser.add_argument("weights", type=Path, help="the tower to begin with, of read_clip")
    parser.add_argument("--taesd", type=Path, required=True, help="a clone of madebyollin/taesd")
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 8])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=8, help="images, each seen twice")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--head-rate", type=float, default=2e-4)
    parser.add_argument("--first", type=int, default=8, help="images of a source, first head")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at", type=int, default=None, help="end before the last step")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.manual_seed(asked.seed)
    network = TunedTower(load_file(asked.weights), asked.depths, asked.rank)
    archive = Archive(asked.photos, asked.taesd)
    state = asked.out / "state.pt"
    if not state.exists():
        network.fit_head(archive, asked.first)
        save_file(network.learned(), asked.out / "untuned.safetensors", {"format": "pt"})
    tuning = Tuning(network, asked.steps, asked.rate, asked.head_rate)
    if state.exists():
        tuning.load(state)
    last, losses = min(asked.stop_at or asked.steps, asked.steps), []
    with ThreadPoolExecutor(1) as ahead:

        def draw(step: int) -> Batch:
            return archive.batch(asked.batch, np.random.default_rng([asked.seed, step]))

        coming = ahead.submit(draw, tuning.step)
        while tuning.step < last:
            batch, coming = coming.result(), ahead.submit(draw, tuning.step + 1)
            losses.append(tuning.take_step(batch))
            if tuning.step % 25 == 0 or tuning.step == last:
                tuning.save(state)
                error, apart = np.mean(losses, axis=0)
                print(f"step {tuning.step} of {asked.steps}: {error:.3f}, {apart:.3f}", flush=True)
                losses = []
    save_file(tuning.average, asked.out / "tuned.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
