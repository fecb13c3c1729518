"""Photographs that Python packages ship in their wheels under a licence, read from those that are installed (`packaged_photographs`).

No photograph is part of Touchstone. These are examples of other fields and no data set: enough to show what a verdict looks like on a
real photograph, too few to measure anything. None of them is in a training set of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CC_BY_2, CC0, PUBLIC_DOMAIN = "CC BY 2.0", "CC0", "public domain"


@dataclass(frozen=True)
class PackagedPhotograph:
    """`path` in the folder of the module `module`, which the distribution `package` installs. The licence is the picture's own, as the
    package states it.
    """

    package: str
    module: str
    path: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def file(self) -> Path | None:
        """Where it lies; None where the package is not installed, or ships it no longer. Nothing is imported."""
        spec = find_spec(self.module)
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((found for folder in folders if (found := Path(folder) / self.path).is_file()), None)


# scikit-learn: datasets/images/README.txt, which names one author for both and links to another's page for flower.jpg. scikit-image: the
# docstrings of skimage.data; textures, scans, telescopes, microscopes and drawings of its wheel are left out, and what names no licence.
PHOTOGRAPHS: Sequence[PackagedPhotograph] = (
    PackagedPhotograph("scikit-learn", "sklearn", "datasets/images/china.jpg", "danielbuechele (Flickr)", CC_BY_2),
    PackagedPhotograph("scikit-learn", "sklearn", "datasets/images/flower.jpg", "vultilion (Flickr)", CC_BY_2),
    PackagedPhotograph("scikit-image", "skimage", "data/astronaut.png", "NASA", PUBLIC_DOMAIN),
    PackagedPhotograph("scikit-image", "skimage", "data/camera.png", "Lav Varshney", CC0),
    PackagedPhotograph("scikit-image", "skimage", "data/chelsea.png", "Stefan van der Walt", CC0),
    PackagedPhotograph("scikit-image", "skimage", "data/coffee.png", "Rachel Michetti", CC0),
    PackagedPhotograph("scikit-image", "skimage", "data/rocket.jpg", "SpaceX", PUBLIC_DOMAIN),
)


def packaged_photographs() -> list[tuple[PackagedPhotograph, Path]]:
    """Those that are there, with their files. scikit-learn is always installed, scikit-image with `touchstone-forensics[demo]`."""
    return [(one, file) for one in PHOTOGRAPHS if (file := one.file()) is not None]
