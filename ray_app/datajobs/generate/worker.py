"""Generate the images of a block, and write their files and rows (`GenerationWorker`).

A block is a group of image requests that is committed as a whole. The batch is halved when it does
not fit into memory. An image that fails has a row with the reason. The rows of a block (`SCHEMA`)
are written last, so that a block with rows is done. An interrupted block is generated again, with
the same file names and bytes.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageOps

from ray_app.archives import MemberReader, read_referenced
from ray_app.datajobs.generate.config import GenerateConfig, PipelineCard, RandomMaskConfig, Size
from ray_app.datajobs.generate.files import Mark, encode, make_fetcher
from ray_app.datajobs.generate.pipelines import (
    GeneratedImage,
    InpaintingInput,
    LoadedPipeline,
    Model,
)
from ray_app.datajobs.generate.requests import GenerationBlock, ImageRequest, make_rng
from ray_app.datajobs.parts import OK, write_part
from ray_app.datasets.mask_pixels import decode_mask
from ray_app.errors import ClusterError, InputError, Status, describe_error, is_out_of_memory
from ray_app.images import decode_image
from ray_app.storage import Store, strip_secrets

Rows = dict[int, dict[str, Any]]
_ELLIPSES = (3, 7)  # Lowest and highest number of ellipses in a mask.
_MAX_TRIES = 40
# `blanked`: the safety checker of the pipeline replaced the image with a black one, which is not
# written. `pipeline_failed`: the pipeline raised an exception. The other statuses are those of
# `ray_app.errors.Status`, for a real image that cannot be read.
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
    """Generate the images of blocks with one pipeline, and write their files and rows.

    A block is a group of image requests that is committed as a whole. Call the object with a block
    to generate all its images. The call returns the number of `images`, and how many of them failed
    (`bad`). The object is sent to worker processes. Each process loads the pipeline before its
    first block.

    Attributes:
        store: The output directory.
        card: The card of the pipeline.
        model: The files of its model.
        config: Settings of the job.
        device: Device of torch, such as "cpu" or "cuda".
        precision: Number format of the weights.
        batch: Images per batch, which is halved when a batch does not fit into memory. 0 before the
            pipeline is loaded.
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
        """Generate the images of a block, and write the files and then the rows.

        Returns:
            The number of `images`, and how many of them are `bad`.

        Raises:
            ClusterError: If not even one image fits into memory.
            DetectorError: If the pipeline cannot be loaded.
            StorageError: If the directory is unreachable.
        """
        self.load()
        rows: Rows = {}
        inputs = dict(self._read_inputs(block.requests, rows))
        pending = [request for request in block.requests if request.index not in rows]
        while pending:
            batch, pending = pending[: self.batch], pending[self.batch :]
            for request, generated in self._generate(batch, inputs, rows):
                rows[request.index] = self._write(request, generated, inputs.get(request.index))
        write_part(
            self.store, block.name, [rows[request.index] for request in block.requests], SCHEMA
        )
        return {"images": len(rows), "bad": sum(row["status"] != OK for row in rows.values())}

    def load(self) -> None:
        """Load the pipeline if it is not loaded yet.

        Raises:
            ClusterError: If the weights do not fit into memory.
            DetectorError: If the pipeline cannot be loaded for another reason.
            StorageError: If the source of the prompts is unreachable.
        """
        if self._pipeline is not None:
            return
        try:
            self._pipeline = LoadedPipeline(
                self.card, self.model, device=self.device, precision=self.precision
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._make_memory_error("its weights do not fit", error) from error
        config, card = self.config, self.card
        self.batch = config.batch or card.batch
        self._steps, self._guidance = (
            config.steps or card.steps,
            card.guidance if config.guidance is None else config.guidance,
        )
        self._common_columns = self._describe_job()
        self._fetcher = make_fetcher(
            config.prompts or "", config.retry, allow_private=config.allow_private
        )
        self._reader = MemberReader(self._fetcher, max_bytes=config.limits.max_bytes)

    def _describe_job(self) -> dict[str, Any]:
        """Return the columns that are equal in all rows."""
        import diffusers

        card, lora = self.card, self.card.lora
        unused = {} if card.negative else {"negative_prompt": None}
        return unused | {
            "generator": self.config.generator or card.label, "pipeline": card.name, "model": strip_secrets(self.model.location),
            "revision": self.model.revision, "lora": f"{lora.model} × {lora.scale:g}" if lora else None,
            "diffusers": diffusers.__version__, "precision": self.precision, "steps": self._steps, "guidance": self._guidance,
            "strength": card.strength if card.task == "inpainting" else None,
        }  # fmt: skip

    # -- Real images and masks for inpainting

    def _read_inputs(
        self, requests: Sequence[ImageRequest], rows: Rows
    ) -> Iterator[tuple[int, InpaintingInput]]:
        """Yield the index and the input of each inpainting request.

        A request whose image or mask cannot be read gets its row in `rows` instead.
        """
        if self.card.task != "inpainting":
            return
        members = [request.prompt.image for request in requests if request.prompt.image is not None]
        assert len(members) == len(requests), "an inpainting request without an image"
        for request, (_, data) in zip(requests, self._reader.read(members), strict=True):
            try:
                if isinstance(data, InputError):
                    raise data
                yield request.index, self._decode_input(request, data)
            except InputError as error:
                rows[request.index] = self._make_row(
                    request, status=error.status.value, detail=error.detail
                )

    def _decode_input(self, request: ImageRequest, data: bytes) -> InpaintingInput:
        real = decode_image(data, self.config.limits).pixels
        if request.prompt.mask is None:
            return InpaintingInput(
                crop_to_cover(real, request.size),
                draw_mask(request.size, request.seed, self.config.masks),
            )
        uri, limits = request.prompt.mask, self.config.limits
        mask_file = (
            read_referenced(uri, self._fetcher)
            if "#row=" in uri
            else self._fetcher.fetch(uri, "", limits.max_bytes)
        )
        mask = decode_mask(mask_file, limits)
        if mask.size != real.size:
            raise InputError(
                Status.CORRUPT_IMAGE,
                f"its mask has the size {mask.size}, but the image has {real.size}",
            )
        mask = crop_to_cover(mask, request.size, is_mask=True)
        if not mask_fraction(mask):
            raise InputError(Status.CORRUPT_IMAGE, "its mask is empty: nothing would be altered")
        return InpaintingInput(crop_to_cover(real, request.size), mask)

    # -- The pipeline

    def _generate(
        self, requests: Sequence[ImageRequest], inputs: dict[int, InpaintingInput], rows: Rows
    ) -> Iterator[tuple[ImageRequest, GeneratedImage]]:
        """Yield the image of each request of a batch.

        The batch is halved when it does not fit into memory. After any other exception, its
        requests are tried one by one.
        """
        assert self._pipeline is not None
        if len(requests) > self.batch:
            parts = [
                requests[start : start + self.batch]
                for start in range(0, len(requests), self.batch)
            ]
        else:
            try:
                batch_inputs = [inputs[request.index] for request in requests] if inputs else []
                images = self._pipeline.make(
                    requests, batch_inputs, steps=self._steps, guidance=self._guidance
                )
            except Exception as error:
                parts = self._handle_failure(error, requests, rows)
            else:
                yield from zip(requests, images, strict=True)
                return
        # Outside of the exception handler, because the frames of the exception hold tensors.
        for part in parts:
            yield from self._generate(part, inputs, rows)

    def _handle_failure(
        self, error: Exception, requests: Sequence[ImageRequest], rows: Rows
    ) -> list[Sequence[ImageRequest]]:
        """Return the batches to try after a batch raised an exception."""
        if is_out_of_memory(error):
            self._halve_batch(len(requests), error)
            return [requests]
        if len(requests) > 1:
            return [[request] for request in requests]
        rows[requests[0].index] = self._make_row(
            requests[0], status=FAILED, detail=describe_error(error)
        )
        return []

    def _halve_batch(self, batch: int, error: Exception) -> None:
        if batch == 1:
            raise self._make_memory_error("not even a single image fits", error) from error
        self.batch = max(1, batch // 2)
        _release_memory()

    # -- Files and rows

    def _write(
        self, request: ImageRequest, generated: GeneratedImage, source: InpaintingInput | None
    ) -> dict[str, Any]:
        if generated.blanked:
            detail = "the pipeline's safety checker replaced the image with a black one"
            return self._make_row(request, blanked=True, status=BLANKED, detail=detail)
        image, mask_columns = generated.image, dict[str, Any]()
        if source is not None:
            image = paste_inside(source.real, image, source.mask) if self.config.paste else image
            mask_columns = self._write_mask(request, source.mask)
        mark: Mark = (
            "trainedAlgorithmicMedia" if source is None else "compositeWithTrainedAlgorithmicMedia"
        )
        data = encode(image, request.style, mark if self.config.mark else None)
        self.store.write(request.image_path, data)
        return self._make_row(request, uri=request.image_path, width=image.width, height=image.height,
                              sha256=hashlib.sha256(data).hexdigest(), **mask_columns)  # fmt: skip

    def _write_mask(self, request: ImageRequest, mask: Image.Image) -> dict[str, Any]:
        mask = binarize(mask)
        file = io.BytesIO()
        mask.save(file, "PNG")
        self.store.write(request.mask_path, file.getvalue())
        return {"mask": request.mask_path, "mask_share": mask_fraction(mask)}

    def _make_row(self, request: ImageRequest, **columns: Any) -> dict[str, Any]:
        """Make a row from the request, the settings of the job, and `columns`; the rest is null."""
        prompt, style = request.prompt, request.style
        request_columns = {
            "label": "fake", "prompt": prompt.text, "negative_prompt": prompt.negative, "prompt_id": prompt.id, "group": prompt.group,
            "split": prompt.split, "real_uri": prompt.image.uri if prompt.image else None, "index": request.index, "seed": request.seed,
            "generated_width": request.size[0], "generated_height": request.size[1], "format": style.format, "quality": style.quality,
            "subsampling": style.subsampling, "blanked": False, "status": OK,
        }  # fmt: skip
        row = dict.fromkeys(SCHEMA.names) | request_columns | self._common_columns | columns
        assert len(row) == len(SCHEMA.names), "a column that the schema does not have"
        return row

    def _make_memory_error(self, problem: str, error: Exception) -> ClusterError:
        return ClusterError(
            f"{self.card.name}: {problem} into the memory of the device {self.device} ({describe_error(error)})",
            hint="use a larger device, --set precision=bf16, or smaller sizes in another --out",
        )


def _release_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def crop_to_cover(image: Image.Image, size: Size, *, is_mask: bool = False) -> Image.Image:
    """Scale an image so that it covers `size`, and crop it around its centre.

    Args:
        image: The image.
        size: (width, height) of the result in pixels.
        is_mask: Whether to use the nearest pixel instead of Lanczos resampling.
    """
    return ImageOps.fit(
        image, size, Image.Resampling.NEAREST if is_mask else Image.Resampling.LANCZOS
    )


def binarize(mask: Image.Image) -> Image.Image:
    """Return a mask in mode L that is 255 for grey levels above 127, and 0 otherwise.

    OpenSDI reads masks in this way.
    """
    return mask.convert("L").point(lambda level: 255 if level > 127 else 0)


def draw_mask(size: Size, seed: int, bounds: RandomMaskConfig) -> Image.Image:
    """Draw a mask at random: a blob of overlapping ellipses, 255 inside and 0 outside.

    Blobs are drawn until one covers a fraction of the image within the bounds. After 40 blobs, the
    last one is returned.

    Args:
        size: (width, height) in pixels.
        seed: Seed of the image.
        bounds: Lowest and highest fraction of the image to cover.

    Returns:
        The mask.
    """
    rng = make_rng(seed, "mask")
    fraction = rng.uniform(bounds.least, bounds.most)
    mask = Image.new("L", size, 0)
    for _ in range(_MAX_TRIES):
        mask = _draw_blob(size, fraction, rng.random)
        if bounds.least <= mask_fraction(mask) <= bounds.most:
            break
    return mask


def mask_fraction(mask: Image.Image) -> float:
    """Return the fraction of the pixels of a mask that are not 0."""
    return 1 - mask.histogram()[0] / (mask.width * mask.height)


def _draw_blob(size: Size, fraction: float, uniform: Callable[[], float]) -> Image.Image:
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    count = _ELLIPSES[0] + int(uniform() * (_ELLIPSES[1] - _ELLIPSES[0] + 1))
    radius = (fraction * size[0] * size[1] / 3.14159 / 2) ** 0.5
    centre_x, centre_y = (side * (0.25 + 0.5 * uniform()) for side in size)
    for _ in range(count):
        x, y = centre_x + (uniform() - 0.5) * radius, centre_y + (uniform() - 0.5) * radius
        wide, high = radius * (0.6 + 0.8 * uniform()), radius * (0.6 + 0.8 * uniform())
        pen.ellipse((x - wide, y - high, x + wide, y + high), fill=255)
    return mask


def paste_inside(real: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the generated image inside the mask, and the real image outside.

    Args:
        real: The real image.
        generated: The generated image, of the same size.
        mask: The mask in mode L, 255 inside.
    """
    return Image.composite(generated.convert("RGB"), real.convert("RGB"), mask)
