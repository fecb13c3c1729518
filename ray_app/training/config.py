"""Define the settings of a training: `TrainConfig`, the file that `touchstone train` reads.

The settings that decide the result are its base class, `Recipe`. An equal recipe gives equal
training steps on any cluster. `TrainConfig` adds the directory and the processes of one training.
This module does not import torch.
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
"""Methods that train an identifier or a describer, not a detector. Their data need not have real
images.
"""


class Workers(Frozen):
    """How many processes train, and the CPUs, GPUs, and image loaders of each."""

    count: int = Field(default=1, ge=1, description="number of processes that train")
    least: int | None = Field(
        default=None,
        ge=1,
        description="minimum number of processes with which an elastic training continues, such as after the loss of a node; null = `count`",
    )
    cpus: float | None = Field(
        default=None,
        gt=0,
        description="CPUs of each process; null = up to 1 with a GPU, otherwise all that its loaders leave",
    )
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of each process; null = 1 if the cluster has GPUs, otherwise 0",
    )
    loaders: int | None = Field(
        default=None,
        ge=1,
        description="processes that read, decode, and augment images for each process that trains; null = with a GPU all its cores but one, "
        "otherwise a quarter of its cores",
    )
    strategy: Literal["ddp", "fsdp2"] = Field(
        default="ddp",
        description="`ddp`: each process holds the whole network. `fsdp2`: the processes divide the network among them",
    )


class FaultTolerance(Frozen):
    """When a training saves checkpoints, and which failures it tolerates."""

    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between checkpoints, in addition to those of validations; null = only those of validations",
    )
    keep: int = Field(
        default=2,
        ge=1,
        description="number of checkpoints that are kept, the best by the metric; the last checkpoint is always kept",
    )
    max_failures: int = Field(
        default=8,
        ge=-1,
        description="lost Ray workers after which training gives up; -1 = never",
    )
    max_bad_fraction: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="maximum fraction of unreadable images; more than this stop the training",
    )
    record_samples: bool = Field(
        default=False, description="record in samples/ which images each step saw"
    )


class Initial(Frozen):
    """The weights that a training starts from: random, those of a detector, or files."""

    start: Literal["random", "card", "pretrained"] = Field(
        default="card",
        description="`random`: as built, from the seed. `card`: the weights of the detector's card. `pretrained`: the files under `weights`",
    )
    weights: Mapping[str, Weights] = Field(
        default={},
        description="files for start `pretrained`, by the part of the network that they fill: `network` for the whole network, the name of a "
        "submodule, or `mae` and `clip` for MaskCLIP",
    )
    fresh: tuple[str, ...] = Field(
        default=(),
        description="beginnings of tensor names; these tensors are not loaded and keep the values that they were built with",
    )
    licence: str | None = Field(
        default=None,
        description="licence of the files under `weights`; null = the licence of the detector's card",
    )

    @model_validator(mode="after")
    def _has_its_files(self) -> "Initial":
        if (self.start == "pretrained") != bool(self.weights):
            raise ValueError(
                f"`weights` requires start pretrained, got start {self.start}"
                if self.weights
                else "start pretrained requires `weights`"
            )
        return self


class LoraSettings(Frozen):
    """Low-rank adapters (LoRA, by peft) that learn instead of the weights that they are added to.

    The export of the trained network merges the adapters into its weights.
    """

    rank: int = Field(default=16, ge=1, description="rank of each adapter")
    alpha: float = Field(
        default=32.0, gt=0, description="scale of the adapters, which peft divides by the rank"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout probability of an adapter's input"
    )
    targets: tuple[str, ...] = Field(
        min_length=1, description="ends of the names of the modules that get an adapter"
    )
    whole: tuple[str, ...] = Field(
        default=(),
        description="ends of the names of modules all of whose weights learn, such as the head",
    )


class Loss(Frozen):
    """The loss that a training minimises."""

    name: Literal["binary", "maskclip"] = Field(
        default="binary",
        description="`binary`: cross-entropy of real and fake on the log-odds. `maskclip`: the same and two terms on the mask "
        "(ray_app.detectors.families.maskclip)",
    )
    twins: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description='weight of the cross-entropy of "which of two images of one group is the fake", for data that consist of pairs; '
        "the loss of single images weighs 1 − twins",
    )


class Optimiser(Frozen):
    """The optimiser and its learning rate."""

    name: Literal["adamw", "adam", "sgd"] = Field(
        default="adamw", description="which optimiser of torch"
    )
    rate: float = Field(gt=0, description="learning rate at the end of the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="betas of adamw and adam")
    eps: float = Field(default=1e-8, gt=0, description="epsilon of adamw and adam")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of sgd")
    decays: Literal["all", "matrices"] = Field(
        default="all",
        description="`all`: weight decay applies to all parameters. `matrices`: not to biases, norms, and other one-dimensional tensors, as in timm",
    )


class Schedule(Frozen):
    """The curve of the learning rate over the steps of a training.

    The rate rises linearly over the warm-up steps. Then it is constant, or falls along a line or a
    cosine to a fraction of `Optimiser.rate`.

    The T steps are counted from 0. In step s of W warm-up steps, the factor of the rate is
    (s + 1) / W. Afterwards, with p = (s − W) / (T − W), the curve is 1 − p for linear,
    (1 + cos πp) / 2 for cosine, and 1 for constant. Linear and cosine are scaled to end at `floor`
    in step T.
    """

    shape: Literal["linear", "cosine", "constant"] = Field(
        default="cosine", description="curve of the rate after the warm-up"
    )
    warmup: float = Field(
        default=0.0,
        ge=0,
        description="length of the warm-up: below 1 a fraction of all steps, otherwise a number of steps",
    )
    floor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of the rate at which the curves linear and cosine end",
    )


class Loop(Frozen):
    """The length of a training, its batch size, and its numeric precision."""

    batch: int = Field(ge=1, description="images of a step, over all processes")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="images that one process computes at once; null = its part of the batch",
    )
    epochs: float | None = Field(
        default=None, gt=0, description="length in epochs; set this or `steps`"
    )
    steps: int | None = Field(
        default=None, ge=1, description="length in steps; set this or `epochs`"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="`bf16`: autocast, with parameters in fp32. `auto`: bf16 if the device multiplies it in hardware, unless the detector's card "
        "requires fp32; a processor that only emulates bf16 is about ten times slower with it",
    )
    clip: float | None = Field(
        default=None,
        gt=0,
        description="maximum norm of all gradients together; null = no clipping",
    )
    channels_last: bool = Field(
        default=True,
        description="keep the network and its images in the memory format channels_last, except with fsdp2",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="seed of the order, the augmentation, the initial values, and dropout",
    )

    @model_validator(mode="after")
    def _one_length(self) -> "Loop":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of `epochs` and `steps` must be set")
        return self


class Validation(Frozen):
    """When a training measures its validation split, and by which metric it picks a checkpoint."""

    every: int | None = Field(
        default=None, ge=1, description="steps between validations; null = once per epoch"
    )
    metric: str = Field(
        default="auc",
        description=f"metric that chooses the best checkpoint: one of {', '.join(FIGURES)}",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="training stops after this many validations without a better one; null = it never stops early",
    )
    most_images: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of images, which are the same in every validation; null = all",
    )

    @model_validator(mode="after")
    def _known(self) -> "Validation":
        if self.metric not in FIGURES:
            raise ValueError(f"unknown metric {self.metric!r}, must be one of {', '.join(FIGURES)}")
        return self


class Export(Frozen):
    """The title, licence, and other texts on the card of the trained detector.

    The section can also name a URL to which the card and the weights are copied.
    """

    retired_keys: ClassVar[Mapping[str, str]] = {
        "onnx": "remove it and call torch.onnx.export on ray_app.detectors.load_detector('OUT/card.yaml', precision='fp32').network",
    }

    title: str | None = Field(
        default=None, description="title of the card; null = the title of the recipe"
    )
    licence: str | None = Field(
        default=None,
        description="licence of the new weights; null = the strictest licence of the initial weights, the backbone, and the data",
    )
    citation: str | None = Field(
        default=None, description="citation on the card; null = the recipe and its source"
    )
    push: str | None = Field(
        default=None,
        description="copy card and weights there, too: any fsspec URL, or hf://ORGANISATION/NAME",
    )
    notes: tuple[str, ...] = Field(default=(), description="notes on the card, a sentence each")


class Identify(Frozen):
    """Settings of method `identify`, which trains an identifier: it names the generator of a fake.

    The settings decide which generators the identifier distinguishes, which kind of head it has,
    and how uncertain it must be to name no generator.
    """

    level: Literal["generator", "family"] = Field(
        default="generator",
        description="what a class is: a generator as configs/generators.yaml names it (a name that is not listed there is a class of its own), "
        "or a family of generators",
    )
    families: Mapping[str, str] = Field(
        default={}, description="families of generators that configs/generators.yaml does not list"
    )
    held_out: tuple[str, ...] = Field(
        default=(),
        description="generators, by name or family, that nothing is fitted on; in the test split they count as unknown",
    )
    reals: bool = Field(
        default=False,
        description="make real images a class named `real`; otherwise they are left out, and the test counts how many are given a generator",
    )
    head: Literal["linear", "cosine"] = Field(
        default="linear",
        description="`linear`: multinomial logistic regression by scikit-learn. `cosine`: compares only the directions of embeddings",
    )
    open_set: Literal["energy", "distance"] = Field(
        default="energy",
        description="confidence by which a generator is unknown, see the open_set.method of an identifier's card",
    )
    abstains: float = Field(
        default=0.05,
        ge=0,
        lt=0.5,
        description="fraction of images of known generators that may be called unknown; 0 names every image",
    )
    balanced: bool = Field(default=True, description="give every class the same weight")
    c: float | None = Field(
        default=None,
        gt=0,
        description="inverse strength of the penalty, for centred and scaled embeddings; null = the best of 1, 10, … 10,000 in a cross-validation "
        "whose folds divide no group",
    )
    most: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of training images per class, drawn by loop.seed; null = all",
    )
    fewest: int = Field(
        default=10, ge=5, description="minimum number of training images of a class"
    )
    rare: Literal["refuse", "leave-out"] = Field(
        default="refuse",
        description="what happens to a class with fewer than `fewest` training images: `refuse` is an error, `leave-out` drops the class",
    )


class Describe(Frozen):
    """Settings of method `describe`, which trains a describer: a model that predicts prompts.

    The tier, which is the kind of describer, decides what it learns from. Tier `retrieval` stores
    the embeddings of the training images with their prompts. Tier `prefix` learns from the same
    embeddings, and tier `captioner` from pixels.
    """

    tier: Literal["retrieval", "prefix", "captioner"] = Field(
        default="prefix", description="kind of describer, see the `tier` of a describer's card"
    )
    start: str | None = Field(
        default=None,
        description="a describer's card, shipped or a path, to start from: its architecture, tokenizer, weights, and prefix",
    )
    architecture: Mapping[str, Any] = Field(
        default={},
        description="as on a describer's card, without the values that the tokenizer decides: for prefix `{config: …}` of GPT-2, "
        "for captioner `{model: …, config: …}`",
    )
    preprocessing: Preprocessing | None = Field(
        default=None,
        description="pixels that a captioner sees; null = as `start` or else the recipe's detector prepares them",
    )
    vocabulary: int = Field(
        default=8000,
        ge=258,
        description="maximum number of tokens of the byte-level BPE tokenizer that is trained on the training prompts, unless `start` has one",
    )
    prefix: int = Field(default=10, ge=1, description="tokens that an embedding becomes")
    beams: int = Field(default=3, ge=1, description="beams of the search")
    no_repeat: int = Field(
        default=3, ge=0, description="length of n-grams that the search does not repeat; 0 = none"
    )
    most_tokens: int = Field(default=77, ge=1, description="maximum length of a prompt, in tokens")

    @model_validator(mode="after")
    def _has_a_network(self) -> "Describe":
        if self.tier != "retrieval" and bool(self.architecture) == bool(self.start):
            raise ValueError(
                f"tier {self.tier} needs exactly one of `architecture` and `start` (a new network, or the card of a describer to start from)"
            )
        if self.tier == "retrieval" and (self.architecture or self.start):
            raise ValueError("tier retrieval has no network: remove `architecture` and `start`")
        return self


class Recipe(Frozen):
    """The part of a training config that decides the result, such as data, loss, and schedule.

    Training steps depend only on the recipe, not on the cluster. `TrainConfig` adds the directory
    of the results and the processes.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$", description="name of the recipe and of the new card"
    )
    title: str = Field(default="", description="title for people")
    source: str = Field(default="", description="paper and code that the numbers are from")
    departures: tuple[str, ...] = Field(
        default=(), description="differences from the source, with reasons"
    )
    method: Literal["fine-tune", "linear-probe", "identify", "describe"] = Field(
        default="fine-tune",
        description="`fine-tune`: run the training loop. `linear-probe`: compute features once and fit the head by scikit-learn. `identify`: fit a "
        "head over generators to the embeddings of the detector. `describe`: train a predictor of prompts",
    )
    describe: Describe | None = Field(
        default=None, description="settings of method `describe`, which needs this section"
    )
    identify: Identify | None = Field(
        default=None, description="settings of method `identify`; null = their defaults"
    )
    detector: str = Field(
        description="card with the architecture, the preprocessing, and the meaning of the output"
    )
    card: Mapping[str, Any] = Field(
        default={},
        description="changes to that card, such as `{architecture: {arguments: {depth: 2}}}`",
    )
    initial: Initial = Initial()
    lora: LoraSettings | None = Field(
        default=None, description="low-rank adapters; null = all weights learn"
    )
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
                "loss.twins needs sampling.twins: true, which puts the two images of a group into one batch"
            )
        if self.loss.twins and (self.loop.micro_batch or 2) % 2:
            raise ValueError(
                f"loop.micro_batch must be even if loss.twins is set, got {self.loop.micro_batch}"
            )
        return self


class TrainConfig(Recipe):
    """The file that `touchstone train` reads.

    It contains a recipe, the directory of the results, and the processes that train.
    """

    out: str | None = Field(
        default=None,
        description="directory of card, weights, metrics, and report: a path or any fsspec URL; the same command resumes there",
    )
    workers: Workers = Workers()
    faults: FaultTolerance = FaultTolerance()
    limits: ImageLimits = ImageLimits()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    s3: S3Config = S3Config()
    cluster: ClusterConfig = ClusterConfig()
    accept_licences: tuple[str, ...] = Field(
        default=(), description="detectors, or licences, whose terms you accept for this training"
    )


class FitHeadConfig(Frozen):
    """Settings of `touchstone detectors fit`, which fits a linear head to your labelled images."""

    card: str = Field(description="the card that names the backbone")
    labels: str = Field(
        description="a CSV, JSONL, or Parquet of labels, or a folder with an index.parquet"
    )
    out: str | None = Field(
        default=None,
        description="local folder for card.yaml, weights.pth, and the stored features; heads/CARD if not set",
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
        description="folder of stored features, which heads can share; features/ in the folder of the head if not set",
    )
    install: bool = Field(
        default=False,
        description="also install the head as CARD's own, so that CARD and ensembles that name it score with it",
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
