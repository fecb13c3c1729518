"""Write the sample archive that Touchstone ships, `configs/sample`.

    python -m tools.make_sample_archive

The archive has photographs of scikit-image and scikit-learn, images of simulated cameras, repainted
images, and five odd files. Only scenes, cameras, and decoders that `touchstone-tiny` did not learn
from are used. It needs the development dependencies.
"""

import csv
import hashlib
import io
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ray_app.config import config_root
from tests.simulation.archive import ALBUMS, SHOWN, load_scipy, make_pair, odd_files
from tests.simulation.camera import SUBSAMPLINGS, SimulatedEncoding

MAX_BYTES = 2_000_000  # of the whole folder
COLUMNS = ("uri", "path", "sha256", "label", "generator", "split", "group")
SEED = 24
SIMULATED = 75
PHOTOGRAPH_QUALITY = 80
PNG_NUMBERS = (10, 11)  # even numbers are real, odd numbers are generated
# flower.jpg is CC BY
FLOWERLESS = replace(SHOWN, scenes=tuple(scene for scene in SHOWN.scenes if scene != "flower"))
TEST_MAKERS = ("sinc", "camera:mirrorless", "scikit-learn")  # held out of the recipe `quick`


@dataclass(frozen=True)
class Photograph:
    """A photograph of an installed package, with the author and licence that the package names."""

    package: str
    module: str
    path: str
    author: str
    licence: str
    licence_url: str

    @property
    def name(self) -> str:
        """Name in the archive."""
        return f"{Path(self.path).stem}.jpg"

    def encode(self) -> bytes:
        """Return the photograph as a JPEG file of moderate size."""
        spec = find_spec(self.module)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        stream = io.BytesIO()
        Image.open(Path(spec.submodule_search_locations[0]) / self.path).save(
            stream, "JPEG", quality=PHOTOGRAPH_QUALITY
        )
        return stream.getvalue()

    def credit(self) -> str:
        """Return the lines of the credits file."""
        licence = " ".join(filter(None, (self.licence, self.licence_url)))
        return (
            f"{self.name}: by {self.author}, {licence}\n"
            f"  source: {self.package}, {self.module}/{self.path}; saved as JPEG of quality {PHOTOGRAPH_QUALITY}\n"
        )


_CC_BY = ("CC BY 2.0", "https://creativecommons.org/licenses/by/2.0/")
_CC0 = ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/")
_PUBLIC = ("public domain", "")
# Licences and authors: datasets/images/README.txt of scikit-learn, and the docstrings of
# skimage.data.
PHOTOGRAPHS = (
    Photograph(
        "scikit-learn",
        "sklearn",
        "datasets/images/flower.jpg",
        "vultilion (https://www.flickr.com/photos/vultilion/)",
        *_CC_BY,
    ),
    Photograph("scikit-image", "skimage", "data/astronaut.png", "NASA", *_PUBLIC),
    Photograph("scikit-image", "skimage", "data/camera.png", "Lav Varshney", *_CC0),
    Photograph("scikit-image", "skimage", "data/chelsea.png", "Stefan van der Walt", *_CC0),
    Photograph("scikit-image", "skimage", "data/coffee.png", "Rachel Michetti", *_CC0),
    Photograph("scikit-image", "skimage", "data/rocket.jpg", "SpaceX", *_PUBLIC),
)
CREDITS = """Sample archive of Touchstone

archive/photographs has photographs of other people, under these licences:

{photographs}
All other files are written by tools/make_sample_archive.py of Touchstone and are under the licence of Touchstone (Apache-2.0). They show no
place and no person: simulated cameras took them, or simulated decoders repainted them.
"""


@dataclass(frozen=True)
class SampleFile:
    """A file of the archive. `label` and `maker` are empty for a file without an image."""

    path: str
    data: bytes
    label: str
    maker: str

    def row(self) -> tuple[str, ...]:
        """Return the row of the labels file."""
        digest = hashlib.sha256(self.data).hexdigest()
        split = "test" if self.maker in TEST_MAKERS else "train"
        return (f"archive/{self.path}", self.path, digest, self.label, self.maker, split, self.path)


def main() -> None:
    """Write the folder anew."""
    folder = config_root() / "sample"
    shutil.rmtree(folder, ignore_errors=True)
    load_scipy()
    files = [SampleFile(*row) for row in odd_files(np.random.default_rng([SEED, 1]), 400, 600)]
    files += map(simulated_file, range(SIMULATED))
    files += [
        SampleFile(
            f"photographs/{photograph.name}", photograph.encode(), "real", photograph.package
        )
        for photograph in PHOTOGRAPHS
    ]
    for file in files:
        path = folder / "archive" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
    with (folder / "archive-labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(file.row() for file in files if file.label)
    credits = "".join(photograph.credit() for photograph in PHOTOGRAPHS)
    (folder / "CREDITS.txt").write_text(CREDITS.format(photographs=credits), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {len(files)} files, {size:,} bytes")
    assert size <= MAX_BYTES


def simulated_file(number: int) -> SampleFile:
    """Return image `number`: even numbers are real, odd numbers are generated."""
    rng = np.random.default_rng([SEED, 2, number])
    is_png = number in PNG_NUMBERS
    # many small, few large
    long = 200 if is_png else round(264 * (360 / 264) ** rng.random() ** 1.7)
    aspect = rng.choice([1.0, 4 / 3, 3 / 2])
    sides = sorted((round(max(long / aspect, 200)), long), reverse=bool(rng.random() < 0.3))
    pair = make_pair(FLOWERLESS, rng, *sides)
    encoding = SimulatedEncoding("PNG") if is_png else draw_encoding(number, rng)
    label, pixels, maker = (
        ("fake", pair.fake, pair.decoder)
        if number % 2
        else ("real", pair.real, f"camera:{pair.camera}")
    )
    name = hashlib.sha256(f"{SEED}/{number}".encode()).hexdigest()[:6]
    return SampleFile(
        f"{rng.choice(ALBUMS)}/{name}{encoding.suffix}", encoding.encode(pixels), label, maker
    )


def draw_encoding(number: int, rng: np.random.Generator) -> SimulatedEncoding:
    """Return WebP for two images in sixteen, otherwise JPEG."""
    quality = int(rng.integers(60, 88))
    if number % 16 in (4, 5):
        return SimulatedEncoding("WEBP", quality)
    return SimulatedEncoding("JPEG", quality, SUBSAMPLINGS[int(rng.choice(3, p=[0.25, 0.25, 0.5]))])


if __name__ == "__main__":
    main()
