"""A training's settings: `TrainConfig` is a `Recipe` and where it runs.

The recipe is everything that decides the result: the same one gives the same steps on any cluster.
Imports no torch.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ray_app.cluster.config import ClusterConfig
from ray_app.config import Frozen
from ray_app.datasets.config import Data, Sampling
from ray_app.detectors import Preprocessing
from ray_app.detectors.card import Weights
from ray_app.images import ImageLimits
from ray_app.metrics import FIGURES
from ray_app.storage import UNGUARDED, S3Config
from ray_app.transforms.policy import Augmentation

PROFILING = ("identify", "describe")
"""Methods that fit something beside a detector to what it makes of images; their data need not hold
reals.
"""


class Workers(Frozen):
    """The processes that train: `count` of them, each with `cpus`, `gpus` and `loaders` processes
    that read, decode and augment for it.

    `least`: with fewer nodes than asked for, as after a loss, training goes on with at least so
    many (elastic); null = all of `count`.
    """

    count: int = Field(default=1, ge=1)
    least: int | None = Field(default=None, ge=1)
    cpus: float | None = Field(
        default=None, gt=0, description="null = 1 beside a GPU, else what the loaders leave"
    )
    gpus: float | None = Field(
        default=None, ge=0, description="null = 1 where the cluster has GPUs"
    )
    loaders: int | None = Field(
        default=None, ge=1, description="null = as many as the cores that are left"
    )
    strategy: Literal["ddp", "fsdp2"] = "ddp"


class FaultTolerance(Frozen):
    """What is kept for the case that something dies."""

    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between checkpoints beside those of validations; null = those alone",
    )
    keep: int = Field(
        default=2, ge=1, description="checkpoints kept: the best by the metric, and always the last"
    )
    max_failures: int = Field(
        default=8,
        ge=-1,
        description="losses of workers of Ray after which training gives up; -1 = never",
    )
    max_bad_fraction: float = Field(
        default=0.05, ge=0, le=1, description="more unreadable images than this end the training"
    )
    record_samples: bool = Field(
        default=False, description="write which images each step saw, to samples/"
    )


class Initial(Frozen):
    """What the network starts from.

    `random`: as built, from the seed. `card`: the card's own weights, fine-tuned further.
    `pretrained`: the files under `weights`, by part: `network` for most; `mae` and `clip` for
    MaskCLIP. `fresh`: tensors whose names begin so are not taken from there.
    """

    start: Literal["random", "card", "pretrained"] = "card"
    weights: Mapping[str, Weights] = {}
    fresh: tuple[str, ...] = ()
    licence: str | None = Field(
        default=None, description="of the files under `weights`; null = that of the detector's card"
    )

    @model_validator(mode="after")
    def _has_its_files(self) -> "Initial":
        if (self.start == "pretrained") != bool(self.weights):
            raise ValueError(
                f"`weights` belong to start: pretrained, and it needs them (start: {self.start})"
            )
        return self


class LoraSettings(Frozen):
    """Low-rank adapters (peft) instead of whole weights; merged into the network when it is
    exported. `targets`: ends of module names.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(min_length=1)
    whole: tuple[str, ...] = Field(
        default=(), description="modules that learn whole beside the adapters, such as the head"
    )


class Loss(Frozen):
    """`binary`: cross-entropy of real and fake on the log-odds. `maskclip`: that and two terms on
    the mask (detectors.maskclip_losses).

    `twins`: the weight, beside 1 − it, of the same loss on "which of the two of one group is the
    fake": for data made of pairs.
    """

    name: Literal["binary", "maskclip"] = "binary"
    twins: float = Field(default=0.0, ge=0, lt=1)


class Optimiser(Frozen):
    """`decays`: whether weight decay is on everything, or spares biases, norms and other
    one-dimensional tensors, as timm does.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    decays: Literal["all", "matrices"] = "all"


class Schedule(Frozen):
    """The learning rate over T steps, step 0 first: linear warm-up over W steps, then `shape` down
    to `floor` × the rate at step T.

    With warm-up, step s < W has rate × (s + 1) / W. Afterwards, with p = (s − W) / (T − W): linear
    1 − p, cosine (1 + cos πp) / 2, each between 1 and `floor`; constant 1.
    """

    shape: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = Field(
        default=0.0, ge=0, description="below 1: share of all steps; from 1 on: steps"
    )
    floor: float = Field(default=0.0, ge=0, le=1)


class Loop(Frozen):
    """How long and how finely. `steps` or `epochs`; a step is `batch` images over all workers,
    `micro_batch` of them at once in each.

    `precision`: `bf16` is autocast with the parameters in fp32; `auto` is bf16 where the device
    multiplies it, unless the detector's card asks for fp32: a processor that only imitates bf16
    learns an order of magnitude slower with it. `seed` decides order, augmentation, initial values
    and dropout.
    """

    batch: int = Field(ge=1)
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="images that one worker takes at once; null = its share of the batch",
    )
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    clip: float | None = Field(
        default=None, gt=0, description="largest norm of all gradients together"
    )
    channels_last: bool = True
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> "Loop":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of epochs and steps")
        return self


class Validation(Frozen):
    """When the network is judged on the validation split, by what the best is chosen, and after how
    many without a better one it ends.
    """

    every: int | None = Field(
        default=None, ge=1, description="steps between validations; null = once an epoch"
    )
    metric: str = Field(default="auc", description=f"one of {', '.join(FIGURES)}")
    patience: int | None = Field(
        default=None, ge=1, description="validations without a better one before training stops"
    )
    most_images: int | None = Field(
        default=None, ge=1, description="no more than this many, the same ones every time"
    )

    @model_validator(mode="after")
    def _known(self) -> "Validation":
        if self.metric not in FIGURES:
            raise ValueError(f"no metric {self.metric!r}; there are {', '.join(FIGURES)}")
        return self


class Export(Frozen):
    """What the new card says beside what was measured. `licence` null: inherited from weights and
    data.
    """

    retired_keys: ClassVar[Mapping[str, str]] = {
        "onnx": "remove it and call torch.onnx.export on ray_app.detectors.load_detector('OUT/card.yaml', precision='fp32').network",
    }

    title: str | None = None
    licence: str | None = None
    citation: str | None = None
    push: str | None = Field(
        default=None,
        description="where card and weights are also put: any fsspec URL, or hf://ORGANISATION/NAME",
    )
    notes: tuple[str, ...] = ()


class Identify(Frozen):
    """Which generators are told apart, how, and when none is named.

    `level`: classes are generators by the names of configs/generators.yaml (a name that is not
    there is its own class), or families. `families`: of generators that are not listed there.
    `held_out`: generators, by name or family, that nothing is fitted on; in the test split they are
    the unknown ones. `reals`: real images are a class, `real`; else they are left out, and the test
    says how many are given a generator. `head`: `linear` is scikit-learn's multinomial logistic
    regression, `cosine` compares directions alone. `balanced`: every class weighs the same. `c`:
    the inverse strength of the penalty, for embeddings that are centred and scaled; null = of 1,
    10, … 10,000 the one that folds by group choose. `most`: images per class that are drawn for
    training, null = all. A class of fewer than `fewest` training images is refused, or with `rare:
    leave-out` is no class. `open_set` and `abstains`: see `identification.cards.OpenSet`; `abstains:
    0` names every image.
    """

    level: Literal["generator", "family"] = "generator"
    families: Mapping[str, str] = {}
    held_out: tuple[str, ...] = ()
    reals: bool = False
    head: Literal["linear", "cosine"] = "linear"
    open_set: Literal["energy", "distance"] = "energy"
    abstains: float = Field(default=0.05, ge=0, lt=0.5)
    balanced: bool = True
    c: float | None = Field(default=None, gt=0)
    most: int | None = Field(default=None, ge=1)
    fewest: int = Field(default=10, ge=5)
    rare: Literal["refuse", "leave-out"] = "refuse"


class Describe(Frozen):
    """Which of the tiers is made (see `identification.cards.DescriberCard`), of what size, and how it
    searches.

    `retrieval` keeps the embeddings of the training images with their prompts; `prefix` learns from
    the same embeddings, `captioner` from pixels: as `preprocessing` says or, where that is null, as
    `start` or else the recipe's detector is given them. `architecture`: as on a describer's card,
    without what the tokenizer decides: for prefix `{config: …}` of GPT-2, for captioner `{model: …,
    config: …}`. `start`: a describer's card, shipped or a path, to begin with instead: its
    architecture, tokenizer, weights and prefix. `vocabulary`: at most so many tokens of a
    byte-level BPE tokenizer that is trained on the training prompts, where no `start` brings one.
    """

    tier: Literal["retrieval", "prefix", "captioner"] = "prefix"
    start: str | None = None
    architecture: Mapping[str, Any] = {}
    preprocessing: Preprocessing | None = None
    vocabulary: int = Field(default=8000, ge=258)
    prefix: int = Field(default=10, ge=1)
    beams: int = Field(default=3, ge=1)
    no_repeat: int = Field(default=3, ge=0)
    most_tokens: int = Field(default=77, ge=1)

    @model_validator(mode="after")
    def _has_a_network(self) -> "Describe":
        if self.tier != "retrieval" and bool(self.architecture) == bool(self.start):
            raise ValueError(f"give one of architecture and start (tier: {self.tier})")
        if self.tier == "retrieval" and (self.architecture or self.start):
            raise ValueError("retrieval has no network: leave out architecture and start")
        return self


class Recipe(Frozen):
    """What is trained, from what, on what, how, and what becomes of it.

    `detector`: a card, for architecture, preprocessing and the meaning of the output; `card`: what
    differs from it, such as `{architecture: {arguments: {depth: 2}}}`. `method`: `fine-tune` runs
    the loop; `linear-probe` computes features once and fits the head by scikit-learn; `identify`
    fits a head over generators to the embeddings of the detector; `describe` makes a predictor of
    prompts. `source`: the paper and code that the numbers are from; `departures`: where they differ
    from those, and why.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str = ""
    source: str = ""
    departures: tuple[str, ...] = ()
    method: Literal["fine-tune", "linear-probe", "identify", "describe"] = "fine-tune"
    describe: Describe | None = Field(
        default=None, description="of method describe; null = no such section"
    )
    identify: Identify | None = Field(
        default=None, description="of method identify; null = as its section says"
    )
    detector: str
    card: Mapping[str, Any] = {}
    initial: Initial = Initial()
    lora: LoraSettings | None = None
    data: Data
    sampling: Sampling = Sampling()
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimiser: Optimiser = Optimiser(rate=1e-4)
    schedule: Schedule = Schedule()
    loop: Loop
    validation: Validation = Validation()
    export: Export = Export()

    @model_validator(mode="after")
    def _keeps_twins_together(self) -> "Recipe":
        if self.loss.twins and not self.sampling.twins:
            raise ValueError(
                "loss.twins compares the two of one group, and only sampling.twins: true brings them into one batch"
            )
        if self.loss.twins and (self.loop.micro_batch or 2) % 2:
            raise ValueError(
                f"loop.micro_batch {self.loop.micro_batch} cuts pairs of twins apart: make it even"
            )
        return self


class TrainConfig(Recipe):
    """The file that `touchstone train` reads."""

    out: str | None = Field(
        default=None,
        description="where card, weights, metrics and report go; any fsspec URL; the same command resumes",
    )
    workers: Workers = Workers()
    faults: FaultTolerance = FaultTolerance()
    limits: ImageLimits = ImageLimits()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    s3: S3Config = S3Config()
    cluster: ClusterConfig = ClusterConfig()
    accept_licences: tuple[str, ...] = ()


class FitHeadConfig(Frozen):
    """Settings of `touchstone detectors fit`."""

    card: str = Field(description="the card that names the backbone")
    labels: str = Field(
        description="a CSV, JSONL, or Parquet of labels, or a folder with an index.parquet"
    )
    out: str | None = Field(
        default=None,
        description="local folder of card.yaml, weights.pth, and the kept features; heads/CARD if not set",
    )
    folds: str | None = Field(
        default=None,
        description="the column whose groups no fold divides; the first of group, family, source if not set",
    )
    even: bool = Field(
        default=False,
        description="give each group of a class the same weight, however many images it has",
    )
    features: str | None = Field(
        default=None,
        description="folder of kept features, which heads can share; features/ in the folder of the head if not set",
    )
    install: bool = Field(
        default=False,
        description="also keep the head as CARD's own, so that CARD and ensembles that name it score with it",
    )
    classifier: Literal["svm", "logistic"] | None = Field(
        default=None,
        description="the linear classifier; logistic for a card without a head of its own, else svm",
    )
    name: str | None = Field(
        default=None,
        description="name of the new detector; CARD's name and the classifier's if not set",
    )
    device: str = Field(default="cpu", description="the device of the backbone: cpu, cuda, cuda:0")
    accept_licences: tuple[str, ...] = Field(
        default=(), description="detectors, or licences, whose terms you accept for this command"
    )
