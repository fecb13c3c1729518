"""How prepared pixels come to a GPU: through pinned buffers that are used again (`PinnedRing`,
`DeviceUpload`), in batches as large as pays (`measured_batches`, `paying_batch`).

Sizes are tried by doubling, as far as memory allows, and the smallest is taken whose rate is near
the best one's. What a GPU does here is done by an object that a test may replace: `DeviceMeter`,
and what makes buffers and events.
"""

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ray_app.detectors.private_api import return_freed_memory
from ray_app.errors import ConfigError

# buffers of one size: one is being copied to the GPU while the next batch is written into the other
RING_DEPTH = 2
NEAR = 0.05  # a smaller batch is taken where the best one is faster by no more than this share
# of a GPU's memory, which two pools may share: a batch that takes more is for nobody, unless it is
# the smallest
MOST_MEMORY = 0.4
LONGEST_S = 0.5  # a batch that takes longer is not doubled: it has long been worth its launch
ROUNDS = 3  # passes that are timed, after one that is not: it loads kernels


class PinnedRing:
    """Host memory from which a GPU copies by itself, kept and used again: to pin it anew takes
    longer than to copy from it.

    `allocate` makes a flat uint8 tensor of so many bytes, `event` what knows when a copy has ended:
    `record()`, `synchronize()`, which returns at once where nothing was recorded. Buffers have a
    power of two of bytes, so that batches of many shapes share a few.
    """

    def __init__(
        self,
        allocate: Callable[[int], torch.Tensor],
        event: Callable[[], Any],
        depth: int = RING_DEPTH,
    ) -> None:
        self._allocate, self._event, self._depth = allocate, event, depth
        self._rings: dict[int, list[tuple[torch.Tensor, Any]]] = {}
        self._turns: dict[int, int] = {}

    def copied(
        self, source: torch.Tensor, copy: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What `copy` makes of `source` in pinned memory; it may return before the copy has ended.
        A buffer is written again only then.
        """
        size = 1 << max(source.nbytes - 1, 0).bit_length()
        ring = self._rings.setdefault(size, [])
        turn = self._turns.get(size, 0)
        self._turns[size] = (turn + 1) % self._depth
        if len(ring) <= turn:
            ring.append((self._allocate(size), self._event()))
        buffer, done = ring[turn]
        done.synchronize()
        pinned = buffer[: source.nbytes].view(source.dtype).view(source.shape)
        pinned.copy_(source)
        made = copy(pinned)
        done.record()
        return made


class DeviceUpload:
    """Tensors of the host → the same on a GPU, beside what it computes: `upload(tensor)` does not
    wait for the copy to end.
    """

    def __init__(self, device: str, ring: PinnedRing | None = None) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ring = ring or PinnedRing(
            lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event
        )

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the GPU, for what is computed there from now on."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = self._ring.copied(
                tensor, lambda pinned: pinned.to(self._device, non_blocking=True)
            )
        computing.wait_stream(self._stream)
        moved.record_stream(computing)
        return moved


class DeviceMeter:
    """Seconds and memory of work on one device. On a CPU the memory is not measured: 0."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall seconds from an idle device until all of the work is done."""
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begun

    def peak_share(self) -> float:
        """The largest share of the device's memory that was taken by tensors since the last call."""
        if not self._is_cuda:
            return 0.0
        share = (
            torch.cuda.max_memory_allocated(self._device)
            / torch.cuda.get_device_properties(self._device).total_memory
        )
        torch.cuda.reset_peak_memory_stats(self._device)
        return share

    def forget(self) -> None:
        """Give back what freed tensors had."""
        if self._is_cuda:
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize(self._device)


class MeasuredBatch(NamedTuple):
    """A batch of so many images: images per second, and the share of the device's memory that it
    took.
    """

    size: int
    rate: float
    memory_share: float


def batch_sizes(slots: int, most: int) -> list[int]:
    """What is tried, ascending: a decoded batch of `slots` in whole parts, down to an eighth of it,
    and several of them, up to `most`.
    """
    parts = [slots // part for part in (8, 4, 2, 1) if slots % part == 0]
    while 2 * parts[-1] <= most:
        parts.append(2 * parts[-1])
    return parts


def measured_batches(
    sizes: Iterable[int], run: Callable[[int], object], meter: DeviceMeter
) -> list[MeasuredBatch]:
    """Run batches of these sizes, ascending, until one is too much: for memory, with an error or
    beyond `MOST_MEMORY`, or for a kernel that indexes with 32 bits. Raises where not even the
    smallest runs.
    """
    measured: list[MeasuredBatch] = []
    meter.peak_share()
    for size in sizes:
        try:
            run(size)
            seconds = min(meter.seconds(lambda size=size: run(size)) for _ in range(ROUNDS))  # type: ignore[misc]
        except RuntimeError:  # of which OutOfMemoryError is one
            if not measured:
                raise
            break
        share = meter.peak_share()
        if share > MOST_MEMORY and measured:
            break
        measured.append(MeasuredBatch(size, size / seconds, share))
        if seconds > LONGEST_S:
            break
    meter.forget()
    return measured


def paying_batch(measured: Sequence[MeasuredBatch], pieces: Sequence[int] = ()) -> int:
    """The smallest size whose rate is within 5 % of the best. `pieces`: how many images come
    together, whose last batch is filled up with nothing; none: as many as one likes.
    """
    rates: Mapping[int, float] = {
        one.size: one.rate * _filled(one.size, pieces) for one in measured
    }
    return min(size for size, rate in rates.items() if rate >= (1 - NEAR) * max(rates.values()))


def _filled(size: int, pieces: Sequence[int]) -> float:
    """The share of the places in batches of this size that images have."""
    return sum(pieces) / sum(-(-count // size) * size for count in pieces) if pieces else 1.0


def found_device(device: str) -> str:
    """The device that is meant: of `auto` a GPU where this process has one, else the CPU. Raises
    ConfigError for what is no device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"device {device!r} is none that PyTorch knows: auto, cpu, cuda or cuda:0"
        ) from None
    return device


def release_memory(device: str) -> None:
    """Return the memory of detectors that are not used any more to the device and the system."""
    gc.collect()  # Hooks of networks refer to each other.
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    return_freed_memory()
