"""Find perturbations by name (`load_perturbations`), and apply them to images.

A perturbation is one or more steps, such as a blur and then JPEG, that change an image. It tests
how robust a detector is. A name is that of a shipped list, the path of a YAML file, or steps such
as `jpeg:75`. `absent_views` returns the perturbations of published suites that Touchstone does not
have, with reasons.
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
from ray_app.transforms.registry import (
    STEPS,
    Rng,
    Step,
    make_step,
    number_parameters,
    register_step,
)

Kind = Literal["degradation", "chain", "attack"]
KindOfView = Annotated[
    Kind,
    Field(
        description="degradation; chain: several degradations, as on a platform; attack: meant to make a detector fail"
    ),
]

LEVELS = 5
# The level of a family if a list is given without a level.
DEFAULT_LEVEL = 3


def _check_digest(digest: str, info: ValidationInfo) -> str:
    name = info.data.get("list")
    if name is not None and digest != _list_digest(name):
        raise ValueError(
            f"the list of perturbations {name} was changed: its digest differs from the list that made these images"
        )
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
    """Apply random degradations of a list, one after another, each at a random level.

    A family is one degradation of the list, such as a blur, at five levels. At most one family of
    each group is applied. The number of families, the groups, and the family within a group are
    drawn uniformly. Levels follow the right half of a normal distribution, so weak levels are more
    likely. NTIRE 2026 applies this to half of its images.
    """
    groups = _groups(list)
    bounds = min(least, len(groups)), min(most, len(groups))
    weights = np.exp(-((np.arange(LEVELS) / spread) ** 2) / 2)
    for number in rng.choice(len(groups), int(rng.integers(*bounds, endpoint=True)), replace=False):
        family = groups[number][int(rng.integers(len(groups[number])))]
        image = family.make_step(int(rng.choice(LEVELS, p=weights / weights.sum())))(image, rng)
    return image


if TYPE_CHECKING:
    AnyStep = Step
else:
    AnyStep = Annotated[Union[tuple(STEPS.values())], Field(discriminator="op")]  # noqa: UP007
_RETIRED = frozenset(("vae", "img2img", "alter"))


class Perturbation(Frozen):
    """Steps that are applied one after another to an image, such as a blur and then JPEG.

    The result is a view of the image, which is scored in addition to the unchanged image.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.,:+-]*$",
        max_length=64,
        description="name of the view in rows, masks, and reports; not clean",
    )
    kind: KindOfView = "degradation"
    steps: tuple[AnyStep, ...] = Field(
        min_length=1,
        description="steps, applied one after another, each an `op` with its parameters",
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _refuse_retired_steps(cls, value: Any) -> Any:
        for step in value if isinstance(value, list | tuple) else ():
            if isinstance(step, Mapping) and step.get("op") in _RETIRED:
                raise ValueError(
                    f"op {step['op']} is retired: use {{op: call, path: MODULE:FUNCTION}} with a function of yours"
                )
        return value

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name == "clean":
            raise ValueError(
                "a perturbation cannot have the name clean, which stands for the unperturbed image"
            )
        return name

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """Apply all steps to an image, and return the resulting RGB image.

        Equal pixels, seeds, and library versions give equal pixels, in any process and order.

        Args:
            image: The image.
            seed: Seed of random steps (`seed_of`).

        Raises:
            OSError: A codec of Pillow fails.
            ValueError: A codec of Pillow fails, or a function of the user rejects the image.
            RuntimeError: A codec of Pillow fails.
            DecompressionBombError: The image has too many pixels for Pillow.
            MemoryError: The image does not fit into memory.
        """
        rng = np.random.default_rng(seed)
        for step in self.steps:
            image = step(image, rng)
        return image

    def check(self) -> None:
        """Check that all steps can run on this machine: functions of the user can be imported.

        Raises:
            ConfigError: A function cannot be imported.
        """
        for step in self.steps:
            if step.op == "call":
                steps.import_function(step.parameters["path"])

    @property
    def calls_own_code(self) -> bool:
        """Whether a step calls a function that the user wrote (the step `call`)."""
        return any(step.op == "call" for step in self.steps)

    @property
    def keeps_place(self) -> bool:
        """Whether each part of an image keeps its position in the perturbed image.

        If True, a mask that a detector predicts for the perturbed image also fits the original. A
        crop moves parts, so it is then False.
        """
        return all(step.keeps_place for step in self.steps)

    def facts(self) -> list[dict[str, Any]]:
        """Return the steps as plain JSON without default values, to record them in a run."""
        return [step.model_dump(mode="json", exclude_defaults=True) for step in self.steps]


def seed_of(sha256: str, name: str) -> int:
    """Return the seed for the random steps of a perturbation when it is applied to a file.

    The seed is the first 8 bytes of the SHA-256 of `sha256` and `name` together. So a file always
    gets the same random changes, in any run and on any machine.

    Args:
        sha256: SHA-256 of the bytes of the file, in hex.
        name: The name of the perturbation.
    """
    return int.from_bytes(hashlib.sha256(f"{sha256}{name}".encode()).digest()[:8], "big")


class DegradationFamily(Frozen):
    """One degradation of a published robustness suite, such as a blur, at five levels.

    The levels are in the order of the suite, usually with the weakest first.
    """

    name: str = Field(description="name in the source, unless the note names another")
    group: str = Field(description="group of which the step `draw` draws at most one family")
    step: Mapping[str, Any] = Field(description="`op`, and the parameters of all levels")
    levels: Mapping[str, tuple[Any, ...]] = Field(
        description="parameters with five values each, one per level"
    )
    strengths: Literal["stated", "inferred", "ours"] = Field(
        description="origin of the values: stated by the source, inferred, or chosen by Touchstone"
    )
    note: str = Field(default="", description="differences from the source")

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if self.step.get("op") == "call":
            raise ValueError(
                f"{self.name}: a family cannot call a function of yours (op call), only Touchstone's own steps"
            )
        if any(len(values) != LEVELS for values in self.levels.values()):
            raise ValueError(
                f"{self.name}: each parameter in `levels` must have {LEVELS} values, from the weakest level to the strongest"
            )
        for number in range(LEVELS):
            self.make_step(number)
        return self

    def make_step(self, number: int) -> Step:
        """Create the step at a level, with the parameters of this level.

        Args:
            number: Index of the level, 0 for the first and 4 for the last.

        Returns:
            The step, which can be applied to an image.
        """
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
    """A perturbation of a published suite that Touchstone does not have, with the reason.

    Reports of evaluations show it.
    """

    name: str = Field(description="name in the source")
    kind: KindOfView = "degradation"
    why: str = Field(description="reason")


class PerturbationList(Frozen):
    """A list of perturbations, as read from a YAML file such as that of a robustness suite."""

    name: str = Field(description="name of the list")
    source: str = Field(description="origin of the list")
    note: str = Field(default="", description="differences from the source")
    perturbations: tuple[Perturbation, ...] = Field(default=(), description="views, in order")
    families: tuple[DegradationFamily, ...] = Field(
        default=(), description="steps at one of five levels; each makes one view"
    )
    absent: tuple[AbsentView, ...] = Field(
        default=(), description="views of the source that Touchstone does not have"
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [
            *(view.name for view in self.perturbations),
            *(family.name for family in self.families),
            *(view.name for view in self.absent),
        ]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"two perturbations are called {', '.join(sorted(duplicates))}, but names must be unique"
            )
        if not self.perturbations and not self.families:
            raise ValueError(
                "the list needs `perturbations`, `families` (degradations at five levels), or both"
            )
        return self

    def views(self, level: int = DEFAULT_LEVEL) -> Iterator[Perturbation]:
        """Yield all perturbations of the list, and each degradation family at one level, 1 to 5.

        A family is a degradation at five levels. The name of its perturbation ends with the level,
        such as `gaussian-blur-3`.
        """
        yield from self.perturbations
        for family in self.families:
            yield Perturbation(name=f"{family.name}-{level}", steps=(family.make_step(level - 1),))


def load_perturbations(names: Iterable[str]) -> tuple[Perturbation, ...]:
    """Return the perturbations that names refer to, in order and without duplicates.

    Args:
        names: Shipped lists (`standard`, `sidbench`, …), paths of YAML files, or steps such as
            `jpeg:75` and `blur:2+jpeg:50` (see `number_parameters`). Some lists have degradations
            at five levels. They are at level 3, or at the level after a colon: `ntire-2026:5`.

    Raises:
        ConfigError: A name is unknown, a step cannot run here, or two perturbations of one name
            differ.
    """
    perturbations: dict[str, Perturbation] = {}
    for name in names:
        for perturbation in _read_name(name):
            perturbation.check()
            if perturbations.setdefault(perturbation.name, perturbation) != perturbation:
                raise ConfigError(
                    f"--perturb {name}: two different perturbations are called {perturbation.name} in this run",
                    hint="score the two lists in two runs, or rename one of them in a YAML file of your own",
                )
    return tuple(perturbations.values())


def absent_views(names: Iterable[str]) -> tuple[AbsentView, ...]:
    """Return the perturbations that published suites have, but Touchstone has not.

    Args:
        names: Names that `load_perturbations` accepts. The lists among them declare what is absent.
            Names of single steps are ignored.

    Returns:
        The absent perturbations with reasons, each once.
    """
    lists = [read[0] for read in map(_read_list, names) if read]
    return tuple({view.name: view for view_list in lists for view in view_list.absent}.values())


def _read_list(name: str) -> tuple[PerturbationList, int] | None:
    """Return the list of a name and the level of its families, or None if it is not a list."""
    shipped = named_configs("perturb")
    base, _, level = name.rpartition(":")
    if base in shipped or (base and base not in number_parameters() and Path(base).is_file()):
        if level not in map(str, range(1, LEVELS + 1)):
            raise ConfigError(
                f"--perturb {name}: no such level: {level!r}",
                hint=f"give a level from 1 (weakest) to {LEVELS}",
            )
        return load_yaml(shipped.get(base, Path(base)), PerturbationList), int(level)
    if name in shipped or (
        name.partition(":")[0] not in number_parameters() and Path(name).is_file()
    ):
        return load_yaml(shipped.get(name, Path(name)), PerturbationList), DEFAULT_LEVEL
    return None


def _read_name(name: str) -> tuple[Perturbation, ...]:
    if read := _read_list(name):
        return tuple(read[0].views(read[1]))
    if name.partition(":")[0] in STEPS:
        return (_parse_steps(name),)
    examples = "jpeg:75, blur:2+jpeg:50"
    lists = ", ".join(named_configs("perturb"))
    raise ConfigError(
        f"--perturb {name}: no such perturbation",
        hint=f"give a list ({lists}), a YAML file, or steps such as {examples}",
    )


@cache
def _groups(name: str) -> tuple[tuple[DegradationFamily, ...], ...]:
    """Return the families of a list by their groups, in order.

    Raises:
        ConfigError: The name is not a list of families.
    """
    read = _read_list(name)
    if read is None or not read[0].families:
        raise ConfigError(
            f"{name}: the list of perturbations has no families",
            hint="name a list that has families, such as ntire-2026",
        )
    groups: dict[str, list[DegradationFamily]] = {}
    for family in read[0].families:
        groups.setdefault(family.group, []).append(family)
    return tuple(map(tuple, groups.values()))


def _list_digest(name: str) -> str:
    """Return a digest of all values that decide the draws from a list."""
    facts = [
        [family.name, family.group, family.step, family.levels]
        for group in _groups(name)
        for family in group
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def _parse_steps(text: str) -> Perturbation:
    numbers, parsed = number_parameters(), []
    for part in text.split("+"):
        op, _, value = part.partition(":")
        if op in STEPS and op not in numbers:
            raise ConfigError(
                f"--perturb {text}: the step {op} needs more than a number, so it cannot be given as text",
                hint=f"write a list of perturbations as a YAML file with this step ({', '.join(STEPS[op].model_fields)}), and give --perturb FILE",
            )
        if op in numbers and not value:
            raise ConfigError(
                f"--perturb {text}: {op} needs a number", hint=f"give {op}:{numbers[op].upper()}"
            )
        if op not in numbers:
            valid = ", ".join(f"{op}:{name.upper()}" for op, name in sorted(numbers.items()))
            raise ConfigError(
                f"--perturb {text}: {part} is not a step", hint=f"join steps by +, such as {valid}"
            )
        try:
            number = float(value) if "." in value else int(value)
        except ValueError:
            raise ConfigError(
                f"--perturb {text}: {value} is not a number",
                hint="give a number, for example jpeg:75 or crop:0.5",
            ) from None
        parsed.append({"op": op, numbers[op]: number})
    return validate({"name": text, "steps": parsed}, Perturbation, where=f"--perturb {text}")
