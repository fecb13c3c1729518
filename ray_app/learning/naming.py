"""Labelled rows → which class of an identifier each is of, which are held out, and which of them it is fitted on. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.errors import ConfigError
from ray_app.learning.identify import Identify
from ray_app.profiling.generators import known, spelt

REAL = "real"
UNKNOWN = "unknown"  # the label of a fake whose maker nobody knew

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Named:
    """Of n rows: `names`, the class that each is of, whether the identifier has it or not (`real` of reals, None where nobody knows), and
    `held_out` (n,) whether its generator is one that nothing may be fitted on. `absent`: held-out names that no row is of.
    """

    names: list[str | None]
    held_out: npt.NDArray[np.bool_]
    absent: tuple[str, ...] = ()

    def of(self, classes: Sequence[str]) -> Rows:
        """The rows of these classes, ascending."""
        return np.flatnonzero([name in classes for name in self.names] & ~self.held_out)

    def at(self, rows: Rows) -> list[str | None]:
        """The names of some rows."""
        return [self.names[row] for row in rows]


def class_name(config: Identify, generator: str) -> str:
    """The class of a fake by its generator: its name as configs/generators.yaml spells it or, by `level`, its family."""
    found = known(generator)
    if config.level == "family":
        return config.families.get(generator) or (found.family if found else generator)
    return found.name if found and found.name else generator


def named(config: Identify, labels: Sequence[str], generators: Sequence[str]) -> Named:
    """The classes of rows by their labels (`real` or `fake`) and generators (n,)."""
    out = {name: _official(name) for name in config.held_out}
    fakes = {name for label, name in zip(labels, generators, strict=True) if label != REAL}
    called = {name: _called(config, name) for name in fakes}
    by_name = {name: (class_name(config, name), not called[name].isdisjoint(out.values())) for name in fakes}
    told = [(REAL, False) if label == REAL else by_name[name] for label, name in zip(labels, generators, strict=True)]
    names = [None if name == UNKNOWN else name for name, _ in told]
    there = set[str]().union(*called.values())
    absent = tuple(name for name, official in out.items() if official not in there)
    return Named(names, np.array([held for _, held in told], np.bool_), absent)


def _official(name: str) -> str:
    """A name that somebody typed as names are compared: by any of its spellings that of the index."""
    found = known(name)
    return spelt(found.name if found and found.name else name)


def _called(config: Identify, generator: str) -> set[str]:
    """All names by which a generator may be held out: its own, its class's and its family's."""
    found = known(generator)
    names = (generator, class_name(config, generator), config.families.get(generator), *((found.name, found.family) if found else ()))
    return {spelt(name) for name in names if name}


def classes_of(config: Identify, rows: Named) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes by name, and those that were left out with how many images they have.

    Raises ConfigError for a class of too few images unless they are to be left out, fewer than two classes, and a held-out name that no
    row has.
    """
    _require_held_out(config, rows)
    counts = Counter(name for name, held in zip(rows.names, rows.held_out, strict=True) if name and not held)
    if not config.reals:
        del counts[REAL]
    few = {name: n for name, n in sorted(counts.items()) if n < config.fewest}
    if few and config.rare == "refuse":
        told = ", ".join(f"{name} ({n})" for name, n in few.items())
        raise ConfigError(
            f"too few training images to tell {told}: {config.fewest} are needed of each",
            hint="--set identify.rare=leave-out makes them no classes, or collect more; --set identify.fewest=… goes down to 5",
        )
    classes = tuple(sorted(set(counts) - set(few)))
    if len(classes) < 2:
        raise ConfigError(f"an identifier needs two generators or more to tell apart; there is {', '.join(classes) or 'none'}")
    return classes, few


def _require_held_out(config: Identify, rows: Named) -> None:
    if rows.absent:
        there = ", ".join(sorted({name for name in rows.names if name})[:20])
        raise ConfigError(f"identify.held_out: no training image is of {', '.join(rows.absent)}", hint=f"there are {there}")


def training_rows(config: Identify, rows: Named, classes: Sequence[str], seed: int) -> Rows:
    """The rows that the head is fitted on: all of the classes or, of each, as many as `most` says, drawn by the seed."""
    chosen = rows.of(classes)
    if config.most is None:
        return chosen
    rng, names = np.random.default_rng([seed, 9]), np.array(rows.at(chosen))
    parts = [chosen[names == name] for name in classes]
    return np.sort(np.concatenate([rng.choice(part, min(config.most, len(part)), replace=False) for part in parts]))
