"""A git repository of pictures of every kind that a collection meets, made by git itself, and lists about it."""

import csv
import io
import os
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ENVIRONMENT = os.environ | {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
HEADER = "repo,commit,path_rule,label,source,generator_or_camera,n,licence,covers_pictures,family,graphics,cap,note"


def picture(seed: int, *, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """Soft blobs of colour, other ones for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def sheet() -> Image.Image:
    whole = Image.new("RGB", (513, 512))  # the last column is nobody's
    for number in range(4):
        whole.paste(picture(20 + number), (number % 2 * 256, number // 2 * 256))
    return whole


FILES = {
    "photos/a.jpg": encoded(picture(1), quality=92),
    "photos/b.JPEG": encoded(picture(2)),
    "photos/c.png": encoded(picture(3), "PNG"),
    "photos/d-again.jpg": encoded(picture(1), quality=92),
    "photos/e-nearly.jpg": encoded(picture(1), quality=60),
    "photos/large.jpg": encoded(picture(4)) + bytes(4_000_000),
    "photos/long.jpg": encoded(picture(5, size=(256, 800))),
    "photos/moving.gif": encoded(picture(6), "GIF", save_all=True, append_images=[picture(7)]),
    "photos/pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "photos/refused.jpg": encoded(picture(8)),
    "photos/small.jpg": encoded(picture(9, size=(255, 300))),
    "photos/text.jpg": b"404: not found",
    "photos/thumbs/a.jpg": encoded(picture(10)),
    "made/x.png": encoded(picture(11), "PNG"),
    "made/like-a-photo.png": encoded(picture(2), "PNG"),
    "sheets/one.webp": encoded(sheet(), "WEBP", lossless=True),
    "README.md": b"Pictures.\n",
}
REFUSED = sha256(FILES["photos/refused.jpg"]).hexdigest()


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Origin:
    """`folder`/owner/name.git is the repository; `commit` is not its newest one, which has other files."""

    folder: Path
    commit: str

    @property
    def bare(self) -> Path:
        return self.folder / "owner" / "name.git"

    @property
    def url(self) -> str:
        return self.folder.as_uri()


@pytest.fixture(scope="session")
def origin(tmp_path_factory) -> Origin:
    folder = tmp_path_factory.mktemp("hosted")
    work = folder / "work"
    work.mkdir()
    git(work, "init", "--quiet", "--initial-branch=main")
    for name, data in FILES.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    (work / "photos" / "link.jpg").symlink_to("a.jpg")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=pictures")
    commit = git(work, "rev-parse", "HEAD")
    (work / "photos" / "a.jpg").write_bytes(encoded(picture(99)))
    git(work, "commit", "--quiet", "--all", "--message=another a")
    git(folder, "clone", "--quiet", "--bare", str(work), "owner/name.git")
    return Origin(folder, commit)


@dataclass(frozen=True)
class Lists:
    """Writes lists about the origin."""

    folder: Path
    commit: str

    def rules(self, *rows: dict[str, object], header: str = HEADER) -> str:
        path = self.folder / f"sources-{len(list(self.folder.glob('sources-*')))}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, header.split(","), restval="")
            writer.writeheader()
            writer.writerows({"repo": "owner/name", "commit": self.commit, "label": "real", "source": "photos"} | row for row in rows)
        return str(path)

    def all_three(self) -> str:
        return self.rules(
            {"path_rule": r"^photos/.*\.(jpe?g|png|gif)$ NOT thumbs", "licence": "CC0-1.0", "covers_pictures": "yes", "n": 3},
            {"path_rule": "^made/", "label": "fake", "source": "made", "generator_or_camera": "Painter 2", "family": "gallery"},
            {"path_rule": "^sheets/", "label": "grid2x2", "source": "sheets", "generator_or_camera": "Painter 1", "graphics": "yes"},
        )

    def refused(self) -> str:
        path = self.folder / "refused.sha256"
        path.write_text(f"{REFUSED}  photos/refused.jpg\n{'0' * 64}\n")
        return str(path)


@pytest.fixture
def lists(origin, tmp_path) -> Lists:
    return Lists(tmp_path, origin.commit)
