"""What can be said of an origin, as values that hold no more than they may: short lines, few of them, nothing invisible."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ray_app.config import Frozen

MOST_CHARACTERS = 300  # of one value; a prompt is recognised by its start
MOST_LINES, MOST_LISTED = 16, 100  # of one list, and characters of each of its lines: so that all of it is a few KiB
# https://cv.iptc.org/newscodes/digitalsourcetype, and C2PA 2.1 §18.15.4.5: what was made, or partly made, by a trained model.
AI_SOURCE_TYPES = frozenset(
    {"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic", "trainedAlgorithmicData"}
)


def plain(value: Any) -> str:
    """One line without controls, bidirectional ones included, of at most 300 characters; empty for what is no text or number."""
    if not isinstance(value, str | int | float):
        return ""
    start = f"{value:g}" if isinstance(value, float) else str(value)[: 4 * MOST_CHARACTERS]  # an integer may be larger than any float
    return " ".join("".join(letter if letter.isprintable() else " " for letter in start).split())[:MOST_CHARACTERS].rstrip()


def _lines(values: Any) -> tuple[str, ...]:
    said = (plain(value)[:MOST_LISTED].rstrip() for value in values[: 64 * MOST_LINES]) if isinstance(values, list | tuple) else ()
    return tuple(dict.fromkeys(line for line in said if line))[:MOST_LINES]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


Line = Annotated[Annotated[str, Field(max_length=MOST_CHARACTERS)] | None, BeforeValidator(lambda value: plain(value) or None)]
Lines = Annotated[tuple[Annotated[str, Field(max_length=MOST_LISTED)], ...], Field(max_length=MOST_LINES), BeforeValidator(_lines)]
Whole = Annotated[int | None, BeforeValidator(_whole)]


class Camera(Frozen):
    """What EXIF says took the picture. Editors keep it, and anybody can write it."""

    make: Line = None
    model: Line = None
    taken: Line = Field(default=None, description="local time, as EXIF writes it: 2024:05:06 07:08:09")


class Generator(Frozen):
    """The program that says it made the picture with a model, and what else it says of it."""

    tool: Line = Field(examples=["Stable Diffusion web UI"])
    version: Line = None
    prompt: Line = Field(default=None, description="its first 300 characters")
    negative_prompt: Line = None
    steps: Whole = None
    sampler: Line = None
    seed: Whole = None
    model: Line = None
    model_hash: Line = None
    models: Lines = Field(default=(), description="of a graph: the checkpoints that it loads")
    nodes: Lines = Field(default=(), description="of a graph: the classes of its first nodes")


class ContentCredentials(Frozen):
    """A C2PA manifest. `trusted`: the signature is sound and its certificate leads to the configured trust list; `intact`: sound, by
    somebody unknown; `invalid`: the file or the manifest was changed after it was signed; `unreadable`: not checked, problems say why.
    """

    state: Literal["trusted", "intact", "invalid", "unreadable"]
    claim_generator: Line = None
    signer: Line = None
    ai_generated: bool = Field(description="whether it says that all or part of the picture was made by a trained model")
    source_types: Lines = ()
    remote: Literal[True] | None = Field(default=None, description="the file only names a manifest elsewhere; it is never fetched")
    problems: Lines = Field(default=(), description="C2PA validation codes, or why it was not read")


class Provenance(Frozen):
    """What a file says of its own origin; at least one thing of these."""

    camera: Camera | None = None
    software: Line = None
    generator: Generator | None = None
    digital_source_type: Lines = Field(default=(), examples=[["trainedAlgorithmicMedia"]])
    c2pa: ContentCredentials | None = None
    ai_declared: bool = Field(description="whether the file says of itself that a model made it, or part of it")

    @classmethod
    def of(cls, **said: Any) -> "Provenance | None":
        """The statements with what follows from them; None where nothing is said."""
        stated = cls(**said, ai_declared=False)
        if stated == _NOTHING:
            return None
        by_manifest = stated.c2pa is not None and stated.c2pa.state in ("trusted", "intact") and stated.c2pa.ai_generated
        declared = stated.generator is not None or by_manifest or not AI_SOURCE_TYPES.isdisjoint(stated.digital_source_type)
        return stated.model_copy(update={"ai_declared": declared})

    def row(self) -> str:
        """JSON for a result row, without what is unsaid."""
        return self.model_dump_json(exclude_defaults=True)

    def lines(self) -> dict[str, str]:
        """The statements as short lines by name, for people and for programs that want no structure."""
        camera, generator, c2pa = self.camera or Camera(), self.generator, self.c2pa
        said = {"make": camera.make, "model": camera.model, "taken": camera.taken, "software": self.software}
        if generator is not None:
            said |= {"generator": generator.tool, "prompt": generator.prompt, "checkpoint": generator.model or ", ".join(generator.models)}
        said["digital_source_type"] = ", ".join(self.digital_source_type)
        if c2pa is not None:
            said["c2pa"] = "; ".join(filter(None, (c2pa.state, c2pa.claim_generator, ", ".join(c2pa.source_types))))
        return {name: line[:MOST_CHARACTERS] for name, line in said.items() if line}


_NOTHING = Provenance(ai_declared=False)
