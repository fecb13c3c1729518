"""Images made anew from predicted prompts, against the originals (`regenerated_similarity`): DFLIP-3K's measure of a predicted prompt.

Source: `ImageDataset` and `img_to_img_similarity` in utils/evaluate.py of dflip3k/DFLIP-3K at 46cd0d7 (arXiv 2401.02335). Both pictures
are squashed to a square and embedded by CLIP (ViT-B/32 there); of several pictures of one prompt their mean counts.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app import archives
from ray_app.errors import ConfigError
from ray_app.evaluation.accumulate import decoded, decoded_images
from ray_app.runs import RunDirectory
from ray_app.storage import strip_secrets

Floats = npt.NDArray[np.float64]
Embed = Callable[[Iterable[tuple[int, Image.Image]]], Iterator[tuple[int, Floats]]]
"""From pictures with their keys to directions (d,) of length 1 with theirs."""


def regenerated_similarity(run: RunDirectory, image_ids: Sequence[int], folder: str, embed: Embed) -> Floats:
    """Cosines (n, 2) of each image and what its own predicted prompt gives back, and of it and what other prompts do, which is chance.

    NaN where the original cannot be read, or nothing readable was made for it. `folder`: what `touchstone data generate` made of the run.
    Raises ConfigError where nothing in it was made for these images.
    """
    table = f"{folder.rstrip('/')}/generated.parquet"
    fetcher, ids = archives.fetcher_of([table]), {str(image_id): image_id for image_id in image_ids}
    listed = enumerate(archives.open_source([table], fetcher=fetcher))
    made = [archives.as_member(item, slot) for slot, item in listed if str(item.input.get("prompt_id")) in ids]
    if not made:
        hint = "touchstone data generate PIPELINE --prompts RUN --out FOLDER makes them of the run's own predictions"
        raise ConfigError(f"{strip_secrets(folder)}: nothing was made from a prompt that this run predicted", hint=hint)
    of = {member.slot: ids[str(member.input["prompt_id"])] for member in made}
    originals = dict(embed(decoded_images(run, set(of.values()))))
    sums, counts = dict[int, Any](), Counter[int]()
    for image_id, row in embed((of[member.slot], picture) for member, picture in decoded(made, fetcher, run.limits())):
        sums[image_id] = sums.get(image_id, 0) + row
        counts[image_id] += 1
    total, found = sum(sums.values()), np.full((len(image_ids), 2), np.nan)
    for place, image_id in enumerate(image_ids):
        if image_id in originals and image_id in sums:
            original, own, others = originals[image_id], sums[image_id], counts.total() - counts[image_id]
            found[place] = original @ own / counts[image_id], original @ (total - own) / others if others else np.nan
    return found
