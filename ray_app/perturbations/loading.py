"""Names that people type → perturbations: a shipped list, a YAML file of one's own, or steps written out. Knows files; touches no image."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ray_app.config import Frozen, load_yaml, named_configs
from ray_app.config.loading import validate
from ray_app.errors import ConfigError
from ray_app.perturbations.perturbation import Perturbation

WRITTEN = {"jpeg": "quality", "webp": "quality", "avif": "quality", "blur": "sigma", "noise": "sigma", "resize": "scale", "crop": "share"}


class PerturbationList(Frozen):
    """A YAML file of perturbations: where the list comes from (`source`), and what of it is not as there (`note`)."""

    name: str
    source: str
    note: str = ""
    perturbations: tuple[Perturbation, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        names = [perturbation.name for perturbation in self.perturbations]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two perturbations are called {', '.join(sorted(doubled))}")
        return self


def load_perturbations(names: Iterable[str]) -> tuple[Perturbation, ...]:
    """All perturbations that the names stand for, in order, each once.

    A name is that of a shipped list (`standard`, `sidbench`, …), the path of a YAML file, or steps in a row: `jpeg:75`, `blur:2+jpeg:50`
    (see `WRITTEN`). Raises ConfigError for what is none of these, and where two of one name differ.
    """
    found: dict[str, Perturbation] = {}
    for name in names:
        for perturbation in _meant(name):
            if found.setdefault(perturbation.name, perturbation) != perturbation:
                raise ConfigError(
                    f"--perturb {name}: {perturbation.name} is also another perturbation's name in this run",
                    hint="score the two lists in two runs, or rename one of them in a YAML file of your own",
                )
    return tuple(found.values())


def _meant(name: str) -> tuple[Perturbation, ...]:
    shipped = named_configs("perturb")
    if name in shipped:
        return load_yaml(shipped[name], PerturbationList).perturbations
    if name.partition(":")[0] in WRITTEN:
        return (_written(name),)
    if Path(name).is_file():
        return load_yaml(Path(name), PerturbationList).perturbations
    examples = "jpeg:75, blur:2+jpeg:50"
    raise ConfigError(f"--perturb {name}: no such perturbation", hint=f"lists: {', '.join(shipped)}; or a YAML file; or steps: {examples}")


def _written(text: str) -> Perturbation:
    steps = []
    for part in text.split("+"):
        op, _, value = part.partition(":")
        if op not in WRITTEN or not value:
            known = ", ".join(f"{op}:{what.upper()}" for op, what in WRITTEN.items())
            raise ConfigError(f"--perturb {text}: {part} is no step", hint=f"steps are {known}, joined by +")
        try:
            steps.append({"op": op, WRITTEN[op]: float(value) if "." in value else int(value)})
        except ValueError:
            raise ConfigError(f"--perturb {text}: {value} is not a value", hint="a number, for example jpeg:75 or crop:0.5") from None
    return validate({"name": text, "steps": steps}, Perturbation, where=f"--perturb {text}")
