"""From a policy's name and arguments to the policy. Knows every policy by name; imports each only when it is asked for."""

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from ray_app.augmentation.config import Augmentation
from ray_app.augmentation.sample import Policy, Sample
from ray_app.augmentation.statistics import RealStatistics, load_statistics
from ray_app.config import Frozen
from ray_app.config.loading import validate
from ray_app.errors import ConfigError

# Module and class of each. The fields of a class are the policy's arguments.
_CLASSES = {
    "none": ("policies", "Unchanged"),
    "flips": ("flips", "Flips"),
    "community-forensics": ("community_forensics", "CommunityForensics"),
    "openfake-v1": ("openfake", "RealMatching"),
    "openfake-v2": ("openfake", "SocialMedia"),
    "cnndetection": ("cnndetection", "CnnDetection"),
    "maskclip": ("maskclip", "MaskClip"),
}


class Unchanged(Frozen):
    """The policy `none`: every image as it was decoded."""

    def __call__(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """The same sample; draws nothing."""
        return sample


def make_policy(config: Augmentation, *, side: int | None, statistics: RealStatistics | None = None) -> Policy:
    """The policy that `config` names, for a network whose input is `side` pixels square (None: it takes any size).

    Policies that end in a crop make it `side` pixels, unless their arguments say otherwise. `statistics` are what openfake-v1 matches fakes
    to, by default those in the file that `config` names; the others take none. Raises ConfigError for an argument that the policy does not
    have or cannot use, and for what it needs and was not given.
    """
    module, name = _CLASSES[config.policy]
    policy: type[Frozen] = getattr(import_module(f"ray_app.augmentation.{module}"), name)
    where = f"augmentation {config.policy}"
    arguments: dict[str, Any] = dict(config.arguments)
    crop = policy.model_fields.get("crop")
    if crop is not None and crop.is_required() and side is not None:
        arguments.setdefault("crop", side)
    if "statistics" in policy.model_fields:
        if statistics is None and config.statistics is None:
            raise ConfigError(f"{where}: it needs statistics of real images", hint="measure them on real training images, or name an .npz")
        arguments["statistics"] = statistics or load_statistics(Path(cast(str, config.statistics)))
    return cast(Policy, validate(arguments, policy, where=where))
