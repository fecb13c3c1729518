"""What a recipe does to its training images before they are prepared. Importing it is light: torchvision comes with the first policy."""

from ray_app.augmentation.config import POLICIES, Augmentation
from ray_app.augmentation.edges import edge_map
from ray_app.augmentation.policies import make_policy
from ray_app.augmentation.sample import Policy, Sample
from ray_app.augmentation.statistics import RealStatistics, load_statistics, save_statistics, sharpness

__all__ = [
    "Augmentation",
    "POLICIES",
    "Policy",
    "Sample",
    "make_policy",
    "RealStatistics",
    "load_statistics",
    "save_statistics",
    "sharpness",
    "edge_map",
]
