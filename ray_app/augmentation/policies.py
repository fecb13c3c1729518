"""From a policy's name and arguments to the policy. Knows every policy by name; imports each only when it is asked for."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from ray_app.augmentation.config import Augmentation
from ray_app.augmentation.sample import Policy, Sample
from ray_app.augmentation.statistics import RealStatistics
from ray_app.errors import ConfigError

# Module and class of each. A class's keyword arguments are the policy's; `side` and `statistics` are given here, the rest by the recipe.
_CLASSES = {
    "none": ("policies", "Unchanged"),
    "flips": ("flips", "Flips"),
    "community-forensics": ("community_forensics", "CommunityForensics"),
    "openfake-v1": ("openfake", "RealMatching"),
    "openfake-v2": ("openfake", "SocialMedia"),
    "cnndetection": ("cnndetection", "CnnDetection"),
    "maskclip": ("maskclip", "MaskClip"),
}


class Unchanged:
    """The policy `none`: every image as it was decoded."""

    def __call__(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """The same sample; draws nothing."""
        return sample


def make_policy(config: Augmentation, *, side: int | None, statistics: RealStatistics | None = None) -> Policy:
    """The policy that `config` names, for a network whose input is `side` pixels square (None: it takes any size).

    `statistics` are what openfake-v1 matches fakes to; the others take none. Raises ConfigError for an argument the policy does not
    have or cannot use, and where `side` or `statistics` is needed and missing.
    """
    module, name = _CLASSES[config.policy]
    policy: Callable[..., Policy] = getattr(import_module(f"ray_app.augmentation.{module}"), name)
    given = {"side": side, "statistics": statistics}
    accepted = inspect.signature(policy).parameters
    own = [key for key in accepted if key not in given]
    for key in config.arguments:
        if key not in own:
            raise ConfigError(f"augmentation {config.policy} has no argument {key!r}; it has {', '.join(own) or 'none'}")
    arguments: dict[str, Any] = {**{key: value for key, value in given.items() if key in accepted}, **config.arguments}
    try:
        return policy(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augmentation {config.policy}: {error}") from error
