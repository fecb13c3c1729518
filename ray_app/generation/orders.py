"""Prompts → orders (one image each, with all that was drawn for it) → blocks of one size. The same for every session of a job."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ray_app.generation.cards import Size
from ray_app.generation.looks import Look
from ray_app.generation.prompts import Prompt
from ray_app.generation.seeds import pick, seed_of

_WRITTEN = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Order:
    """One image to be made: `index` counts all of a job, `size` is (width, height) of what the pipeline makes."""

    index: int
    seed: int
    prompt: Prompt
    size: Size
    look: Look

    @property
    def image_path(self) -> str:
        """Where the image goes, below the job's directory."""
        return f"images/{self.index:08}.{_WRITTEN[self.look.format]}"

    @property
    def mask_path(self) -> str:
        """Where the mask of an altered image goes."""
        return f"masks/{self.index:08}.png"


@dataclass(frozen=True)
class Block:
    """Orders of one size: the unit of commit and resume."""

    number: int
    orders: tuple[Order, ...]

    @property
    def path(self) -> str:
        """Its rows. They exist when, and only when, all of its images are there."""
        return f"parts/{self.number:06}.parquet"


def make_orders(prompts: Sequence[Prompt], *, per_prompt: int, base_seed: int, sizes: Sequence[Size], looks: Sequence[Look]) -> list[Order]:
    """An order per image, prompt by prompt; seed, size and look follow from (base seed, index) alone."""
    return [
        _order(number * per_prompt + repeat, prompt, base_seed, sizes, looks)
        for number, prompt in enumerate(prompts)
        for repeat in range(per_prompt)
    ]


def _order(index: int, prompt: Prompt, base_seed: int, sizes: Sequence[Size], looks: Sequence[Look]) -> Order:
    seed = seed_of(base_seed, index)
    look = looks[pick(seed, "look", len(looks))]
    size = sizes[pick(seed, "size", len(sizes))] if look.size is None else nearest_shape(look.size, sizes)
    return Order(index, seed, prompt, size, look)


def nearest_shape(wanted: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` whose width ÷ height is nearest; of equals the first."""
    ratio = wanted[0] / wanted[1]
    return min(sizes, key=lambda size: max(ratio * size[1] / size[0], size[0] / (ratio * size[1])))


def cut_blocks(orders: Sequence[Order], block_images: int) -> list[Block]:
    """Blocks of one size each, numbered; sizes in the order in which they first come."""
    by_size: defaultdict[Size, list[Order]] = defaultdict(list)
    for order in orders:
        by_size[order.size].append(order)
    return [Block(number, chunk) for number, chunk in enumerate(_chunks(by_size.values(), block_images))]


def _chunks(groups: Iterable[list[Order]], most: int) -> Iterator[tuple[Order, ...]]:
    for group in groups:
        for start in range(0, len(group), most):
            yield tuple(group[start : start + most])


def digest_of_orders(orders: Sequence[Order]) -> str:
    """SHA-256 over all that was drawn: another list of prompts, or another real set, is another job."""
    digest = hashlib.sha256()
    for order in orders:
        image = order.prompt.image
        told = [order.index, order.seed, order.prompt.id, order.prompt.text, order.prompt.negative, order.prompt.mask, order.size,
                [order.look.format, order.look.quality, order.look.subsampling, order.look.size], image and image.image_id]  # fmt: skip
        digest.update(json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
