"""The section `identify` of a recipe: a head over generators on a detector's embeddings. No torch: read in milliseconds."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ray_app.config import Frozen


class Identify(Frozen):
    """Which generators are told apart, how, and when none is named.

    `level`: classes are generators by the names of configs/generators.yaml (a name that is not there is its own class), or families.
    `families`: of generators that are not listed there. `held_out`: generators, by name or family, that nothing is fitted on; in the test
    split they are the unknown ones. `reals`: real images are a class, `real`; else they are left out, and the test says how many are
    given a generator. `head`: `linear` is scikit-learn's multinomial logistic regression, `cosine` compares directions alone. `balanced`:
    every class weighs the same. `c`: the inverse strength of the penalty, for embeddings that are centred and scaled; null = of 1, 10,
    … 10,000 the one that folds by group choose. `most`: images per class that are drawn for training, null = all. A class of fewer
    than `fewest` training images is refused, or with `rare: leave-out` is no class. `open_set` and `abstains`: see
    `profiling.cards.OpenSet`; `abstains: 0` names every image.
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
