"""What a GPU makes of every detector, of a run and of learning, in one process and in eight
minutes.

    python -m benchmarks.gpu --json FILE [--device cuda] [--parts detectors run train compile]

`detectors`: each card's scores against the authors' (../shared/golden, where it is) or a CPU's, in
fp32 and bf16; images per second by batch, the smallest batch that pays, memory. `run`: a split run
over photographs, and its rate ÷ that of its detector alone. `train`: a step of every recipe whose
network learns. `compile`: what torch.compile gives, and whether scores stay.

What is over the budget is left out, and named. Networks have seeded weights where theirs are not
here. Where there is no GPU it says so and ends with 0.
"""

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.contenders.touchstone import read
from benchmarks.machine import machine, versions
from benchmarks.measuring import ContenderError, steady_rate
from benchmarks.photographs import write_photographs
from benchmarks.seeded import PUBLISHED_PREFIX, seeded_card, write_card
from ray_app.config import find_config, load_yaml, named_configs
from ray_app.detectors import DetectorCard, list_cards, load_card, load_detector
from ray_app.detectors.card_sections import FormulaScore, formula_image
from ray_app.detectors.compilation import Compiler, compile_checked, with_cuda_graphs
from ray_app.detectors.detector import Detector, build_network, fake_index, load_network, log_odds
from ray_app.detectors.precision import (
    TOLERANCE,
    ResolvedPrecision,
    beyond_tolerance,
    resolve_precision,
)
from ray_app.detectors.weights import resolved
from ray_app.errors import DetectorError, describe_error
from ray_app.inference.device_batches import (
    DeviceMeter,
    batch_sizes,
    measured_batches,
    paying_batch,
)
from ray_app.training.config import Initial, TrainConfig
from ray_app.training.detector import DetectorLearner
from ray_app.training.networks import training_card

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = (
    next((place for place in (ROOT, ROOT.parent) if (place / "shared").is_dir()), ROOT)
    / "shared"
    / "golden"
)
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow", "ray")
BUDGET_S = 480.0
# of the budget, by whose end each part stops
SHARES = {"detectors": 0.5, "run": 0.7, "train": 0.9, "compile": 1.0}
# images at once; height and width where a detector keeps sizes
SLOTS, MOST_BATCH, NATIVE = 64, 1024, (512, 512)
LARGEST = 2_000_000_000  # parameters: to draw more would take minutes
RUN_DETECTOR, RUN_IMAGES = "community-forensics-vits384", 6000
COMPILED = ("community-forensics-vits384", "openfake-swinv2-small")
# The authors' logits of formula-filled networks (golden/detectors.md): card, and its name there.
AUTHORS = {
    "community-forensics-vits384": "commfor_384", "corvi2023": "corvi:native", "cnndetection": "cnndetection:crop224",
    "npr:native": "npr:native", "ladeda9": "ladeda9:squash256", "openfake-swinv2-small": "swinv2:torchvision",
    "siglip2-open-deepfake": "siglip2:torchvision",
}  # fmt: skip
Piece = tuple[str, Callable[[], dict[str, Any]]]  # a name, and what measures it


class Budget:
    """Seconds that are left, by a clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begun, self.seconds = clock, clock(), seconds

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begun


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here: nothing is measured")
        return 0
    budget, result = Budget(options.budget), _facts(options.device)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        for part in options.parts:
            for _ in measure_part(part, PARTS[part](options, Path(folder)), budget, result):
                # after each piece: whoever ends us has what there is
                options.json.write_text(json.dumps(result, indent=2))
    print(table(result))
    print(f"\nwritten to {options.json}")
    return 0


def measure_part(
    part: str, pieces: Iterator[Piece], budget: Budget, result: dict[str, Any]
) -> Iterator[str]:
    """Measure the pieces of a part one by one, while there is time, and name each; what fails, and
    what is left out, is noted, and the others go on.
    """
    measured = result["parts"].setdefault(part, {})
    for name, measure in pieces:
        if budget.spent > SHARES[part] * budget.seconds:
            result["left_out"].append(f"{part}: {name}")
        else:
            begun = budget.spent
            try:
                measured[name] = measure()
            # of whatever library: one detector that fails is a finding, and no end
            except Exception as error:
                measured[name] = {"failed": describe_error(error)}
            measured[name]["seconds"] = round(budget.spent - begun, 2)
            _say(f"{budget.spent:5.0f} s  {part}: {name}  {measured[name].get('failed', '')}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        yield name


def detectors_part(options: argparse.Namespace, folder: Path) -> Iterator[Piece]:
    """Every shipped card that fits, the small ones first."""
    cards = (
        [load_card(name) for name in options.detectors]
        if options.detectors
        else [*list_cards(), load_card("npr:native")]
    )
    for card in sorted(cards, key=lambda card: card.size.parameters if card.size else 0):
        if card.replies or (card.size and card.size.parameters > LARGEST):
            yield card.name, lambda: {"left_out": "too large for seeded weights"}
        else:
            yield card.name, lambda card=card: detector_figures(card, options.device, options.most)  # type: ignore[misc]


def detector_figures(card: DetectorCard, device: str, most: int = MOST_BATCH) -> dict[str, Any]:
    """Scores of one image in both precisions against the authors' or this machine's CPU, and what
    batches of which size cost.
    """
    network, origin = _network(card, device)
    images = [formula_image(400, 300)]
    pixels = np.stack([card.preprocessing.prepare(Image.fromarray(image)) for image in images])
    expected = _detector(card, copy.deepcopy(network).cpu(), "cpu", "fp32").score(pixels)
    figures: dict[str, Any] = {"weights": origin, "cpu_fp32": float(expected[0])}
    if origin == "formula":
        authors = _authors_score(card)
        figures |= {"authors": authors, "cpu_from_authors": float(abs(expected[0] - authors))}
    for golden in card.golden if origin == "own" else ():
        if isinstance(golden, FormulaScore):
            detector = _detector(card, copy.deepcopy(network), device, "fp32")
            score = detector.score(
                detector.prepare(Image.fromarray(formula_image(golden.width, golden.height)))[None]
            )[0]
            figures["golden"] = {
                "score": float(score),
                "card": golden.logit,
                "tolerance": golden.tolerance,
            }
    precisions: tuple[ResolvedPrecision, ...] = ("fp32", "bf16")
    for precision in precisions:
        detector = _detector(card, copy.deepcopy(network), device, precision)
        score = detector.score(pixels)
        measured = batch_figures(
            detector, device, most if precision == "bf16" else min(most, SLOTS)
        )
        figures[precision] = {
            "score": float(score[0]),
            "from_cpu": float(abs(score[0] - expected[0])),
            **measured,
        }
        figures[precision] |= {
            "tolerance": TOLERANCE[precision],
            "beyond": beyond_tolerance(score, expected, precision),
        }
        del detector
    return figures


def batch_figures(detector: Detector, device: str, most: int = MOST_BATCH) -> dict[str, Any]:
    """Images per second by batch, the smallest batch that pays, and the share of the device's
    memory that the largest took.
    """
    card = detector.card
    height, width = card.preprocessing.shape or NATIVE
    slots = min(card.batch or SLOTS, SLOTS if card.preprocessing.shape else 8, most)
    meter = DeviceMeter(device)

    def run(count: int) -> object:
        return detector.read(
            detector.normalise(
                torch.zeros(count, height, width, 3, dtype=torch.uint8, device=device)
            )
        )

    measured = measured_batches(batch_sizes(slots, slots if card.batch else most), run, meter)
    return {
        "rates": {str(one.size): round(one.rate, 2) for one in measured},
        "pays": paying_batch(measured),
        "memory_share": max(one.memory_share for one in measured),
    }


def run_part(options: argparse.Namespace, folder: Path) -> Iterator[Piece]:
    """One run of the command on photographs, as a user starts it."""
    yield RUN_DETECTOR, lambda: run_figures(folder, options.device, options.images)


def run_figures(
    folder: Path, device: str, images: int, detector: str = RUN_DETECTOR
) -> dict[str, Any]:
    """Images per second of `touchstone score` between 15 % and 90 % of the images, and of its
    detector alone. Raises ContenderError.
    """
    write_photographs(folder / "photographs", images)
    card = seeded_card(detector, folder / "seeded")
    path, out = write_card(card, folder / "card.yaml"), folder / "out"
    command = [
        sys.executable,
        "-c",
        "from ray_app.cli.main import main; main()",
        "score",
        str(folder / "photographs"),
        "--out",
        str(out),
    ]
    command += ["--detector", str(path), "--set", f"device={torch.device(device).type}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=BUDGET_S, check=False
    )
    if done.returncode:
        _say(done.stderr[-4000:])
        raise ContenderError(done.stderr.strip().splitlines()[-1])
    record = read(done.stdout, out)
    rate = steady_rate(record.finished, len(record.scores))
    alone = batch_figures(load_detector(card, device=device), device, SLOTS)
    best = max(alone["rates"].values())
    return {
        "images": len(record.scores),
        "rate": rate,
        "device_only": best,
        "share": rate / best,
        "stages": record.detail,
    }


def train_part(options: argparse.Namespace, folder: Path) -> Iterator[Piece]:
    """Every recipe."""
    for name in options.recipes or named_configs("train"):
        yield name, lambda name=name: training_figures(name, options.device, options.micro_batch)  # type: ignore[misc]


def training_figures(name: str, device: str, count: int) -> dict[str, Any]:
    """A step of a recipe's network from random weights over `count` drawn images, the second one
    timed. One process: FSDP2 is not seen.
    """
    recipe = load_yaml(find_config("train", name), TrainConfig)
    if recipe.method != "fine-tune":
        return {"left_out": f"method {recipe.method} has no step that a network learns by"}
    loop = recipe.loop.model_copy(update={"batch": count, "micro_batch": None})
    recipe = recipe.model_copy(update={"initial": Initial(start="random"), "loop": loop})
    card, meter = training_card(recipe), DeviceMeter(device)
    learner = DetectorLearner(recipe, card, device=device, total_steps=10)
    batch = _drawn_batch(count, card)
    meter.peak_share()
    losses = [learner.step(batch).loss]
    seconds = meter.seconds(lambda: losses.append(learner.step(batch).loss))
    return {"precision": learner.precision, "images": count, "step_s": seconds, "rate": count / seconds, "losses": losses,
            "memory_share": meter.peak_share()}  # fmt: skip


def _drawn_batch(count: int, card: DetectorCard) -> dict[str, Any]:
    height, width = card.preprocessing.shape or NATIVE
    rng, label = np.random.default_rng(1), np.arange(count) % 2
    batch: dict[str, Any] = {
        "image": rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8),
        "label": label,
    }
    batch |= {
        "usable": np.ones(count, bool),
        "group": np.arange(count) // 2,
        "row": np.arange(count),
        "detail": np.full(count, ""),
    }
    if card.masks:
        batch["mask"] = np.broadcast_to(label[:, None, None], (count, height, width)).astype(
            np.uint8
        )
        batch["edge"] = np.zeros_like(batch["mask"])
    return batch


def compile_part(options: argparse.Namespace, folder: Path) -> Iterator[Piece]:
    """Some detectors, compiled, against the same as they are."""
    for name in options.compiled:
        yield (
            name,
            lambda name=name: compile_figures(
                load_card(name), options.device, min(SLOTS, options.most)
            ),
        )  # type: ignore[misc]


def compile_figures(
    card: DetectorCard, device: str, count: int, compiler: Compiler = with_cuda_graphs
) -> dict[str, Any]:
    """Images per second as it is and compiled, what compiling takes, and why it was not kept, where
    it was not.
    """
    detector = _detector(
        card, _network(card, device)[0], device, resolve_precision("auto", device, card.precision)
    )
    height, width = card.preprocessing.shape or NATIVE
    pixels, meter = (
        torch.zeros(count, height, width, 3, dtype=torch.uint8, device=device),
        DeviceMeter(device),
    )

    def rate() -> float:
        run = partial(detector.read, detector.normalise(pixels))
        run()
        return count / min(meter.seconds(run) for _ in range(5))

    eager, begun = rate(), time.perf_counter()
    why = compile_checked(detector, count, compiler)
    return {
        "eager": eager,
        "compile_s": time.perf_counter() - begun,
        "why_not": why,
        "compiled": None if why else rate(),
    }


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Piece]]] = {
    "detectors": detectors_part, "run": run_part, "train": train_part, "compile": compile_part,
}  # fmt: skip


def _network(card: DetectorCard, device: str) -> tuple[nn.Module, str]:
    """A card's network on the CPU, and whose weights it has: its `own`, of the authors' `formula`,
    or `seeded` ones.
    """
    if card.name in AUTHORS and GOLDEN.is_dir():
        network, prefix = build_network(card), PUBLISHED_PREFIX.get(card.name, "")
        filled = _fill()({prefix + key: tensor for key, tensor in network.state_dict().items()})
        network.load_state_dict(
            {key.removeprefix(prefix): tensor for key, tensor in filled.items()}
        )
        return network, "formula"
    try:
        return load_network(card, resolved(card, offline=True)), "own"
    except DetectorError:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                with torch.device(device):  # a GPU draws hundreds of millions of numbers in no time
                    return build_network(card).cpu(), "seeded"
            # a builder that computes with what it has on the host
            except (RuntimeError, DetectorError):
                return build_network(card), "seeded"


def _fill() -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fill: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = module.fill
    return fill


def _authors_score(card: DetectorCard) -> float:
    """The log-odds of the authors' own code for the first image."""
    logits = torch.tensor(
        [
            json.loads((GOLDEN / "detectors.json").read_text())[AUTHORS[card.name]]["300x400"][
                "logits"
            ]
        ]
    )
    return float(log_odds(card, fake_index(card, {}), logits, 1)[0])


def _detector(
    card: DetectorCard, network: nn.Module, device: str, precision: ResolvedPrecision
) -> Detector:
    fake = fake_index(card, {})
    return Detector(
        card,
        network,
        fake=fake,
        device=device,
        precision=precision,
        resize="exact",
        slots=1,
        weights_sha256="of a benchmark",
    )


def _facts(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(PACKAGES),
        "device": device,
        "parts": {},
        "left_out": [],
    }
    if torch.device(device).type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": {
                "name": found.name,
                "memory_bytes": found.total_memory,
                "cuda": torch.version.cuda,
            }
        }
    return facts


def table(result: dict[str, Any]) -> str:
    """What was measured, in a line each."""
    lines = [
        f"on {result.get('gpu', {}).get('name', result['device'])}, torch {result['versions']['torch']}"
    ]
    for part, measured in result["parts"].items():
        for name, figures in measured.items():
            lines.append(f"{part:<10}{name:<34}{_in_words(figures)}")
    return "\n".join([*lines, *(f"left out: {name}" for name in result["left_out"])])


def _in_words(figures: dict[str, Any]) -> str:
    if "failed" in figures or "left_out" in figures:
        return str(figures.get("failed", figures.get("left_out")))
    words = []
    for name, value in figures.items():
        if isinstance(value, dict) and "pays" in value:
            best = max(value["rates"].values())
            words.append(
                f"{name} {best:.0f}/s, {value['pays']} pay, off {value['from_cpu']:.1g}{' BEYOND' if value['beyond'] else ''}"
            )
        elif isinstance(value, float):
            words.append(f"{name} {value:.4g}")
        elif isinstance(value, str | int):
            words.append(f"{name} {value}")
    return "; ".join(words)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=as_written
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="where the result goes"
    )
    parser.add_argument("--device", default="cuda", help="[cuda]; cpu tries the parts out")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds for everything  [480]"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--detectors", nargs="+", help="only these cards")
    parser.add_argument("--recipes", nargs="+", help="only these recipes")
    parser.add_argument(
        "--compiled", nargs="+", default=list(COMPILED), help="the detectors that are compiled"
    )
    parser.add_argument(
        "--most", type=int, default=MOST_BATCH, help="the largest batch that is tried  [1024]"
    )
    parser.add_argument(
        "--images", type=int, default=RUN_IMAGES, help="photographs of the run  [6000]"
    )
    parser.add_argument("--micro-batch", type=int, default=16, help="images of a step  [16]")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
