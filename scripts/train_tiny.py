"""Train `touchstone-tiny`, the demonstration detector, from simulated pictures alone.

    python scripts/train_tiny.py                 # simulate, train, measure, write configs/detectors/touchstone-tiny.*
    python scripts/train_tiny.py --check         # do the same in memory and compare with the shipped weights, bit for bit

Every draw comes from seeds, and the number of threads is fixed, so the same machine and the same versions give the same bytes.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded; workers inherit it

import numpy as np
import torch
import torch.nn.functional as functional
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from ray_app.detectors.cards import load_card
from ray_app.detectors.residual import ResidualNet
from ray_app.simulation.autoencoders import AUTOENCODERS, TrainedDecoder, train_autoencoder
from ray_app.simulation.camera import CAMERAS
from ray_app.simulation.dataset import SPLITS, Decode, make_pair
from ray_app.simulation.decoders import DECODERS
from ray_app.simulation.history import Encoding, draw_history
from ray_app.simulation.scenes import render

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "configs" / "detectors" / "touchstone-tiny.safetensors"
CARD = WEIGHTS.with_suffix(".yaml")

SEED = 20
PAIRS = {"train": 2500, "validation": 400, "test": 400}
SOURCE_SIDE = {"train": 320, "validation": 352, "test": 352}  # pixels of the picture before its history
TARGET_SIDE = {"train": 168, "validation": 256, "test": 256}  # pixels of the file
HISTORIES = {"train": 2, "validation": 1, "test": 1}  # files made of each pair
CROP, BATCH, EPOCHS, RATE, THREADS = 128, 32, 11, 3e-3, 1
FALSE_ALARMS, DOUBTS = 0.01, 0.10  # the false-positive rates that the two thresholds are chosen for
CONFOUNDED = "30 pictures in which format tells the label (camera JPEG, generator PNG): never a gate, never trained on"
SPLIT_SEED = {"train": 1, "validation": 2, "test": 3}

_decoders: dict[str, Decode] = {}


Log = Callable[[str], None]


def simulate(workers: int, log: Log) -> dict[str, "Files"]:
    """All three splits; the work of one pair depends on its index alone, never on the worker."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        trained = dict(pool.map(_train_decoder, AUTOENCODERS, chunksize=1))
    log(f"{len(trained)} autoencoders trained")
    return make_splits(workers, trained, log)


def make_splits(workers: int, trained: dict[str, TrainedDecoder], log: Log) -> dict[str, "Files"]:
    """Draw the pairs of every split and keep the decoded files."""
    splits = {}
    with multiprocessing.get_context("spawn").Pool(workers, _receive_decoders, (trained,)) as pool:
        for split, pairs in PAIRS.items():
            made = pool.imap(_make_files, [(split, index) for index in range(pairs)], chunksize=8)
            splits[split] = Files.gather(made)
            log(f"{split}: {len(splits[split].labels)} files simulated")
    return splits


@dataclass
class Files:
    """Decoded files of one split: pixels (n, side, side, 3) uint8, labels 1 = fake, and what made each."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    origins: list[tuple[str, str, str]]  # scene, camera, decoder

    @classmethod
    def gather(cls, made: Iterable[list[tuple[NDArray[np.uint8], int, tuple[str, str, str]]]]) -> "Files":
        """Collect what the workers send, in order."""
        pixels, labels, origins = zip(*(file for files in made for file in files), strict=True)
        return cls(np.stack(pixels), np.array(labels), list(origins))


def _train_decoder(name: str) -> tuple[str, TrainedDecoder]:
    """Train one autoencoder on pictures of its own split, so that test decoders never saw training scenes."""
    split = next(split for split in SPLITS.values() if name in split.decoders)
    rng = np.random.default_rng([SEED, *name.encode()])
    pictures = [CAMERAS[str(rng.choice(split.cameras))].shoot(render(str(rng.choice(split.scenes)), rng, 448, 448), rng) for _ in range(40)]
    return name, train_autoencoder(AUTOENCODERS[name], pictures, seed=SEED)


def _receive_decoders(trained: dict[str, TrainedDecoder]) -> None:
    torch.set_num_threads(1)
    _decoders.update(DECODERS, **trained)


def _make_files(job: tuple[str, int]) -> list[tuple[NDArray[np.uint8], int, tuple[str, str, str]]]:
    split, index = job
    rng = np.random.default_rng([SEED, SPLIT_SEED[split], index])
    side, target = SOURCE_SIDE[split], TARGET_SIDE[split]
    pair = make_pair(SPLITS[split], _decoders, rng, side, side)
    files = []
    for _ in range(HISTORIES[split]):
        history = draw_history(rng, side, side, target=(target, target))
        for label, data in enumerate(pair.encode(history)):
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            files.append((pixels, label, (pair.scene, pair.camera, pair.decoder)))
    return files


def as_input(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(n, h, w, 3) uint8 → what the card's normalisation gives: (n, 3, h, w), grey levels minus 128."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() - 128
    return tensor.contiguous(memory_format=torch.channels_last)


def train(files: Files, log: Log) -> ResidualNet:
    """Binary cross-entropy on random crops, turned and mirrored; returns the network with its norms folded away."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    rng = np.random.default_rng([SEED, 4])
    net = ResidualNet(norms=True).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    steps = len(files.labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps * EPOCHS)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(files.labels) // 2)
        total = 0.0
        for step in range(steps):
            pairs = order[step * BATCH // 2 : (step + 1) * BATCH // 2]
            batch = as_input(_augment(files.pixels[np.concatenate([2 * pairs, 2 * pairs + 1])], rng))
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast, and the precision that the network will run in
                logits = net(batch)[:, 0]
            real, fake = logits.float().chunk(2)
            # The usual cross-entropy, and the same for "which of the two files is the fake one".
            loss = (functional.softplus(real) + functional.softplus(-fake)).mean() / 2 + functional.softplus(real - fake).mean() / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        log(f"epoch {epoch + 1}/{EPOCHS}: loss {total / steps:.4f}")
    return net.eval().without_norms()


def _augment(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    top, left = rng.integers(pixels.shape[1] - CROP + 1, size=2)
    turned = np.rot90(pixels[:, top : top + CROP, left : left + CROP], int(rng.integers(4)), axes=(1, 2))
    return turned[:, :, ::-1] if rng.random() < 0.5 else turned


@torch.inference_mode()
def score(net: ResidualNet, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Log-odds of fake for equally sized pictures."""
    batches = np.array_split(pixels, max(1, len(pixels) // 16))
    return np.concatenate([net(as_input(batch))[:, 0].double().numpy() for batch in batches])


def proportion(hits: NDArray[np.bool_]) -> tuple[float, str]:
    """A share and its exact 95 % interval (Clopper, Pearson 1934) in words."""
    from scipy.stats import beta

    n, k = len(hits), int(hits.sum())
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return round(k / n, 4), f"95 % interval {low:.3f} to {high:.3f}"


def choose_thresholds(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Log-odds that at most a share of DOUBTS and of FALSE_ALARMS of the real files exceed; between the two is the abstain band."""
    real = np.sort(scores[labels == 0])
    real_below, fake_above = (float(real[-1 - int(share * len(real))]) for share in (DOUBTS, FALSE_ALARMS))
    return {"real_below": round(real_below + 5e-3, 2), "fake_above": round(fake_above + 5e-3, 2)}


def measure(net: ResidualNet, data: dict[str, Files], realworld: Path) -> dict[str, list[Any]]:
    """The card's `notes` and `published`: thresholds from validation, figures from test and from real pictures."""
    validation, test = data["validation"], data["test"]
    thresholds = choose_thresholds(score(net, validation.pixels), validation.labels)
    pairs = len(validation.labels) // 2
    scores = score(net, test.pixels)
    held_out = "simulated, held out by scene, camera and decoder at once"
    figures = _figures(held_out, scores, test.labels, thresholds)
    for decoder in SPLITS["test"].decoders:
        own = np.array([origin[2] == decoder for origin in test.origins])
        figures += _figures(f"{held_out}; decoder {decoder}", scores[own], test.labels[own], thresholds)[:2]
    for name, pixels, labels in _real_pictures(realworld):
        for figure in _figures(name, score(net, pixels), labels, thresholds):
            figures.append(figure | {"note": "; ".join(filter(None, (figure.get("note"), CONFOUNDED)))})
    notes = [
        "A demonstration: it shows that everything runs, and how a detector is made and measured. Do not act on its verdicts.",
        "It judges the centre 256 × 256 pixels at native resolution; a picture that was resized since it was made is much harder.",
        f"Thresholds (log-odds): fake above {thresholds['fake_above']}, for a false-positive rate of {FALSE_ALARMS:.0%};"
        f" real below {thresholds['real_below']}, for one of {DOUBTS:.0%}; chosen on the {pairs} real files"
        " of the simulated validation split, whose scenes, cameras and decoders are in neither training nor test.",
    ]
    return {"notes": notes, "published": figures}


def _figures(name: str, scores: NDArray[np.float64], labels: NDArray[np.int64], thresholds: dict[str, float]) -> list[dict[str, Any]]:
    real, fake = scores[labels == 0], scores[labels == 1]
    above, below = thresholds["fake_above"], thresholds["real_below"]
    rows = [
        (f"TPR (fake above {above})", fake > above),
        (f"FPR (real above {above})", real > above),
        (f"TNR (real below {below})", real < below),
        ("TPR at 0", fake > 0),
        ("TNR at 0", real <= 0),
    ]
    figures = [_figure(name, "AUC", _auc(scores, labels), len(labels))]
    for metric, hits in rows:
        share, interval = proportion(hits)
        figures.append(_figure(name, metric, share, len(hits)) | {"note": interval})
    return figures


def _figure(name: str, metric: str, value: float, n: int) -> dict[str, Any]:
    return {"set": name, "metric": metric, "value": value, "n": n, "verified": True, "source": "scripts/train_tiny.py"}


def _auc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    from sklearn.metrics import roc_auc_score

    return round(float(roc_auc_score(labels, scores)), 4)


def _real_pictures(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64]]]:
    """The centre crops of ../shared/realworld, as they are and after one and the same resize and JPEG; nothing if it is absent."""
    paths = [(path, 0) for path in sorted((folder / "camera").glob("*"))] + [(path, 1) for path in sorted((folder / "generated").glob("*"))]
    if not paths:
        return
    labels = np.array([label for _, label in paths])
    preprocessing = load_card("touchstone-tiny").preprocessing
    images = [Image.open(path).convert("RGB") for path, _ in paths]
    yield "shared/realworld (25 camera, 5 DALL·E 2), native", np.stack([preprocessing.prepare(image) for image in images]), labels
    same = [preprocessing.prepare(_same_history(image)) for image in images]
    yield "shared/realworld, short side 512 and JPEG 85 for both classes", np.stack(same), labels


def _same_history(image: Image.Image) -> Image.Image:
    factor = 512 / min(image.size)
    small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return Image.fromarray(Encoding("JPEG", 85).reopen(np.asarray(small)))


def write_card(digest: str, findings: dict[str, list[Any]]) -> None:
    """Put the weights' hash, the notes and the figures into the card; all above `notes` is written by hand."""
    text = CARD.read_text(encoding="utf-8")
    head = re.sub(r'sha256: "?[0-9a-f]{64}"?', f'sha256: "{digest}"', text[: text.index("\nnotes:") + 1])
    tail = yaml.safe_dump(findings, sort_keys=False, allow_unicode=True, width=140)
    _replace(CARD, (head + tail).encode())


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_bytes(data)
    aside.replace(path)


def main() -> int:
    """Parse, simulate, train, measure, write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the shipped weights, write nothing")
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate (no influence on the result)")
    parser.add_argument("--realworld", type=Path, default=ROOT.parent / "shared" / "realworld", help="real pictures, measured only")
    arguments = parser.parse_args()
    started = time.monotonic()
    data = simulate(arguments.workers, lambda text: print(f"{time.monotonic() - started:5.0f} s  {text}", file=sys.stderr, flush=True))
    net = train(data["train"], lambda text: print(f"{time.monotonic() - started:5.0f} s  {text}", file=sys.stderr, flush=True))
    weights = save({name: value.contiguous() for name, value in net.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    if arguments.check:
        same = digest == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        print(f"{'identical' if same else 'DIFFERENT'}: {digest}")
        return 0 if same else 1
    findings = measure(net, data, arguments.realworld)
    _replace(WEIGHTS, weights)
    write_card(digest, findings)
    print(json.dumps({"sha256": digest, **findings}, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
