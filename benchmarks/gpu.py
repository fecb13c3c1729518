"""What a GPU makes of every detector, of a run and of learning, in one process and in eight
minutes.

    python -m benchmarks.gpu --json FILE [--device cuda] [--parts detectors run train compile]

`detectors`: each card's scores against the authors' (../shared/golden, where it is) or a CPU's, in
fp32 and bf16; images per second by batch, the smallest batch that pays, memory. `run`: whole runs
of `touchstone score` over photographs, each ÷ its network alone and ÷ its decoders alone, with the
GPU's utilisation. `train`: a step of every recipe whose network learns. `compile`: what
torch.compile gives, and whether scores stay.

What is over the budget is left out, and named. Networks have seeded weights where theirs are not
here. Where there is no GPU it says so and ends with 0.
"""

import argparse
import copy
import importlib.util
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.contenders.touchstone import read
from benchmarks.machine import Steal, machine, versions
from benchmarks.measuring import WINDOW, ContenderError, cumulative, steady_rate
from benchmarks.photographs import write_photographs
from benchmarks.seeded import PUBLISHED_PREFIX, seeded_card, write_card
from benchmarks.work import cores
from ray_app.config import find_config, load_yaml, named_configs
from ray_app.detectors import DetectorCard, list_cards, load_card, load_detector
from ray_app.detectors.card_sections import FormulaScore, generate_formula_image
from ray_app.detectors.compilation import Compiler, compile_checked, compile_with_cuda_graphs
from ray_app.detectors.detector import Detector, build_network, fake_index, load_network, log_odds
from ray_app.detectors.precision import (
    TOLERANCE,
    ResolvedPrecision,
    exceeds_tolerance,
    resolve_precision,
)
from ray_app.detectors.weights import resolve_parts
from ray_app.errors import DetectorError, describe_error
from ray_app.inference import BatchDecoder, ScoringSpec, StageClock
from ray_app.inference.device_batches import (
    DeviceMeter,
    batch_sizes,
    choose_batch_size,
    measure_batches,
)
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.identity import resolve
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
RUN_DETECTOR, RUN_IMAGES, RUN_TIMEOUT_S = "community-forensics-vits384", 6000, 240.0
# Images that one process writes at once; a process first renders its scenes, for seconds.
PHOTOGRAPHS_TOGETHER = 200
GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    "--id=0",
)
MAX_DECODED = 4096  # images of the decoders alone
SAMPLE_EVERY_S = 0.5
SESSION_FACTS = (
    "layout", "workers", "wall_s", "first_result_s", "images_per_s", "peak_worker_bytes", "detectors", "seconds",
)  # fmt: skip
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
    images = [generate_formula_image(400, 300)]
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
                detector.prepare(
                    Image.fromarray(generate_formula_image(golden.width, golden.height))
                )[None]
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
            "beyond": exceeds_tolerance(score, expected, precision),
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
    run, meter = _forward(detector, height, width, device), DeviceMeter(device)
    measured = measure_batches(batch_sizes(slots, slots if card.batch else most), run, meter)
    return {
        "rates": {str(one.size): round(one.rate, 2) for one in measured},
        "pays": choose_batch_size(measured),
        "memory_share": max(one.memory_share for one in measured),
    }


def run_part(options: argparse.Namespace, folder: Path) -> Iterator[Piece]:
    """Runs of the command on photographs, as a user starts them."""
    photographs = options.photographs or folder / "photographs"
    for name in options.runs:
        score = partial(
            run_figures,
            folder,
            options.device,
            options.images,
            name,
            photographs=photographs,
            settings=options.settings,
            logs=options.json.parent,
        )
        yield name, score
        # A piece of its own: if time runs out, the results of the run are already written.
        yield (
            f"{name}: decoders",
            lambda name=name: decoder_figures(  # type: ignore[misc]
                folder, options.device, photographs, name, options.settings
            ),
        )


def run_figures(
    folder: Path,
    device: str,
    images: int,
    detector: str = RUN_DETECTOR,
    *,
    photographs: Path | None = None,
    settings: Sequence[str] = (),
    logs: Path | None = None,
) -> dict[str, Any]:
    """Measure `touchstone score` and its network alone.

    The rate of the run is that between 15 % and 90 % of the images.

    Args:
        folder: Folder for everything that the benchmark writes.
        device: Device of the run, such as "cuda".
        images: Number of photographs.
        detector: Name of a shipped card, which gets seeded weights.
        photographs: Folder of photographs, to which missing ones are added.
        settings: Further settings of the run, each as KEY=VALUE.
        logs: Folder that keeps the run's output if the run fails.

    Raises:
        ContenderError: The run failed or was too short.
    """
    photographs = photographs or folder / "photographs"
    photographs_at(photographs, images)
    card = seeded_card(detector, folder / "seeded")
    name = card.name.replace(":", "-")
    path, out = write_card(card, folder / f"{name}.yaml"), folder / f"out-{name}"
    words = ["--detector", str(path), "--limit", str(images)]
    for setting in (f"device={torch.device(device).type}", *settings):
        words += ["--set", setting]
    sampler = LoadSampler()
    try:
        stdout = _scored([str(photographs), "--out", str(out), *words], logs or folder, name)
    finally:
        sampler.stop()
    record = read(stdout, out)
    count, described = len(record.scores), json.loads((out / "run.json").read_text())
    if not count:
        raise ContenderError(f"no image has a score: {stdout.strip()[-1000:]}")
    precision = described["identity"]["precision"][card.name]
    rate = steady_rate(record.finished, count)
    steady = [at for at, done in record.finished if WINDOW[0] * count <= done <= WINDOW[1] * count]
    blocks = [done - before for (_, before), (_, done) in pairwise([(0.0, 0), *record.finished])]
    session = json.loads(sorted((out / "sessions").glob("*.json"))[-1].read_text())
    slots = _spec(path, device, settings).slots
    alone = network_figures(
        load_detector(card, device=device, precision=precision), device, slots, max(blocks)
    )
    return {
        "images": count,
        "precision": precision,
        "rate": rate,
        "network": alone,
        "of_network": rate / alone["rate"],
        "load": sampler.figures(steady[0], steady[-1]),
        "blocks": {"count": len(blocks), "largest": max(blocks)},
        "stages": record.detail,
        "session": {key: session.get(key) for key in SESSION_FACTS},
        "said": [
            line for line in stdout.splitlines() if line.startswith(("speed:", "bottleneck:"))
        ],
    }


def decoder_figures(
    folder: Path, device: str, photographs: Path, detector: str, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure all cores that decode the first photographs of a run for its detector, without Ray.

    Args:
        folder: The folder of `run_figures`, which has the detector's card.
        device: Device of the run.
        photographs: Folder of photographs.
        detector: Name of a shipped card.
        settings: Further settings of the run, each as KEY=VALUE.
    """
    paths = sorted(photographs.glob("photo-*.jpg"))[:MAX_DECODED]
    card = folder / f"{detector.replace(':', '-')}.yaml"
    return {
        "rate": decode_rate(_spec(card, device, settings), paths),
        "images": len(paths),
        "processes": cores(),
    }


def _scored(arguments: Sequence[str], logs: Path, name: str) -> str:
    """Run `touchstone score` and return its standard output; a run that fails leaves its output in
    `logs`.
    """
    program = "import sys; from ray_app.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "score", *arguments]
    output, errors = logs / f"run-{name}.out", logs / f"run-{name}.err"
    with output.open("w") as standard, errors.open("w") as error:
        done = subprocess.run(
            command, cwd=ROOT, stdout=standard, stderr=error, timeout=RUN_TIMEOUT_S, check=False
        )
    stdout, stderr = output.read_text(), errors.read_text(errors="replace")
    if done.returncode:
        _say(stderr[-4000:])
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        raise ContenderError(f"exit code {done.returncode}: {last}")
    output.unlink()
    errors.unlink()
    return stdout


def _spec(card: Path, device: str, settings: Sequence[str]) -> ScoringSpec:
    """The spec of a run of one card with these settings."""
    chosen = dict(setting.split("=", 1) for setting in settings)
    known = {key: value for key, value in chosen.items() if key in ("precision", "resize")}
    if "batch_slots" in chosen:
        known["batch_slots"] = int(chosen["batch_slots"])  # type: ignore[assignment]
    config = ScoreConfig.model_validate(
        {"detectors": [str(card)], "device": torch.device(device).type, **known}
    )
    return resolve(config).spec(float(config.device == "cuda"))


def network_figures(detector: Detector, device: str, slots: int, together: int) -> dict[str, Any]:
    """Measure a network in the batch that a run chooses for blocks of `together` images.

    A network that keeps the sizes of images is measured with images of NATIVE.
    """
    card = detector.card
    height, width = card.preprocessing.shape or NATIVE
    run, meter = _forward(detector, height, width, device), DeviceMeter(device)
    slots = min(card.batch or slots, slots if card.preprocessing.shape else 8)
    most = slots if card.batch or not card.preprocessing.shape else max(slots, together)
    measured = measure_batches(batch_sizes(slots, most), run, meter)
    batch = choose_batch_size(measured, (together,))
    return {
        "rate": next(one.rate for one in measured if one.size == batch),
        "batch": batch,
        "rates": {str(one.size): round(one.rate, 2) for one in measured},
    }


def _forward(detector: Detector, height: int, width: int, device: str) -> Callable[[int], object]:
    """A function that lets a detector read a batch of that many random images: a GPU multiplies
    constant images faster.
    """
    largest = torch.zeros(0, height, width, 3, dtype=torch.uint8, device=device)

    def run(count: int) -> object:
        nonlocal largest
        if len(largest) < count:
            shape = (count, height, width, 3)
            largest = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        return detector.read(detector.normalise(largest[:count]))

    return run


def photographs_at(folder: Path, count: int) -> list[Path]:
    """Return the first `count` photographs of a folder; all cores write the missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    there = len(list(folder.glob("photo-*.jpg")))
    starts = range(there, count, PHOTOGRAPHS_TOGETHER)
    if starts:
        # A forked process of a multithreaded parent may hang.
        with ProcessPoolExecutor(
            min(cores(), len(starts)), multiprocessing.get_context("spawn")
        ) as processes:
            for written in [
                processes.submit(
                    write_photographs,
                    folder,
                    min(PHOTOGRAPHS_TOGETHER, count - start),
                    start=start,
                )
                for start in starts
            ]:
                written.result()
    return [folder / f"photo-{index:06d}.jpg" for index in range(count)]


_decoder: BatchDecoder


def decode_rate(spec: ScoringSpec, paths: Sequence[Path]) -> float:
    """Images per second that a process per core reads, decodes, and prepares, without Ray."""
    batches = [paths[start : start + spec.slots] for start in range(0, len(paths), spec.slots)]
    with ProcessPoolExecutor(
        cores(), multiprocessing.get_context("spawn"), initializer=_load_decoder, initargs=(spec,)
    ) as processes:
        # All processes are loaded before the first batch.
        list(processes.map(time.sleep, [1.0] * cores()))
        return steady_rate(cumulative(list(processes.map(_decoded, batches))), len(paths))


def _load_decoder(spec: ScoringSpec) -> None:
    global _decoder
    torch.set_num_threads(1)
    _decoder = BatchDecoder(spec, StageClock(), hand_over=True)


def _decoded(paths: Sequence[Path]) -> tuple[float, int]:
    """When a batch was decoded, and how many images it had."""
    _decoder.decode((index, path.read_bytes()) for index, path in enumerate(paths))
    return time.time(), len(paths)


class LoadSample(NamedTuple):
    """A reading of the machine.

    Attributes:
        at: Seconds since the epoch.
        busy_s: CPU seconds that the machine has worked since sampling began.
        utilisation: Percentage of the time in which the GPU computed; None without a GPU.
        memory_mib: GPU memory in use; None without a GPU.
    """

    at: float
    busy_s: float
    utilisation: float | None = None
    memory_mib: float | None = None


class LoadSampler:
    """Read the load of the GPU and of the cores twice a second until stopped."""

    def __init__(self) -> None:
        self.samples: list[LoadSample] = []
        self._steal, self._stopped = Steal(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def figures(self, start: float, end: float) -> dict[str, Any]:
        """Mean load between two times; GPU memory is the maximum of the whole run."""
        steady = [sample for sample in self.samples if start <= sample.at <= end]
        gpu = [sample.utilisation for sample in steady if sample.utilisation is not None]
        memory = [sample.memory_mib for sample in self.samples if sample.memory_mib is not None]
        figures: dict[str, Any] = {"samples": len(steady), "seconds": end - start}
        if len(steady) > 1:
            first, last = steady[0], steady[-1]
            figures["cores_busy"] = (last.busy_s - first.busy_s) / (last.at - first.at)
        if gpu:
            figures["gpu_percent"] = float(np.mean(gpu))
            figures["gpu_percents"] = gpu
        if memory:
            figures["gpu_memory_mib"] = max(memory)
        return figures

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            self.samples.append(LoadSample(time.time(), self._steal.busy_s(), *_gpu_load()))


def _gpu_load() -> tuple[float, ...]:
    """Utilisation in percent and used MiB of the first GPU; nothing without nvidia-smi."""
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=5, check=True)
        utilisation, memory = done.stdout.split(",")
        return float(utilisation), float(memory)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


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
    meter.measure_peak_fraction()
    losses = [learner.step(batch).loss]
    seconds = meter.seconds(lambda: losses.append(learner.step(batch).loss))
    return {"precision": learner.precision, "images": count, "step_s": seconds, "rate": count / seconds, "losses": losses,
            "memory_share": meter.measure_peak_fraction()}  # fmt: skip


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
            lambda name=name: compile_figures(  # type: ignore[misc]
                load_card(name), options.device, min(SLOTS, options.most)
            ),
        )


def compile_figures(
    card: DetectorCard, device: str, count: int, compiler: Compiler = compile_with_cuda_graphs
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
        return load_network(card, resolve_parts(card, offline=True)), "own"
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
        elif isinstance(value, dict) and name in ("network", "load", "blocks"):
            words += [f"{name} {_in_words(value)}"]
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
    parser.add_argument(
        "--runs", nargs="+", default=[RUN_DETECTOR], help="the detectors of the runs"
    )
    parser.add_argument(
        "--photographs", type=Path, metavar="FOLDER", help="keep the photographs of the runs here"
    )
    parser.add_argument(
        "--settings", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the runs"
    )
    parser.add_argument("--micro-batch", type=int, default=16, help="images of a step  [16]")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
