"""Define the answers of the endpoint as pydantic models. The OpenAPI document is built from them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_app import __version__
from ray_app.ensembles.finding import Ground
from ray_app.errors import Reason
from ray_app.images.provenance import Provenance

# The version of the interface under /v1, which is independent of the version of Touchstone.
# docs/versioning.md defines which changes need which version.
API_VERSION = "1.8.0"
Verdict = Literal["fake", "real", "abstain"]
SecondLook = Literal["band", "audit"]
StatedRate = Annotated[
    float | None,
    Field(
        description="false-positive rate that the thresholds are for; null = the card states no rate"
    ),
]
UpperBound = Annotated[
    float | None,
    Field(
        description="upper bound of the false-positive rate, at the confidence of the guarantee, or 95 %"
    ),
]
AbstainReal = Annotated[
    float | None, Field(description="fraction of held-out real images between the thresholds")
]
AbstainFake = Annotated[
    float | None, Field(description="fraction of held-out generated images between the thresholds")
]


class ApiModel(BaseModel):
    """The base class of all answers."""

    model_config = ConfigDict(frozen=True)


class Error(ApiModel):
    """The reason why a request, or one of its images, was refused."""

    code: str = Field(
        description="a code of a closed list; image statuses are the same as in batch runs",
        examples=["image_too_large"],
    )
    message: str = Field(examples=["12000 × 12000 pixels: 144.0 MP is over max_pixels (50 MP)"])
    limit: float | None = Field(
        default=None,
        description="the limit that was exceeded, if the refusal is about a number",
        examples=[50_000_000],
    )
    observed: float | None = Field(default=None, examples=[144_000_000])
    request_id: str = Field(examples=["5f0c6d0e8b7a4a0f"])


class Mask(ApiModel):
    """The regions of an image that a localizer marks as altered."""

    png: str = Field(
        description="base64 of an 8-bit grey PNG at the size of the network, to be stretched over the whole image; 255 = surely altered"
    )
    width: int
    height: int
    area: float = Field(description="fraction of its pixels above one half")
    peak: float = Field(description="highest value, 0 to 1")


class DetectorAnswer(ApiModel):
    """The output of one detector for the image: its score, and its text or mask if it has one."""

    score: float | None = Field(description="log-odds of fake; null = no score", examples=[4.21])
    probability: float | None = Field(
        description="P(fake): calibrated if the card has a calibration, else the plain sigmoid",
        examples=[0.985],
    )
    calibrated: bool
    abstained: str | None = Field(
        description="why the detector gave no score, or why its score does not count",
        examples=[None],
    )
    beside: bool = Field(
        default=False,
        description="whether this is an optional detector, which has no part in the verdict",
    )
    reply: str | None = Field(
        default=None, description="the text of a detector that replies with text"
    )
    mask: Mask | None = None


class ProfileGenerator(ApiModel):
    """The known generator whose images are most like this image.

    A name does not prove the origin of an image, and means nothing for a real image.
    """

    name: str | None = Field(
        description="null if the image is not like any generator that the identifier knows",
        examples=["sdxl"],
    )
    title: str | None = Field(examples=["Stable Diffusion XL 1.0"])
    family: str | None = Field(examples=["sdxl_1.0"])
    family_title: str | None = Field(examples=["Stable Diffusion XL"])
    probability: float = Field(
        description="probability of the first of `ranking`, among the known generators"
    )
    confidence: float = Field(
        description="confidence that the generator is a known generator; higher is surer, on the scale of the identifier"
    )
    known: bool
    ranking: list[str] = Field(
        description="the nearest known generators, best first, also if `name` is null"
    )
    nearest: str = Field(description="title of the first of `ranking`")


class ProfilePrompt(ApiModel):
    """A prediction of the prompt from which the image may have been generated."""

    text: str
    likelihood: float | None = Field(
        description="mean log-probability of a token if the text was generated, or the cosine to the nearest image if the text was retrieved"
    )


class Profile(ApiModel):
    """The predicted generator and prompt of the image. They change no score and no verdict."""

    generator: ProfileGenerator | None = Field(description="null if it is not known")
    prompt: ProfilePrompt | None = Field(
        description="null if no prompt was predicted, by default for images that are not flagged"
    )


class ImageFacts(ApiModel):
    """The properties of the image file."""

    format: str | None = Field(examples=["JPEG"])
    width: int | None
    height: int | None
    mode: str | None
    frames: int | None
    orientation: int | None
    icc: bool | None
    flags: list[str] = Field(
        description="irregularities that did not prevent scoring", examples=[["animated"]]
    )
    decoder: str | None
    size_bytes: int
    provenance: Provenance | None = Field(
        description="what the file states about its origin; it changes no score and no verdict"
    )
    metadata: dict[str, str] = Field(
        description="the provenance as a flat mapping, for programs that need no structure"
    )


class EnsembleName(ApiModel):
    """The name, the fingerprint, and the operating point of an ensemble."""

    name: str
    fingerprint: str = Field(
        description="SHA-256 of all that decides a score: weights, preprocessing, rule, calibration, thresholds, precision, batch slots"
    )
    fpr: StatedRate = None


class Timings(ApiModel):
    """The seconds spent on this image. `wait` is the time in the queue before the batch."""

    decode: float
    wait: float
    score: float
    total: float


class ImageAnswer(ApiModel):
    """The verdict on one image. If `status` is not `ok`, `error` has the reason instead."""

    name: str | None = Field(description="the name of the file as it was sent")
    status: str = Field(examples=["ok"])
    error: Error | None = None
    finding: str | None = Field(
        default=None,
        description="the conclusion as text, from the strongest of `grounds`",
    )
    grounds: list[Ground] = Field(
        default=[],
        description="what the file states about its origin and what the detectors see, the strongest first; a ground that contradicts the "
        "finding begins with `against this`",
    )
    verdict: Verdict | None = Field(description="`real` means: no evidence found")
    verdict_reason: Reason | None = Field(
        description="why the verdict is `abstain`; null for any other verdict"
    )
    verdict_detail: str | None = Field(
        default=None, description="the names and numbers that belong to the reason"
    )
    second_look: SecondLook | None = Field(
        default=None,
        description="why all detectors of a cascade scored the image: `band` (the first stage was not sure) or `audit` (selected by the "
        "hash of its bytes); null if the first stage was enough",
    )
    error_rates: str | None = Field(
        default=None,
        description="a sentence to be shown with the verdict: how many real and generated images the ensemble flags",
    )
    probability: float | None = Field(
        description="P(fake); the plain sigmoid of the score unless `calibrated`"
    )
    calibrated: bool
    score: float | None = Field(description="log-odds of fake, by the rule of the ensemble")
    scores: dict[str, float | None] = Field(
        description="log-odds of fake per detector", examples=[{"touchstone-tiny": 4.21}]
    )
    detectors: dict[str, DetectorAnswer]
    profile: Profile | None = Field(default=None, description="null if the ensemble has no profile")
    sha256: str
    image: ImageFacts | None
    ensemble: EnsembleName
    timings: Timings
    request_id: str


class ImageAnswers(ApiModel):
    """The answers for several images, in the order in which they were sent."""

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
    optional: bool = Field(description="scores only on request, and has no part in a verdict")


class GuaranteeInfo(ApiModel):
    """The guarantee of a card on false positives, for images like those of its calibration."""

    target_fpr: float = Field(
        description="guaranteed maximum fraction of real images that are called fake"
    )
    confidence: float
    upper_bound: float = Field(
        description="upper bound of that fraction, by an exact binomial interval"
    )
    n_real: int = Field(description="number of real images that it was measured on")
    population: str | None = Field(description="the images that the guarantee covers")
    holds: bool = Field(
        description="whether scores are computed here as for the calibration; the similarity of the images is not checked"
    )
    why: str | None = Field(description="why the guarantee does not hold")


class OperatingPointInfo(ApiModel):
    """Thresholds for one false-positive rate, which a request selects by the parameter `fpr`."""

    fpr: float = Field(description="false-positive rate that the thresholds are for")
    fingerprint: str = Field(description="fingerprint of the ensemble with these thresholds")
    fake_above: float = Field(description="log-odds")
    real_below: float = Field(description="log-odds; scores between the two thresholds abstain")
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
    real_below: float = Field(description="log-odds; scores between the two thresholds abstain")
    false_positive_rate: float | None = Field(
        default=None, description="measured on held-out real images"
    )
    recall: float | None = Field(default=None, description="measured on held-out generated images")
    upper_bound: UpperBound = None
    abstain_real: AbstainReal = None
    abstain_fake: AbstainFake = None
    demonstration: bool = Field(
        description="whether the ensemble only demonstrates the software, and must not be used for decisions"
    )
    blind_to: list[str] = Field(
        default=[],
        description="sentences on what its detectors cannot see, to be shown with a verdict",
    )
    guarantee: GuaranteeInfo | None = Field(
        default=None, description="null if the card has no guarantee"
    )
    operating_points: list[OperatingPointInfo] = Field(
        default=[], description="all thresholds that a request may select by `fpr`"
    )


class EndpointLimits(ApiModel):
    """The limits of this endpoint."""

    max_body_bytes: int
    max_files: int
    max_file_bytes: int
    max_pixels: int
    deadline_s: float
    formats: list[str]
    urls: bool = Field(default=False, description="always false: /v1/score-url is retired")


class Ensembles(ApiModel):
    """The ensembles and detectors that a request may name, and the limits."""

    ensembles: list[EnsembleInfo]
    optional_detectors: list[str]
    limits: EndpointLimits
    token_needed: bool = Field(description="whether requests need a bearer token")
    api_version: str = Field(
        default=API_VERSION,
        description="version of this interface, MAJOR.MINOR.PATCH; MAJOR is in the paths as /v1",
    )
    touchstone: str = Field(
        default=__version__, description="the version of Touchstone that answers"
    )


class Detectors(ApiModel):
    """The detectors of this endpoint, in the order of its ensembles."""

    detectors: list[DetectorInfo]


class Healthy(ApiModel):
    """The state of a process that answers."""

    healthy: Literal[True]


class Ready(ApiModel):
    """The state of an endpoint that has loaded its weights and can score images."""

    ready: Literal[True]
    ensembles: list[EnsembleName]
