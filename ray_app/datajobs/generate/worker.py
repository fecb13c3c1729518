"""Blocks of requests → files and rows (`SCHEMA`): `GenerationWorker`. Where memory is short the
batch halves; a failed image is a row.

The rows of a block are written last: a block whose rows are there is done, and one that died
halfway is made again, to the same names and bytes.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageOps

from ray_app.archives import MemberReader, read_referenced
from ray_app.datajobs.generate.config import Drawn, GenerateConfig, PipelineCard, Size
from ray_app.datajobs.generate.files import Mark, encode, fetcher_for
from ray_app.datajobs.generate.pipelines import GeneratedImage, LoadedPipeline, Model, Picture
from ray_app.datajobs.generate.requests import GenerationBlock, ImageRequest, randomness
from ray_app.datajobs.parts import OK, write_part
from ray_app.datasets.mask_pixels import decode_mask
from ray_app.errors import ClusterError, InputError, Status, describe_error, is_want_of_memory
from ray_app.images import decode_image
from ray_app.storage import Store, strip_secrets

Rows = dict[int, dict[str, Any]]
_BLOBS = (3, 7)
_TRIES = 40
# `blanked`: the pipeline's own safety checker put a black picture in its place, which is not kept;
# `pipeline_failed`: it raised. Others are statuses of `ray_app.errors.Status`, of a real image that
# was to be altered.
BLANKED, FAILED = "blanked", "pipeline_failed"
SCHEMA = pa.schema(
    [
        ("uri", pa.string()), ("label", pa.string()), ("generator", pa.string()), ("prompt", pa.string()), ("negative_prompt", pa.string()),
        ("mask", pa.string()), ("mask_share", pa.float32()), ("real_uri", pa.string()), ("prompt_id", pa.string()), ("group", pa.string()),
        ("split", pa.string()), ("index", pa.int64()), ("seed", pa.int64()), ("pipeline", pa.string()),
        ("model", pa.string()), ("revision", pa.string()), ("lora", pa.string()), ("diffusers", pa.string()), ("precision", pa.string()),
        ("steps", pa.int32()), ("guidance", pa.float32()), ("strength", pa.float32()), ("generated_width", pa.int32()),
        ("generated_height", pa.int32()), ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("quality", pa.int32()),
        ("subsampling", pa.string()), ("sha256", pa.string()), ("blanked", pa.bool_()), ("status", pa.string()), ("detail", pa.string()),
    ]
)  # fmt: skip


@dataclass
class GenerationWorker:
    """Makes blocks, one after the other, with one loaded pipeline; to be sent to its process before
    the first. `batch`: images at once, as memory allows by now.
    """

    store: Store
    card: PipelineCard
    model: Model
    config: GenerateConfig
    device: str
    precision: str
    batch: int = 0
    _pipeline: LoadedPipeline | None = field(default=None, repr=False)

    def __call__(self, block: GenerationBlock) -> dict[str, int]:
        """Make, write and commit one block; {images, bad}. Raises ClusterError when not even one
        image fits into memory, DetectorError when the pipeline cannot be loaded, StorageError when
        the directory is out of reach.
        """
        self.load()
        rows: Rows = {}
        pictures = dict(self._pictures(block.requests, rows))
        waiting = [request for request in block.requests if request.index not in rows]
        while waiting:
            now, waiting = waiting[: self.batch], waiting[self.batch :]
            for request, made in self._made(now, pictures, rows):
                rows[request.index] = self._kept(request, made, pictures.get(request.index))
        write_part(
            self.store, block.name, [rows[request.index] for request in block.requests], SCHEMA
        )
        return {"images": len(rows), "bad": sum(row["status"] != OK for row in rows.values())}

    def load(self) -> None:
        """Load the pipeline, where that is not done. Raises as calling it."""
        if self._pipeline is not None:
            return
        try:
            self._pipeline = LoadedPipeline(
                self.card, self.model, device=self.device, precision=self.precision
            )
        except Exception as error:
            if not is_want_of_memory(error):
                raise
            raise self._too_small("its weights do not fit", error) from error
        config, card = self.config, self.card
        self.batch = config.batch or card.batch
        self._steps, self._guidance = (
            config.steps or card.steps,
            card.guidance if config.guidance is None else config.guidance,
        )
        self._same = self._settings()
        self._fetcher = fetcher_for(
            config.prompts or "", config.retry, allow_private=config.allow_private
        )
        self._reader = MemberReader(self._fetcher, max_bytes=config.limits.max_bytes)

    def _settings(self) -> dict[str, Any]:
        """The columns that are the same in every row."""
        import diffusers

        card, lora = self.card, self.card.lora
        unused = {} if card.negative else {"negative_prompt": None}
        return unused | {
            "generator": self.config.generator or card.label, "pipeline": card.name, "model": strip_secrets(self.model.place),
            "revision": self.model.revision, "lora": f"{lora.model} × {lora.scale:g}" if lora else None,
            "diffusers": diffusers.__version__, "precision": self.precision, "steps": self._steps, "guidance": self._guidance,
            "strength": card.strength if card.task == "inpainting" else None,
        }  # fmt: skip

    # -- pictures to be altered
    # --------------------------------------------------------------------------

    def _pictures(
        self, requests: Sequence[ImageRequest], rows: Rows
    ) -> Iterator[tuple[int, Picture]]:
        """The real images of inpainting requests; an request whose image cannot be had gets its
        row.
        """
        if self.card.task != "inpainting":
            return
        members = [request.prompt.image for request in requests if request.prompt.image is not None]
        assert len(members) == len(requests), "an inpainting request without an image"
        for request, (_, data) in zip(requests, self._reader.read(members), strict=True):
            try:
                if isinstance(data, InputError):
                    raise data
                yield request.index, self._picture(request, data)
            except InputError as refused:
                rows[request.index] = self._row(
                    request, status=refused.status.value, detail=refused.detail
                )

    def _picture(self, request: ImageRequest, data: bytes) -> Picture:
        real = decode_image(data, self.config.limits).pixels
        if request.prompt.mask is None:
            return Picture(
                covered(real, request.size),
                drawn_mask(request.size, request.seed, self.config.masks),
            )
        place, limits = request.prompt.mask, self.config.limits
        stored = (
            read_referenced(place, self._fetcher)
            if "#row=" in place
            else self._fetcher.fetch(place, "", limits.max_bytes)
        )
        mask = decode_mask(stored, limits)
        if mask.size != real.size:
            raise InputError(
                Status.CORRUPT_IMAGE, f"its mask is {mask.size}, the image {real.size}"
            )
        mask = covered(mask, request.size, mask=True)
        if not share_of(mask):
            raise InputError(Status.CORRUPT_IMAGE, "its mask is empty: nothing would be altered")
        return Picture(covered(real, request.size), mask)

    # -- the pipeline
    # ------------------------------------------------------------------------------------

    def _made(
        self, requests: Sequence[ImageRequest], pictures: dict[int, Picture], rows: Rows
    ) -> Iterator[tuple[ImageRequest, GeneratedImage]]:
        """What the pipeline makes of a batch; halved while memory is short, and one by one where
        the batch raises anything else.
        """
        assert self._pipeline is not None
        if len(requests) > self.batch:
            parts = [
                requests[start : start + self.batch]
                for start in range(0, len(requests), self.batch)
            ]
        else:
            try:
                given = [pictures[request.index] for request in requests] if pictures else []
                made = self._pipeline.make(
                    requests, given, steps=self._steps, guidance=self._guidance
                )
            except Exception as error:
                parts = self._after(error, requests, rows)
            else:
                yield from zip(requests, made, strict=True)
                return
        for part in parts:  # outside of the handler, whose frames hold tensors
            yield from self._made(part, pictures, rows)

    def _after(
        self, error: Exception, requests: Sequence[ImageRequest], rows: Rows
    ) -> list[Sequence[ImageRequest]]:
        """What is to be tried next where a batch raised."""
        if is_want_of_memory(error):
            self._halve(len(requests), error)
            return [requests]
        if len(requests) > 1:
            return [[request] for request in requests]
        rows[requests[0].index] = self._row(
            requests[0], status=FAILED, detail=describe_error(error)
        )
        return []

    def _halve(self, tried: int, error: Exception) -> None:
        if tried == 1:
            raise self._too_small("not even one image at once fits", error) from error
        self.batch = max(1, tried // 2)
        _give_back_memory()

    # -- files and rows
    # ----------------------------------------------------------------------------------

    def _kept(
        self, request: ImageRequest, made: GeneratedImage, picture: Picture | None
    ) -> dict[str, Any]:
        if made.blanked:
            detail = "the pipeline's safety checker put black in its place"
            return self._row(request, blanked=True, status=BLANKED, detail=detail)
        image, found = made.image, dict[str, Any]()
        if picture is not None:
            image = pasted(picture.real, image, picture.mask) if self.config.paste else image
            found = self._keep_mask(request, picture.mask)
        mark: Mark = (
            "trainedAlgorithmicMedia" if picture is None else "compositeWithTrainedAlgorithmicMedia"
        )
        data = encode(image, request.style, mark if self.config.mark else None)
        self.store.write(request.image_path, data)
        return self._row(request, uri=request.image_path, width=image.width, height=image.height,
                         sha256=hashlib.sha256(data).hexdigest(), **found)  # fmt: skip

    def _keep_mask(self, request: ImageRequest, mask: Image.Image) -> dict[str, Any]:
        mask = binary(mask)
        file = io.BytesIO()
        mask.save(file, "PNG")
        self.store.write(request.mask_path, file.getvalue())
        return {"mask": request.mask_path, "mask_share": share_of(mask)}

    def _row(self, request: ImageRequest, **found: Any) -> dict[str, Any]:
        """A row: what was ordered, what is the same for all of a job, and what was found; all else
        is null.
        """
        prompt, style = request.prompt, request.style
        ordered = {
            "label": "fake", "prompt": prompt.text, "negative_prompt": prompt.negative, "prompt_id": prompt.id, "group": prompt.group,
            "split": prompt.split, "real_uri": prompt.image.uri if prompt.image else None, "index": request.index, "seed": request.seed,
            "generated_width": request.size[0], "generated_height": request.size[1], "format": style.format, "quality": style.quality,
            "subsampling": style.subsampling, "blanked": False, "status": OK,
        }  # fmt: skip
        row = dict.fromkeys(SCHEMA.names) | ordered | self._same | found
        assert len(row) == len(SCHEMA.names), "a column that the schema does not have"
        return row

    def _too_small(self, what: str, error: Exception) -> ClusterError:
        return ClusterError(
            f"{self.card.name}: {what} into the memory of the {self.device} ({describe_error(error)})",
            hint="a larger device, --set precision=bf16, or smaller sizes in another --out",
        )


def _give_back_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def covered(image: Image.Image, size: Size, *, mask: bool = False) -> Image.Image:
    """Scaled to cover `size` (Lanczos; masks nearest) and cropped to it at the centre."""
    return ImageOps.fit(image, size, Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)


def binary(mask: Image.Image) -> Image.Image:
    """Mode L of 0 and 255: 255 where the grey level is above 127, as OpenSDI's masks are read."""
    return mask.convert("L").point(lambda level: 255 if level > 127 else 0)


def drawn_mask(size: Size, seed: int, share: Drawn) -> Image.Image:
    """A blob of ellipses around one place, 255 inside, that covers between `share.least` and
    `share.most` of the picture, or nearly.
    """
    rng = randomness(seed, "mask")
    wanted = rng.uniform(share.least, share.most)
    mask = Image.new("L", size, 0)
    for _ in range(_TRIES):
        mask = _blob(size, wanted, rng.random)
        if share.least <= share_of(mask) <= share.most:
            break
    return mask


def share_of(mask: Image.Image) -> float:
    """The share of a mask that is not 0."""
    return 1 - mask.histogram()[0] / (mask.width * mask.height)


def _blob(size: Size, wanted: float, uniform: Callable[[], float]) -> Image.Image:
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    count = _BLOBS[0] + int(uniform() * (_BLOBS[1] - _BLOBS[0] + 1))
    radius = (wanted * size[0] * size[1] / 3.14159 / 2) ** 0.5
    centre_x, centre_y = (side * (0.25 + 0.5 * uniform()) for side in size)
    for _ in range(count):
        x, y = centre_x + (uniform() - 0.5) * radius, centre_y + (uniform() - 0.5) * radius
        wide, high = radius * (0.6 + 0.8 * uniform()), radius * (0.6 + 0.8 * uniform())
        pen.ellipse((x - wide, y - high, x + wide, y + high), fill=255)
    return mask


def pasted(real: Image.Image, made: Image.Image, mask: Image.Image) -> Image.Image:
    """The made picture inside the mask, the real one's own pixels outside."""
    return Image.composite(made.convert("RGB"), real.convert("RGB"), mask)
