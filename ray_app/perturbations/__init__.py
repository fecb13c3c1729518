"""What the world does to a picture after it was made: codecs, blur, noise, size, crops, screenshots. Knows PIL images, no detector."""

from ray_app.perturbations.loading import PerturbationList, load_perturbations
from ray_app.perturbations.perturbation import Perturbation, seed_of

__all__ = ["Perturbation", "PerturbationList", "load_perturbations", "seed_of"]
