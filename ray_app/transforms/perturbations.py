"""Perturbations: `load_perturbations` by name (a shipped list, a YAML file, or steps such as
`jpeg:75`), `Perturbation.apply`, and lists.

`absent_views`: what a list names and Touchstone does not do, with the reason.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

import numpy as np
from PIL import Image
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ray_app.config import Frozen, load_yaml, named_configs, validate
from ray_app.errors import ConfigError
from ray_app.transforms import degradations, photography, steps  # noqa: F401 - they register steps
from ray_app.transforms.registry import STEPS, Rng, Step, make_step, register_step, written_steps

Kind = Literal["degradation", "chain", "attack"]
"""`degradation`: what happens to pictures; `chain`: several of these, as on a platform; `attack`:
done so that a detector fails.
"""

LEVELS = 5
SHOWN = 3  # of a family's levels, where none is asked for


def _check_digest(digest: str, info: ValidationInfo) -> str:
    name = info.data.get("list")
    if name is not None and digest != _list_digest(name):
        raise ValueError(f"the list {name} differs from the list that made these images")
    return digest


def _fill_digest(parameters: dict[str, Any]) -> str:
    return _list_digest(parameters["list"])


@register_step("draw", keeps_place=False)
def draw_families(
    image: Image.Image,
    rng: Rng,
    list: Annotated[
        str, Field(description="shipped list of families, such as ntire-2026, or a file")
    ],
    digest: Annotated[
        str,
        AfterValidator(_check_digest),
        Field(
            default_factory=_fill_digest,
            description="digest of the list, filled in; another list is refused",
        ),
    ],
    most: Annotated[int, Field(ge=1, description="largest number of families")],
    least: Annotated[int, Field(ge=1, description="smallest number of families")] = 1,
    spread: Annotated[float, Field(gt=0, description="standard deviation of levels")] = 2.5,
) -> Image.Image:
    """Apply families of a list, of different groups, one after another, each at a drawn level, as
    NTIRE 2026 does to half of its images.

    The number of families and the family of a group are drawn evenly. Levels follow the right half
    of a normal distribution, so that weak ones are likelier.
    """
    groups = _groups(list)
    ends = min(least, len(groups)), min(most, len(groups))
    weights = np.exp(-((np.arange(LEVELS) / spread) ** 2) / 2)
    for number in rng.choice(len(groups), int(rng.integers(*ends, endpoint=True)), replace=False):
        family = groups[number][int(rng.integers(len(groups[number])))]
        image = family.at(int(rng.choice(LEVELS, p=weights / weights.sum())))(image, rng)
    return image


if TYPE_CHECKING:
    AnyStep = Step
else:
    AnyStep = Annotated[Union[tuple(STEPS.values())], Field(discriminator="op")]  # noqa: UP007
_RETIRED = frozenset(("vae", "img2img", "alter"))


class Perturbation(Frozen):
    """Steps that are applied one after another. `name` is how rows, masks and reports call the
    view; it is never that of the clean one.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.,:+-]*$", max_length=64)
    kind: Kind = "degradation"
    steps: tuple[AnyStep, ...] = Field(
        min_length=1,
        description="steps, applied one after another, each an `op` with its parameters",
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _refuse_retired_steps(cls, given: Any) -> Any:
        for step in given if isinstance(given, list | tuple) else ():
            if isinstance(step, Mapping) and step.get("op") in _RETIRED:
                raise ValueError(
                    f"op {step['op']} is retired: use {{op: call, path: MODULE:FUNCTION}} with a function of yours"
                )
        return given

    @field_validator("name")
    @classmethod
    def _of_a_view(cls, name: str) -> str:
        if name == "clean":
            raise ValueError("clean is what the unperturbed view is called")
        return name

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """RGB of any size → RGB. The same pixels, seed and library versions give the same pixels,
        in any process and order.

        Raises what Pillow does where a codec cannot: OSError, ValueError, RuntimeError (AVIF),
        DecompressionBombError; and MemoryError.
        """
        rng = np.random.default_rng(seed)
        for step in self.steps:
            image = step(image, rng)
        return image

    def check(self) -> None:
        """Raise ConfigError if a step cannot run on this machine."""
        for step in self.steps:
            if step.op == "call":
                steps.import_function(step.parameters["path"])

    @property
    def calls_own_code(self) -> bool:
        """Whether a step is a function of the user's."""
        return any(step.op == "call" for step in self.steps)

    @property
    def keeps_place(self) -> bool:
        """Whether a mask of the perturbed image fits the image: not where it was cropped."""
        return all(step.keeps_place for step in self.steps)

    def facts(self) -> list[dict[str, Any]]:
        """The steps as plain JSON, without what is as always: what a run's identity says of it."""
        return [step.model_dump(mode="json", exclude_defaults=True) for step in self.steps]


def seed_of(sha256: str, name: str) -> int:
    """The seed of one file (hex SHA-256 of its bytes) in one perturbation: the first 8 bytes of
    SHA-256 over both, whoever asks.
    """
    return int.from_bytes(hashlib.sha256(f"{sha256}{name}".encode()).digest()[:8], "big")


class DegradationFamily(Frozen):
    """One change at five levels, the weakest first where its source has it so. `step`: what all
    levels share; `levels`: what differs.

    `strengths`: whose the numbers are; `name` is the source's unless `note` says otherwise.
    `group`: of which at most one is drawn.
    """

    name: str
    group: str
    step: Mapping[str, Any]
    levels: Mapping[str, tuple[Any, ...]]
    strengths: Literal["stated", "inferred", "ours"]
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.step.get("op") == "call":
            raise ValueError(f"{self.name}: a family cannot call a function of yours")
        if any(len(values) != LEVELS for values in self.levels.values()):
            raise ValueError(f"{self.name}: a family has {LEVELS} levels")
        for number in range(LEVELS):
            self.at(number)
        return self

    def at(self, number: int) -> Step:
        """Return the step of a level, 0 the first."""
        level = {key: values[number] for key, values in self.levels.items()}
        where = f"{self.name}, level {number + 1}"
        try:
            return make_step({**self.step, **level})
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"]))
            raise ValueError(f"{where}: {key}: {detail['msg']}") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


class AbsentView(Frozen):
    """A view that a list names and does not have: which kind, and why."""

    name: str
    kind: Kind = "degradation"
    why: str


class PerturbationList(Frozen):
    """A YAML file of perturbations: where the list comes from (`source`), and what of it is not as
    there (`note`).

    `families` are perturbations at one of five levels; `absent`: what the source names and is not
    done here.
    """

    name: str
    source: str
    note: str = ""
    perturbations: tuple[Perturbation, ...] = ()
    families: tuple[DegradationFamily, ...] = ()
    absent: tuple[AbsentView, ...] = ()

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        names = [
            *(one.name for one in self.perturbations),
            *(one.name for one in self.families),
            *(one.name for one in self.absent),
        ]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two perturbations are called {', '.join(sorted(doubled))}")
        if not self.perturbations and not self.families:
            raise ValueError("the list has no perturbations")
        return self

    def views(self, level: int = SHOWN) -> Iterator[Perturbation]:
        """What the list stands for, its families at a level from 1 to 5, which their names end
        with.
        """
        yield from self.perturbations
        for family in self.families:
            yield Perturbation(name=f"{family.name}-{level}", steps=(family.at(level - 1),))


def load_perturbations(names: Iterable[str]) -> tuple[Perturbation, ...]:
    """All perturbations that the names stand for, in order, each once.

    A name is that of a shipped list (`standard`, `sidbench`, …), the path of a YAML file, or steps
    in a row: `jpeg:75`, `blur:2+jpeg:50` (see `written_steps`). A list of families is taken at level 3,
    or at another: `ntire-2026:5`. Raises ConfigError for what is none of these, and where two of
    one name differ.
    """
    found: dict[str, Perturbation] = {}
    for name in names:
        for perturbation in _meant(name):
            perturbation.check()
            if found.setdefault(perturbation.name, perturbation) != perturbation:
                raise ConfigError(
                    f"--perturb {name}: {perturbation.name} is also another perturbation's name in this run",
                    hint="score the two lists in two runs, or rename one of them in a YAML file of your own",
                )
    return tuple(found.values())


def absent_views(names: Iterable[str]) -> tuple[AbsentView, ...]:
    """Return what the lists of these names declare as absent, each once."""
    listed = [found[0] for found in map(_listed, names) if found]
    return tuple({view.name: view for one in listed for view in one.absent}.values())


def _listed(name: str) -> tuple[PerturbationList, int] | None:
    """The list of a name and the level asked for; None where the name is of no list."""
    shipped = named_configs("perturb")
    base, _, level = name.rpartition(":")
    if base in shipped or (base and base not in written_steps() and Path(base).is_file()):
        if level not in map(str, range(1, LEVELS + 1)):
            raise ConfigError(
                f"--perturb {name}: no such level",
                hint=f"levels of a list are 1 (weakest) to {LEVELS}",
            )
        return load_yaml(shipped.get(base, Path(base)), PerturbationList), int(level)
    if name in shipped or (name.partition(":")[0] not in written_steps() and Path(name).is_file()):
        return load_yaml(shipped.get(name, Path(name)), PerturbationList), SHOWN
    return None


def _meant(name: str) -> tuple[Perturbation, ...]:
    if listed := _listed(name):
        return tuple(listed[0].views(listed[1]))
    if name.partition(":")[0] in STEPS:
        return (_written(name),)
    examples = "jpeg:75, blur:2+jpeg:50"
    lists = ", ".join(named_configs("perturb"))
    raise ConfigError(
        f"--perturb {name}: no such perturbation",
        hint=f"lists: {lists}; or a YAML file; or steps: {examples}",
    )


@cache
def _groups(name: str) -> tuple[tuple[DegradationFamily, ...], ...]:
    """The families of a list by their groups, in order. Raises ConfigError."""
    listed = _listed(name)
    if listed is None or not listed[0].families:
        raise ConfigError(
            f"{name}: no list of families", hint="draw takes a list such as ntire-2026"
        )
    groups: dict[str, list[DegradationFamily]] = {}
    for family in listed[0].families:
        groups.setdefault(family.group, []).append(family)
    return tuple(map(tuple, groups.values()))


def _list_digest(name: str) -> str:
    """Of everything that decides what is drawn from a list."""
    facts = [
        [family.name, family.group, family.step, family.levels]
        for group in _groups(name)
        for family in group
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def _written(text: str) -> Perturbation:
    numbers, written = written_steps(), []
    for part in text.split("+"):
        op, _, value = part.partition(":")
        if op in STEPS and op not in numbers:
            raise ConfigError(
                f"--perturb {text}: {op} takes more than a number",
                hint=f"write it in a YAML file, with {', '.join(STEPS[op].model_fields)}",
            )
        if op in numbers and not value:
            raise ConfigError(
                f"--perturb {text}: {op} needs a number", hint=f"give {op}:{numbers[op].upper()}"
            )
        if op not in numbers:
            valid = ", ".join(f"{op}:{name.upper()}" for op, name in sorted(numbers.items()))
            raise ConfigError(
                f"--perturb {text}: {part} is not a step", hint=f"steps are {valid}, joined by +"
            )
        try:
            number = float(value) if "." in value else int(value)
        except ValueError:
            raise ConfigError(
                f"--perturb {text}: {value} is not a value",
                hint="give a number, for example jpeg:75 or crop:0.5",
            ) from None
        written.append({"op": op, numbers[op]: number})
    return validate({"name": text, "steps": written}, Perturbation, where=f"--perturb {text}")
