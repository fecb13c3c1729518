"""What the endpoint answers, as pydantic models: the OpenAPI document is made from them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_app import __version__
from ray_app.ensembles.finding import Ground
from ray_app.errors import Reason
from ray_app.images.provenance import Provenance

# Of the interface under /v1, whatever version of Touchstone answers: what may change under which
# number says docs/versioning.md.
API_VERSION = "1.7.0"
Verdict = Literal["fake", "real", "abstain"]
SecondLook = Literal["band", "audit"]
StatedRate = Annotated[
    float | None,
    Field(
        description="false-positive rate that the thresholds are for; null = the card states none"
    ),
]
UpperBound = Annotated[
    float | None,
    Field(description="of the false-positive rate, with the confidence of the guarantee, or 95 %"),
]
AbstainReal = Annotated[
    float | None, Field(description="fraction of held-out real images between the thresholds")
]
AbstainFake = Annotated[
    float | None, Field(description="fraction of held-out generated images between the thresholds")
]


class ApiModel(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)


class Error(ApiModel):
    """Why a request, or one of its images, was refused."""

    code: str = Field(
        description="one word of a closed list; image statuses are the batch job's own",
        examples=["image_too_large"],
    )
    message: str = Field(examples=["12000 × 12000 pixels: 144.0 MP is over max_pixels (50 MP)"])
    limit: float | None = Field(
        default=None,
        description="the number that was crossed, if it was about one",
        examples=[50_000_000],
    )
    observed: float | None = Field(default=None, examples=[144_000_000])
    request_id: str = Field(examples=["5f0c6d0e8b7a4a0f"])


class Mask(ApiModel):
    """Where a localizer sees alterations."""

    png: str = Field(
        description="base64 of an 8-bit grey PNG at the network's own size, to be stretched over the whole image; 255 = surely altered"
    )
    width: int
    height: int
    area: float = Field(description="share of its pixels above one half")
    peak: float = Field(description="highest value, 0 to 1")


class DetectorAnswer(ApiModel):
    """What one detector says."""

    score: float | None = Field(description="log-odds of fake; null = none", examples=[4.21])
    probability: float | None = Field(
        description="P(fake): calibrated where the card has a calibration, else the plain sigmoid",
        examples=[0.985],
    )
    calibrated: bool
    abstained: str | None = Field(
        description="why it gave no score, or why its score does not count", examples=[None]
    )
    beside: bool = Field(
        default=False, description="an optional detector: it has no part in the verdict"
    )
    reply: str | None = Field(
        default=None, description="the words of a detector that answers in words"
    )
    mask: Mask | None = None


class ProfileGenerator(ApiModel):
    """Which generator the image is nearest to. A name is no proof of where an image came from, and
    says nothing of a real one.
    """

    name: str | None = Field(
        description="null: it is like none of the generators that the identifier knows",
        examples=["sdxl"],
    )
    title: str | None = Field(examples=["Stable Diffusion XL 1.0"])
    family: str | None = Field(examples=["sdxl_1.0"])
    family_title: str | None = Field(examples=["Stable Diffusion XL"])
    probability: float = Field(description="of the first of `ranking`, among the known ones")
    confidence: float = Field(
        description="that it is a known one at all; higher is surer, the scale is the identifier's own"
    )
    known: bool
    ranking: list[str] = Field(
        description="the nearest known ones, best first, whether one was named or not"
    )
    nearest: str = Field(description="title of the first of `ranking`")


class ProfilePrompt(ApiModel):
    """The words that the image may have been made from: a guess."""

    text: str
    likelihood: float | None = Field(
        description="mean log-probability of a token where words were generated, the cosine to the nearest image where they were found"
    )


class Profile(ApiModel):
    """What the ensemble's profile says. It changes no score and no verdict."""

    generator: ProfileGenerator | None = Field(description="null where it is not known")
    prompt: ProfilePrompt | None = Field(
        description="null where none was predicted: by default of images that are not flagged"
    )


class ImageFacts(ApiModel):
    """The file as it was read."""

    format: str | None = Field(examples=["JPEG"])
    width: int | None
    height: int | None
    mode: str | None
    frames: int | None
    orientation: int | None
    icc: bool | None
    flags: list[str] = Field(
        description="what is odd but did not keep it from being scored", examples=[["animated"]]
    )
    decoder: str | None
    size_bytes: int
    provenance: Provenance | None = Field(
        description="what the file says of its own origin; it changes no score and no verdict"
    )
    metadata: dict[str, str] = Field(
        description="the same in flat lines, for programs that want no structure"
    )


class EnsembleName(ApiModel):
    """Which ensemble answered."""

    name: str
    fingerprint: str = Field(
        description="SHA-256 over all that decides a score: weights, preprocessing, rule, calibration, thresholds, precision, batch slots"
    )
    fpr: StatedRate = None


class Timings(ApiModel):
    """Seconds spent on this image. `wait` is the queue before a detector's batch."""

    decode: float
    wait: float
    score: float
    total: float


class ImageAnswer(ApiModel):
    """The verdict on one image. Where `status` is not `ok` there is none: the error says why."""

    name: str | None = Field(description="the file's name as it was sent")
    status: str = Field(examples=["ok"])
    error: Error | None = None
    finding: str | None = Field(
        default=None,
        description="in words, what the file says of itself and the detectors see: that of the strongest of `grounds`",
    )
    grounds: list[Ground] = Field(
        default=[],
        description="the strongest first; one that contradicts the finding begins with `against this`",
    )
    verdict: Verdict | None = Field(description="`real` means: no evidence found")
    verdict_reason: Reason | None = Field(
        description="why the verdict is `abstain`; null for any other verdict"
    )
    verdict_detail: str | None = Field(
        default=None, description="what varies in the reason: detectors, figures"
    )
    second_look: SecondLook | None = Field(
        default=None,
        description="of a cascade: why all its detectors looked, `band` (the first were not sure) or `audit` (drawn by its bytes); "
        "null where the first ones were enough",
    )
    error_rates: str | None = Field(
        default=None,
        description="of the ensemble, in a sentence to be shown beside the verdict: what it flags of real and of generated pictures",
    )
    probability: float | None = Field(
        description="P(fake); the plain sigmoid of the score unless `calibrated`"
    )
    calibrated: bool
    score: float | None = Field(description="log-odds of fake, by the ensemble's rule")
    scores: dict[str, float | None] = Field(
        description="log-odds of fake per detector", examples=[{"touchstone-tiny": 4.21}]
    )
    detectors: dict[str, DetectorAnswer]
    profile: Profile | None = Field(default=None, description="where the ensemble has one")
    sha256: str
    image: ImageFacts | None
    ensemble: EnsembleName
    timings: Timings
    request_id: str


class ImageAnswers(ApiModel):
    """Several images, in the order in which they were sent."""

    results: list[ImageAnswer]


class DetectorInfo(ApiModel):
    """A detector that this endpoint runs."""

    name: str
    title: str
    licence: str
    terms: str
    source: str
    precision: str
    localizes: bool
    optional: bool = Field(description="only on request; it has no part in a verdict")


class GuaranteeInfo(ApiModel):
    """What an ensemble's card promises of its false positives, for images like those that it was
    calibrated on.
    """

    target_fpr: float = Field(description="of real images, no larger a share is called fake")
    confidence: float
    upper_bound: float = Field(description="of that share, by an exact binomial interval")
    n_real: int = Field(description="real images that it was measured on")
    population: str | None = Field(description="the images that it holds for")
    holds: bool = Field(
        description="whether scores are made here as they were calibrated; whether the images are similar is not checked"
    )
    why: str | None = Field(description="why it does not hold")


class OperatingPointInfo(ApiModel):
    """Thresholds for one false-positive rate, which a request chooses by the parameter `fpr`."""

    fpr: float = Field(description="false-positive rate that the thresholds are for")
    fingerprint: str = Field(description="fingerprint of the ensemble with these thresholds")
    fake_above: float = Field(description="log-odds")
    real_below: float = Field(description="log-odds; between the two it abstains")
    false_positive_rate: float | None = Field(description="measured on held-out real images")
    recall: float | None = Field(description="measured on held-out generated images")
    upper_bound: UpperBound = None
    abstain_real: AbstainReal = None
    abstain_fake: AbstainFake = None


class EnsembleInfo(ApiModel):
    """An ensemble that this endpoint serves. The thresholds are for requests without `fpr`."""

    name: str
    title: str
    fingerprint: str
    default: bool
    rule: str
    detectors: list[str]
    calibrated: bool
    fpr: StatedRate = None
    fake_above: float = Field(description="log-odds")
    real_below: float = Field(description="log-odds; between the two it abstains")
    false_positive_rate: float | None = Field(
        default=None, description="measured on held-out real images"
    )
    recall: float | None = Field(default=None, description="measured on held-out generated images")
    upper_bound: UpperBound = None
    abstain_real: AbstainReal = None
    abstain_fake: AbstainFake = None
    demonstration: bool = Field(
        description="shows that the machinery works; not for decisions about any image"
    )
    blind_to: list[str] = Field(
        default=[],
        description="what its detectors cannot see, in sentences to be shown beside a verdict",
    )
    guarantee: GuaranteeInfo | None = Field(
        default=None, description="null where nothing is promised"
    )
    operating_points: list[OperatingPointInfo] = Field(
        default=[], description="all thresholds that a request may choose by `fpr`"
    )


class EndpointLimits(ApiModel):
    """What this endpoint takes."""

    max_body_bytes: int
    max_files: int
    max_file_bytes: int
    max_pixels: int
    deadline_s: float
    formats: list[str]
    urls: bool = Field(default=False, description="always false: /v1/score-url is retired")


class Ensembles(ApiModel):
    """What can be asked, and within which limits."""

    ensembles: list[EnsembleInfo]
    optional_detectors: list[str]
    limits: EndpointLimits
    token_needed: bool = Field(description="whether requests need a bearer token")
    api_version: str = Field(
        default=API_VERSION,
        description="of this interface: MAJOR.MINOR.PATCH, and MAJOR stands in the paths as /v1",
    )
    touchstone: str = Field(
        default=__version__, description="the version of Touchstone that answers"
    )


class Detectors(ApiModel):
    """The detectors, in the order of the ensembles."""

    detectors: list[DetectorInfo]


class Healthy(ApiModel):
    """The process answers."""

    healthy: Literal[True]


class Ready(ApiModel):
    """Weights are loaded, and a golden image was scored."""

    ready: Literal[True]
    ensembles: list[EnsembleName]
