"""Move prepared pixels to a GPU, and choose how many images a forward pass has.

`DeviceUpload` copies tensors to a GPU through reused pinned buffers (`PinnedRing`).
`measure_batches` runs batches of increasing size, as far as memory allows, and `choose_batch_size`
chooses the smallest size whose rate is near the best rate. Tests may replace the objects that use
the GPU: `DeviceMeter`, and the functions that create buffers and events.
"""

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ray_app.detectors.private_api import return_freed_memory
from ray_app.errors import ConfigError

# Buffers of one size. While one is being copied to the GPU, the next batch is written to the other.
RING_DEPTH = 2
# A smaller batch is chosen if the best one is faster by at most this fraction.
NEAR = 0.05
# Maximum fraction of a GPU's memory, which two pools may share. A batch that takes more is never
# chosen, unless it is the smallest.
MAX_MEMORY = 0.4
# A batch that takes longer is not doubled, since the cost of its launch is negligible.
MAX_BATCH_S = 0.5
ROUNDS = 3  # Passes that are timed. An untimed pass before them loads kernels.

# A process with another id was forked from the one that imported torch.
_FIRST_PID = os.getpid()


class PinnedRing:
    """Reusable buffers of pinned host memory, from which a GPU copies asynchronously.

    Buffers are reused, because pinning memory takes longer than copying from it. The size of a
    buffer is a power of two, so that batches of many shapes share a few buffers. `allocate` returns
    a flat uint8 tensor of a number of bytes. `event` returns an event that marks the end of a copy,
    such as a `torch.cuda.Event`, whose `synchronize()` must return immediately if nothing was
    recorded. There are `depth` buffers of each size.
    """

    def __init__(
        self,
        allocate: Callable[[int], torch.Tensor],
        event: Callable[[], Any],
        depth: int = RING_DEPTH,
    ) -> None:
        self._allocate, self._event, self._depth = allocate, event, depth
        self._rings: dict[int, list[tuple[torch.Tensor, Any]]] = {}
        self._next_buffer: dict[int, int] = {}

    def copy_through(
        self, source: torch.Tensor, copy: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Copy a tensor into a pinned buffer, call `copy` with that buffer, and return the result.

        `copy` may return before the copy to the GPU has ended. The buffer is overwritten only after
        this copy has ended.
        """
        size = 1 << max(source.nbytes - 1, 0).bit_length()
        ring = self._rings.setdefault(size, [])
        turn = self._next_buffer.get(size, 0)
        self._next_buffer[size] = (turn + 1) % self._depth
        if len(ring) <= turn:
            ring.append((self._allocate(size), self._event()))
        buffer, event = ring[turn]
        event.synchronize()
        pinned = buffer[: source.nbytes].view(source.dtype).view(source.shape)
        pinned.copy_(source)
        result = copy(pinned)
        event.record()
        return result


class DeviceUpload:
    """Copy tensors from host memory to a GPU while the GPU computes.

    Call the object with a tensor. The call does not wait until the tensor is copied.
    """

    def __init__(self, device: str, ring: PinnedRing | None = None) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ring = ring or PinnedRing(
            lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event
        )

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the GPU. Later work on the current CUDA stream waits for the copy."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = self._ring.copy_through(
                tensor, lambda pinned: pinned.to(self._device, non_blocking=True)
            )
        computing.wait_stream(self._stream)
        moved.record_stream(computing)
        return moved


class DeviceMeter:
    """Measure the time and memory of work on one device. On a CPU, the memory is always 0."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        """Wait until the device is idle, run `work`, and return the seconds that `work` took.

        The time ends when the device is idle again.
        """
        self._synchronize()
        start = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - start

    def measure_peak_fraction(self) -> float:
        """Return the peak memory of tensors since the last call, as a fraction of device memory."""
        if not self._is_cuda:
            return 0.0
        fraction = (
            torch.cuda.max_memory_allocated(self._device)
            / torch.cuda.get_device_properties(self._device).total_memory
        )
        torch.cuda.reset_peak_memory_stats(self._device)
        return fraction

    def forget(self) -> None:
        """Release the memory that PyTorch caches after tensors are freed."""
        if self._is_cuda:
            torch.cuda.empty_cache()

    def _synchronize(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize(self._device)


class MeasuredBatch(NamedTuple):
    """Images per second and peak memory of a detector's forward pass at one batch size.

    The memory is a fraction of the device's memory.
    """

    size: int
    rate: float
    memory_share: float


def batch_sizes(slots: int, max_size: int) -> list[int]:
    """Return the batch sizes for `measure_batches` to measure, ascending.

    They are an eighth, a quarter, and a half of `slots`, as far as these are integers. Then come
    `slots` and its multiples by 2, 4, 8, …, up to `max_size`. For 64 and 256, the result is 8, 16,
    32, 64, 128, and 256.
    """
    parts = [slots // part for part in (8, 4, 2, 1) if slots % part == 0]
    while 2 * parts[-1] <= max_size:
        parts.append(2 * parts[-1])
    return parts


def measure_batches(
    sizes: Iterable[int], run: Callable[[int], object], meter: DeviceMeter
) -> list[MeasuredBatch]:
    """Measure the speed of a forward pass with batches of increasing size.

    Measuring stops at a batch that is too large, or after one that takes over `MAX_BATCH_S`
    seconds. A batch is too large if it takes more than the fraction `MAX_MEMORY` of the device's
    memory. It is also too large if memory is exhausted, or if a kernel cannot index it with 32
    bits. Sizes ascend. A batch that is too large has no measurement, unless it has the smallest
    size. RuntimeError is raised if even the smallest batch fails.
    """
    measurements: list[MeasuredBatch] = []
    meter.measure_peak_fraction()
    for size in sizes:
        try:
            run(size)
            seconds = min(meter.seconds(lambda size=size: run(size)) for _ in range(ROUNDS))  # type: ignore[misc]
        except RuntimeError:  # Also OutOfMemoryError, which is a subclass.
            if not measurements:
                raise
            break
        memory_fraction = meter.measure_peak_fraction()
        if memory_fraction > MAX_MEMORY and measurements:
            break
        measurements.append(MeasuredBatch(size, size / seconds, memory_fraction))
        if seconds > MAX_BATCH_S:
            break
    meter.forget()
    return measurements


def choose_batch_size(measurements: Sequence[MeasuredBatch], pieces: Sequence[int] = ()) -> int:
    """Return the smallest batch size whose rate is within 5 % of the best rate.

    `pieces` are typical numbers of images that are scored together. Each is split into batches, and
    padding in the last batch lowers the rate.
    """
    rates: Mapping[int, float] = {
        measurement.size: measurement.rate * _compute_fill(measurement.size, pieces)
        for measurement in measurements
    }
    return min(size for size, rate in rates.items() if rate >= (1 - NEAR) * max(rates.values()))


def _compute_fill(size: int, pieces: Sequence[int]) -> float:
    """Return the fraction of the slots in batches of this size that have an image."""
    return sum(pieces) / sum(-(-count // size) * size for count in pieces) if pieces else 1.0


def resolve_device(device: str) -> str:
    """Return the name of a device, resolving `auto` to a GPU if this process has one, else the CPU.

    Raises ConfigError if PyTorch does not know the device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"device must be auto, cpu, cuda, or an indexed device such as cuda:0, got {device!r}"
        ) from None
    return device


def limit_threads_after_fork() -> None:
    """Limit torch to one thread in a forked process, as a DataLoader does in its workers.

    A fork does not copy the threads of OpenMP, and an operation would wait for them permanently.
    """
    if os.getpid() != _FIRST_PID:
        torch.set_num_threads(1)


def release_memory(device: str) -> None:
    """Release the memory of deleted detectors to the device and to the operating system."""
    gc.collect()  # Hooks of networks refer to each other.
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    return_freed_memory()
