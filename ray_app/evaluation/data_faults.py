"""Faults that labelled data show by themselves, in sentences: prompts that belong to other images
(`prompts_beside_images`), pictures in several splits (`shared_by_splits`), and of an index also
files whose form gives their class away (`faults_of_index`).
"""

import posixpath
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import guard_of, member_rows
from ray_app.datasets.index import IndexInfo, read_index
from ray_app.datasets.labels import fakes, texts
from ray_app.datasets.split_index import check_splits
from ray_app.evaluation.accumulate import decoded
from ray_app.evaluation.prompts import PromptClip
from ray_app.images import ImageLimits
from ray_app.metrics import shortcut
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.reports.format import percent
from ray_app.storage import Fetcher, Store

PROMPTED = pa.schema(
    [("image_id", pa.int64()), ("generator", pa.string()), ("prompt", pa.string())]
)
# pairs that a sentence takes; images that are looked at, of one generator and of all
LEAST, EACH, MOST = 10, 64, 4096
_LOWEST = f"""SELECT generator, unnest(min_by({{image_id: image_id, prompt: prompt}}, image_id, {EACH}), recursive := true) FROM prompted
    GROUP BY generator ORDER BY count(*) DESC, generator LIMIT {MOST}"""  # noqa: S608 - numbers
_MOST_FILES = 20_000


def prompts_beside_images(
    tables: Iterable[pa.Table], pictures: Callable[[list[int]], Iterable[Any]], clip: str | None
) -> list[str]:
    """Of each generator whether its prompts belong to its images: how often two images are, by
    CLIP, more like their own prompts together than like each other's. tables: PROMPTED. `pictures`
    gives (id, picture) of those ids that can be read; `clip`: the folder of weights.

    Of very many generators those with the most images. Raises ConfigError for a folder that holds
    no CLIP.
    """
    paired = pc.field("prompt").is_valid() & pc.field("generator").is_valid()
    prompted = (table.cast(PROMPTED).filter(paired) for table in tables)
    if clip is None:
        told = "Whether prompts belong to their images was not looked at: that takes CLIP's weights (clip=FOLDER)."
        return [told] if any(map(len, prompted)) else []
    import duckdb

    batches = (batch for table in prompted for batch in table.to_batches())
    lowest: Any = duckdb.from_arrow(pa.RecordBatchReader.from_batches(PROMPTED, batches)).query(
        "prompted", _LOWEST
    )
    rows = sorted(lowest.fetchall(), key=lambda row: row[:2])
    if not rows:
        return []
    model, found = PromptClip(clip), []
    seen = dict(model.embedded(pictures([image_id for _, image_id, _ in rows])))
    for name in dict.fromkeys(name for name, _, _ in rows):
        mine = [
            (seen[image_id], prompt)
            for maker, image_id, prompt in rows
            if maker == name and image_id in seen
        ]
        kept = (
            own_kept(
                np.stack([image for image, _ in mine]), model.texts([prompt for _, prompt in mine])
            )
            if mine
            else np.empty(0)
        )
        if len(kept) >= LEAST:
            low, high = proportion_interval(int(kept.sum()), len(kept))
            verdict = (
                "belong to its images" if low > 0.5 else "fit its images no better than chance"
            )
            share = f"{percent(kept.mean(), 0)} of {len(kept)} pairs are more alike as they are than swapped"
            found.append(
                f"Prompts of {name} {verdict}: by CLIP {share} ({percent(low, 0)} to {percent(high, 0)}; chance 50 %)."
            )
    return found


def own_kept(
    images: npt.NDArray[np.float64], prompts: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Of pairs (0, 1), (2, 3) … of directions (n, d) whether their own prompts fit better than
    swapped ones; ties are left out.
    """
    last = len(images) // 2 * 2
    better = ((images[:last:2] - images[1:last:2]) * (prompts[:last:2] - prompts[1:last:2])).sum(
        axis=1
    )
    return np.asarray(better[np.abs(better) > 1e-9] > 0, np.bool_)


def faults_of_index(place: str, clip: str | None) -> list[str]:
    """Whether endings of names and sizes in bytes tell an index's fakes from its reals, for which
    no image is read; and its prompts.

    Raises ConfigError as `read_index` and `prompts_beside_images`.
    """
    rows, fetcher = read_index(place), Fetcher(guard=guard_of(Store.open(place)))
    some = rows.take(
        pa.array(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_FILES)).astype(np.int64))
    )
    sizes = some["size_bytes"].to_numpy().astype(np.float64)
    endings = [
        posixpath.splitext(name)[1].lower()
        for name in pc.coalesce(some["member"], some["uri"]).to_pylist()
    ]
    auc = shortcut.shortcut_auc(
        {"ending": endings, "bytes": np.where(sizes > 0, sizes, np.nan)}, fakes(some)
    )
    value = "" if auc.value is None else f", AUC {auc.value:.2f}"
    form = f"Whether endings of names and sizes in bytes tell fakes from reals: {shortcut.finding(auc)}{value}."

    def pictures(ids: list[int]) -> Iterable[Any]:
        members = member_rows(rows.filter(pc.is_in(rows["image_id"], pa.array(ids, pa.int64()))))
        return (
            (member.image_id, picture)
            for member, picture in decoded(members, fetcher, ImageLimits())
        )

    prompted = pa.table(
        [rows["image_id"], texts(rows, "generator"), texts(rows, "prompt")], PROMPTED.names
    )
    return [form, *prompts_beside_images([prompted], pictures, clip)]


def shared_by_splits(place: str, info: IndexInfo) -> list[str]:
    """What pictures the splits of an index share, by place, bytes and looks; nothing where it has
    fewer than two.
    """
    if len({one["split"] for one in info.counts} - {None}) < 2:
        return []
    if not info.hashes:
        return [
            "Whether splits share pictures was not looked at: that takes hashes (touchstone data index --hash sha256,phash)."
        ]
    leaks = [
        leak
        for leak in check_splits(place, kinds=("image", "bytes", "looks"))["leaks"]
        if leak["values"]
    ]
    told = [
        f"Splits share {leak['what']}: {leak['images']:,} images ({', '.join(leak['between'])})."
        for leak in leaks
    ]
    return told or [f"Splits share no picture, by {' and '.join(info.hashes)}."]
