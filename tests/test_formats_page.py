"""The tables of docs/formats.md, held to the code."""

import re
import tomllib
from pathlib import Path

import pytest

from ray_app.archives import ContainerLimits
from ray_app.archives.containers import kind_of
from ray_app.datajobs.download.config import CollectConfig
from ray_app.datajobs.generate.config import GenerateConfig
from ray_app.images import BatchLimits, ImageLimits
from ray_app.images.decode import FORMATS
from ray_app.images.limits import LARGEST, LIMIT_PIXELS, SMALL_BYTES
from ray_app.inference.block_reader import AHEAD_BYTES
from ray_app.inference.decoder import WALL_LIMIT_S
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import BLOCK_BYTES
from ray_app.serving.config import RequestLimits, ServeConfig
from ray_app.storage.node_budget import NODE_SHARE
from ray_app.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "formats.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def table(head: str) -> list[list[str]]:
    """The rows of the table whose first column is called so."""
    body = PAGE[PAGE.index(f"| {head} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body]


def stated(name: str, value: float) -> str:
    """A limit as the page writes it."""
    if name.endswith("_bytes"):
        return f"{value // 2**20} MiB"
    return f"{value // 10**6} MP" if name.endswith("_pixels") else f"{value:,.0f}"


def test_every_format_stands_there_with_its_limit_and_whether_the_endpoint_takes_it():
    rows = {row[0]: row for row in table("format")}
    assert set(rows) == {*FORMATS, "RAW"}
    limits, endpoint = BatchLimits(), RequestLimits().formats
    for name, (_, _, _, largest, served) in rows.items():
        is_largest = name in LARGEST or name == "RAW"  # the preview in it is a JPEG
        assert largest == stated("max_pixels", limits.max_pixels if is_largest else limits.max_whole_pixels), name
        assert served == ("yes" if name in endpoint else "no"), name


def test_extras_that_it_names_are_there():
    named = set(re.findall(r"touchstone-forensics\[(\w+)\]", PAGE + (ROOT / "docs" / "licences.md").read_text()))
    assert {"jxl", "raw", "zst"} <= named <= set(EXTRAS)


def test_limits_are_those_of_batch_and_endpoint():
    rows = table("limit")
    assert [row[0].strip("`") for row in rows] == list(ImageLimits.model_fields)
    for name, batch, endpoint, _ in rows:
        name = name.strip("`")
        other = getattr(ImageLimits(), name) or ImageLimits().max_pixels
        assert (batch, endpoint) == (stated(name, getattr(BatchLimits(), name)), stated(name, other)), name


@pytest.mark.parametrize(
    ("config", "key"), [(ServeConfig, "images"), (CollectConfig, "images"), (GenerateConfig, "limits"), (TrainConfig, "limits")]
)
def test_who_reads_many_images_beside_each_other_keeps_the_lower_ones(config, key):
    field = config.model_fields[key]
    assert (field.annotation, field.default) == (ImageLimits, ImageLimits())
    assert ScoreConfig().limits == BatchLimits()


def test_numbers_in_its_sentences_are_those_of_the_code():
    for words in (
        f"up to {SMALL_BYTES // 2**20} MiB and have up to {LIMIT_PIXELS // 10**6} MP never wait",
        f"`cluster.decode_limit_s` ({WALL_LIMIT_S:.0f} s) is meant for up to {LIMIT_PIXELS // 10**6} MP",
        f"Files over {AHEAD_BYTES // 2**20} MiB are not read ahead",
        f"A block holds at most {BLOCK_BYTES // 2**30} GiB of files",
        f"`container_limits.max_members` ({ContainerLimits().max_members:,})",
        f"`container_limits.max_ratio` ({ContainerLimits().max_ratio:g},",
    ):
        assert words in PAGE, words
    assert NODE_SHARE == 0.25, "a quarter of the node's memory"


def test_endings_of_archives_are_those_that_are_opened():
    [sentence] = re.findall(r"Archives: (.*?)\. See", PAGE, re.DOTALL)
    for ending in re.findall(r"\.[\w.]+", " ".join(re.findall(r"\(`(.*?)`\)", sentence, re.DOTALL))):
        assert kind_of(f"x{ending}"), ending
