"""Small copies of the published sets: the same schemas, names and folders, written by the library
that their authors used.
"""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image as Pillow


def picture(number: int = 0, mode: str = "RGB") -> Pillow.Image:
    """A picture that only its number decides: some large blots."""
    blots = np.random.default_rng(number).integers(0, 256, (4, 6), np.uint8)
    return Pillow.fromarray(blots).resize((24, 16), Pillow.Resampling.BICUBIC).convert(mode)


def encoded(number: int = 0) -> bytes:
    """The same as a PNG."""
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    path: Path, columns: dict, images: tuple[str, ...] = ("image",), labels: list[str] | None = None
) -> Path:
    """A shard as `datasets` writes it. `images`: columns of pictures; `labels`: the names of the
    ClassLabel `label`.
    """
    from datasets import ClassLabel, Dataset, Features, Image, Value, disable_progress_bars

    disable_progress_bars()

    def feature(name, values):
        if name in images:
            return Image()
        if name == "label" and labels is not None:
            return ClassLabel(names=labels)
        kind = next((type(value) for value in values if value is not None), str)
        return Value({int: "int64", bytes: "binary", str: "string"}[kind])

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(
        columns,
        features=Features({name: feature(name, values) for name, values in columns.items()}),
    ).to_parquet(path)
    return path


def write_openfake(folder: Path, times: int = 1, split: str = "test") -> Path:
    """OpenFake's version 1: fakes of two generators whose prompts are mispaired, of a sound one and
    of one of noise, and as many reals.
    """
    makers = ["flux.1-dev", "sd-1.5-dreamshaper", "gpt-image-1", "sana"] * times
    columns = {
        "image": [picture(number) for number in range(2 * len(makers))],
        "prompt": [f"a prompt {number}" for number in range(2 * len(makers))],
        "label": ["fake", "real"] * len(makers),
        "model": [word for maker in makers for word in (maker, "real")],
    }
    return write_parquet(folder / f"data/{split}-00000-of-00001.parquet", columns).parents[1]


def write_shard(path: Path, **samples: dict | str) -> Path:
    """A WebDataset shard: of each key a picture and a sidecar, the fields or text given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for key, sidecar in samples.items():
            said = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
            for name, data in ((f"{key}.png", encoded()), (f"{key}.json", said.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def write_files(folder: Path, *names: str) -> Path:
    """Pictures under these names, each another; what is no picture by its name has words in it."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number) if path.suffix in (".png", ".jpg") else b"words")
    return folder


def write_zip(path: Path, *names: str) -> Path:
    """The same in a zip."""
    with zipfile.ZipFile(path, "w") as file:
        for number, name in enumerate(names):
            file.writestr(name, encoded(number))
    return path


def write_json(path: Path, content: object) -> Path:
    """Metadata beside images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
