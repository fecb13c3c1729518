"""What is known of a labelled image, and how it is kept in an index. Knows no layout and reads nothing."""

import hashlib
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from ray_app.errors import ConfigError

Label = Literal["real", "fake"]

# The column `input` of an index. `sha256` is of the file's bytes, `phash` 16 hexadecimal digits, both null where they were not asked for.
INPUT: pa.StructType = pa.struct(
    [(name, pa.string()) for name in ("label", "generator", "mask_uri", "prompt", "split", "group", "sha256", "phash")]
)

_NAMES: dict[Any, Label] = {"real": "real", "0": "real", "false": "real", "fake": "fake", "1": "fake", "true": "fake"}


@dataclass(frozen=True, slots=True)
class Labels:
    """The truth about one image.

    `generator`: who made a fake; `real` or `real:<source>` for a real. `mask_uri`: where the mask of its altered part is; a fake without
    one is generated as a whole. `group`: images of one group (a prompt, a scene, a pair) are never divided between splits.
    """

    label: Label
    generator: str
    mask_uri: str | None = None
    prompt: str | None = None
    split: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value is not None)


def parse_label(value: object, where: str) -> Label:
    """`real` or `fake` for one of these words, for 0 and false or 1 and true (as number, truth or text, in any case).

    Raises ConfigError naming `where` (the file and row) and the value for all else, also for none: there is no default.
    """
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if (label := _NAMES.get(text.strip().lower())) is None:
        raise ConfigError(f"{where}: {value!r} is no label", hint="labels are real or fake, or 0 (real) and 1 (fake)")
    return label


def real_of(source: object) -> str:
    """The generator of a real image from `source` (a data set, a camera); plain `real` where that is not known."""
    name = "" if source is None else str(source).strip()
    if name.lower() in ("", "real", "none"):
        return "real"
    return name if name.startswith("real:") else f"real:{name}"


def prompt_group(prompt: str | None) -> str | None:
    """The group of all images of one prompt, whoever made them; None without a prompt. Letter case and spaces make no difference."""
    words = plain_prompt(prompt)
    return f"prompt:{hashlib.sha256(words.encode()).hexdigest()[:16]}" if words else None


def plain_prompt(prompt: str | None) -> str:
    """A prompt in one letter case, with one space between words; "" where there is none."""
    return " ".join(unicodedata.normalize("NFKC", prompt or "").casefold().split())
