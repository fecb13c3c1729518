"""Check labelled data for faults that make an evaluation misleading, and describe the faults.

Prompts may belong to other images (`compare_prompts`). The training and test splits may share
images (`describe_shared_images`). The file facts of an index of labelled images may reveal the
class (`find_index_faults`).
"""

import posixpath
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import load_guard, rows_to_members
from ray_app.datasets.index import IndexInfo, read_index
from ray_app.datasets.labels import fakes, texts
from ray_app.datasets.split_index import check_splits
from ray_app.evaluation.accumulate import decode_members
from ray_app.evaluation.prompts import PromptClip
from ray_app.images import ImageLimits
from ray_app.metrics import shortcut
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.reports.format import percent
from ray_app.storage import Fetcher, Store

PROMPTED = pa.schema(
    [("image_id", pa.int64()), ("generator", pa.string()), ("prompt", pa.string())]
)
# Minimum pairs for a finding; maximum images to embed per generator, and in all.
MIN_PAIRS, MAX_PER_GENERATOR, MAX_IMAGES = 10, 64, 4096
_LOWEST = f"""SELECT generator, unnest(min_by({{image_id: image_id, prompt: prompt}}, image_id, {MAX_PER_GENERATOR}), recursive := true) FROM prompted
    GROUP BY generator ORDER BY count(*) DESC, generator LIMIT {MAX_IMAGES}"""  # noqa: S608 - numbers
_MAX_FILES = 20_000


def compare_prompts(
    tables: Iterable[pa.Table], read_images: Callable[[list[int]], Iterable[Any]], clip: str | None
) -> list[str]:
    """Check for each generator whether the prompts in the labels belong to the images.

    The check swaps the prompts of two images of a generator. It measures how often the pair is more
    similar to its own prompts than to the swapped ones, by CLIP. If there are too many images,
    those of the generators with the most images are checked.

    Args:
        tables: Tables with the columns of PROMPTED: image id, generator, and prompt.
        read_images: Function that yields the id and the pixels of each image that can be read, for
            a list of ids.
        clip: The folder of CLIP weights; None to skip the check.

    Returns:
        For each generator with enough pairs of images, a sentence with the result. If there are
        prompts but the check was skipped, one sentence that says so.

    Raises:
        ConfigError: The folder has no CLIP.
    """
    paired = pc.field("prompt").is_valid() & pc.field("generator").is_valid()
    prompted = (table.cast(PROMPTED).filter(paired) for table in tables)
    if clip is None:
        finding = "Whether prompts belong to their images was not checked: that needs CLIP's weights (clip=FOLDER)."
        return [finding] if any(map(len, prompted)) else []
    import duckdb

    batches = (batch for table in prompted for batch in table.to_batches())
    lowest: Any = duckdb.from_arrow(pa.RecordBatchReader.from_batches(PROMPTED, batches)).query(
        "prompted", _LOWEST
    )
    rows = sorted(lowest.fetchall(), key=lambda row: row[:2])
    if not rows:
        return []
    model, findings = PromptClip(clip), []
    embeddings = dict(model.embed_keyed_images(read_images([image_id for _, image_id, _ in rows])))
    for name in dict.fromkeys(name for name, _, _ in rows):
        pairs = [
            (embeddings[image_id], prompt)
            for generator, image_id, prompt in rows
            if generator == name and image_id in embeddings
        ]
        is_better = (
            compare_pairs(
                np.stack([image for image, _ in pairs]),
                model.embed_texts([prompt for _, prompt in pairs]),
            )
            if pairs
            else np.empty(0)
        )
        if len(is_better) >= MIN_PAIRS:
            low, high = proportion_interval(int(is_better.sum()), len(is_better))
            verdict = "match its images" if low > 0.5 else "match its images no better than chance"
            fraction = f"by CLIP, {percent(is_better.mean(), 0)} of {len(is_better)} pairs of images fit their own prompts better than swapped ones"
            findings.append(
                f"Prompts of {name} {verdict}: {fraction} ({percent(low, 0)} to {percent(high, 0)}; chance 50 %)."
            )
    return findings


def compare_pairs(
    images: npt.NDArray[np.float64], prompts: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Return for each pair of images whether its own prompts fit better than swapped ones.

    Pairs are images 0 and 1, 2 and 3, and so on. Ties are left out. Both arguments are CLIP
    embeddings of length 1, (n, d).
    """
    last = len(images) // 2 * 2
    better = ((images[:last:2] - images[1:last:2]) * (prompts[:last:2] - prompts[1:last:2])).sum(
        axis=1
    )
    return np.asarray(better[np.abs(better) > 1e-9] > 0, np.bool_)


def find_index_faults(url: str, clip: str | None) -> list[str]:
    """Describe faults of an index of labelled images in sentences, before images are scored.

    The first check is whether file extensions and sizes in bytes separate fakes from real images.
    No image is read for it. The second check is whether prompts belong to their images.

    Args:
        url: Path or URL of the index, which `touchstone data index` wrote.
        clip: The folder of CLIP weights; None to skip the check of prompts.

    Returns:
        The sentences. The first one is the result of the first check.

    Raises:
        ConfigError: The index cannot be read, or the folder has no CLIP.
    """
    rows, fetcher = read_index(url), Fetcher(guard=load_guard(Store.open(url)))
    sample = rows.take(
        pa.array(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_FILES)).astype(np.int64))
    )
    sizes = sample["size_bytes"].to_numpy().astype(np.float64)
    endings = [
        posixpath.splitext(name)[1].lower()
        for name in pc.coalesce(sample["member"], sample["uri"]).to_pylist()
    ]
    auc = shortcut.shortcut_auc(
        {"ending": endings, "bytes": np.where(sizes > 0, sizes, np.nan)}, fakes(sample)
    )
    value = "" if auc.value is None else f", AUC {auc.value:.2f}"
    form = f"Whether file extensions and sizes in bytes separate fakes from reals: {shortcut.finding(auc)}{value}."

    def read_images(ids: list[int]) -> Iterable[Any]:
        members = rows_to_members(
            rows.filter(pc.is_in(rows["image_id"], pa.array(ids, pa.int64())))
        )
        return (
            (member.image_id, image)
            for member, image in decode_members(members, fetcher, ImageLimits())
        )

    prompted = pa.table(
        [rows["image_id"], texts(rows, "generator"), texts(rows, "prompt")], PROMPTED.names
    )
    return [form, *compare_prompts([prompted], read_images, clip)]


def describe_shared_images(url: str, info: IndexInfo) -> list[str]:
    """Describe the images that splits of an index share, such as the training and test split.

    Images are compared by path, bytes, and perceptual hash.

    Args:
        url: Path or URL of the index of labelled images.
        info: The facts of the index.

    Returns:
        A sentence for each kind of shared images, or a sentence that there are none. The list is
        empty if the index has fewer than two splits. If the index has no hashes, a sentence says
        that the check was skipped.
    """
    if len({count["split"] for count in info.counts} - {None}) < 2:
        return []
    if not info.hashes:
        return [
            "Whether splits share images was not checked: that needs hashes (touchstone data index --hash sha256,phash)."
        ]
    leaks = [
        leak
        for leak in check_splits(url, kinds=("image", "bytes", "looks"))["leaks"]
        if leak["values"]
    ]
    findings = [
        f"Splits share {leak['what']}: {leak['images']:,} images ({', '.join(leak['between'])})."
        for leak in leaks
    ]
    return findings or [f"Splits share no image, by {' and '.join(info.hashes)}."]
