"""Run a callable in a separate process, possibly with another interpreter (`CallableProcess`).

A callable is Python code of a user that works as a detector. If a batch ends in a crash, a hang, an
exception, or an invalid answer, the batch is repeated image by image. Only images that also fail by
themselves get no score. If a process cannot start, a DetectorError is raised.

The module does not import torch, because the driver (the main process) of a scoring run calls
`require_startable` at its start.
"""

import json
import math
import os
import shlex
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.child_messages import ANSWER, READY, pack_request
from ray_app.child_process import ChildProcess
from ray_app.detectors import weights
from ray_app.detectors.callables import child as program
from ray_app.detectors.card import DetectorCard
from ray_app.detectors.card_sections import CallableSettings
from ray_app.errors import DetectorError, describe_error
from ray_app.import_path import SAFE_PATH

PixelArray = npt.NDArray[np.uint8]
MAX_REPORT_BYTES = 64 * 1024
_MAX_ERROR_CHARS = 300  # Length of an error message from the callable.
_READY_S = 60.0  # Maximum time until the interpreter is ready.

# Environment variables that the interpreter and its libraries need. Tokens and keys are not passed
# on, nor is Touchstone's own module path.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY",
         "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME", "SSL_CERT_FILE", "http_proxy", "https_proxy",
         "no_proxy")  # fmt: skip
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class OpenedDetector(NamedTuple):
    """Report of the process of a callable after it has loaded the callable.

    Attributes:
        identity: Everything that affects the callable's scores: digests of its source and weight
            files, and versions of its package and of Python.
        max_side_px: Maximum side of an image that the callable takes, in pixels. None means no
            limit.
        takes_device: Whether the callable has a parameter `device`.
    """

    identity: Mapping[str, Any]
    libraries: Mapping[str, str]
    max_side_px: int | None
    takes_device: bool


class CallableScore(NamedTuple):
    """Log-odds of fake that a callable returned for an image, and its mask.

    The mask is (h, w) uint8, 255 = certainly altered. None if the callable returned no mask.
    """

    score: float
    mask: PixelArray | None


class CallableProcess(ChildProcess):
    """A user's Python callable that scores images in a child process.

    Any thread may call the methods; calls run one after the other. If the callable's identity is
    not the expected one from `read_identity`, `open` raises DetectorError. None accepts any
    identity. The device is passed on if the callable has a parameter `device`.

    Attributes:
        measured: Seconds that the last batch took, and peak memory of the child in bytes. None
            before the first batch.
        hint: Instruction for the user if the callable returned an output of the wrong kind, or
            None.
    """

    def __init__(
        self, card: DetectorCard, identity: Mapping[str, Any] | None, device: str = "cpu"
    ) -> None:
        super().__init__()
        self._card, self._identity, self._device = card, identity, device
        self._settings = _require_settings(card)
        self._lock = threading.RLock()
        self.measured: tuple[float, int] | None = None
        self.hint: str | None = None

    def open(self) -> OpenedDetector:
        """Start the child process and load the callable in it.

        Raises DetectorError with a hint if that fails, or the callable's identity is not the
        expected one.
        """
        with self._lock, tempfile.TemporaryFile() as errors:
            self._start(errors)
            request = {
                **_describe_callable(self._card),
                "device": self._device,
                "offline": weights.is_offline(),
            }
            answer = self._exchange_messages(request, (), (), self._settings.start_limit_s)
            if isinstance(answer, str):
                raise DetectorError(
                    f"{self._card.name}: its process {answer}{_read_last_line(errors)}",
                    hint=self._reproduce_hint(),
                )
            report = answer[0]
            if "error" in report:
                self.close()
                trace_lines = str(report.get("trace", "")).strip().splitlines()
                raise DetectorError(
                    f"{self._card.name}: {report['error']}",
                    hint=report.get("hint") or self._reproduce_hint(trace_lines),
                )
            opened = OpenedDetector(
                report["identity"],
                report.get("libraries", {}),
                report.get("max_side_px"),
                bool(report.get("takes_device")),
            )
            if self._identity is not None and opened.identity != self._identity:
                self.close()
                raise DetectorError(
                    f"{self._card.name}: the detector has changed: {'; '.join(_differences(self._identity, opened.identity))}",
                    hint=f"restore the detector that the card was written for, or write a new card: {add_command(self._card)}",
                )
            return opened

    def score(self, images: Sequence[PixelArray]) -> list[CallableScore | str]:
        """Score images with the callable.

        A batch that fails is repeated image by image. If the child process is not running, it is
        started with `open`. Images are (height, width, 3) uint8 RGB. The result has a text with the
        reason for an image without a score.
        """
        with self._lock:
            outputs = self._score_batch(images)
            if isinstance(outputs, str):
                return (
                    [outputs]
                    if len(images) == 1
                    else [output for image in images for output in self.score([image])]
                )
            return outputs

    def _score_batch(self, images: Sequence[PixelArray]) -> list[CallableScore | str] | str:
        if self.pid is None:
            self.open()
        limit_s = self._settings.limit_s
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        answer = self._exchange_messages(
            {"sizes": sizes},
            [np.ascontiguousarray(image).data.cast("B") for image in images],
            sizes,
            limit_s,
        )
        if isinstance(answer, str):
            return f"its process {answer}"
        report, outputs = answer
        if "error" in report:
            self.hint = report.get("hint", self.hint)
            return str(report["error"])[:_MAX_ERROR_CHARS]
        self.measured = float(report["seconds"]), int(report["peak_bytes"])
        return [self._to_log_odds(output) for output in outputs]

    def _to_log_odds(self, output: CallableScore) -> CallableScore | str:
        if not math.isfinite(output.score):
            return f"its score is {output.score}"
        if self._card.architecture.arguments.get("scores") != "probability":
            return output
        if not 0 <= output.score <= 1:
            self.hint = "set the meaning of its scores: --scores log-odds"
            return (
                f"its score is {output.score:g}, but the card states that scores are probabilities"
            )
        probability = min(max(output.score, program.MIN_PROBABILITY), 1 - program.MIN_PROBABILITY)
        return output._replace(score=math.log(probability) - math.log1p(-probability))

    def _start(self, errors: IO[bytes]) -> None:
        settings = self._settings
        try:
            is_ready = self._spawn(
                [settings.python, program.__file__],
                _environment(),
                READY,
                _READY_S,
                folder=Path(settings.folder),
                errors=errors,
            )
        except OSError as error:
            raise DetectorError(
                f"{self._card.name}: cannot run {settings.python} in {settings.folder}: {describe_error(error)}",
                hint=f"use a Python that exists: {add_command(self._card)}",
            ) from None
        if not is_ready:
            cause = self._describe_exit(self._child)
            raise DetectorError(
                f"{self._card.name}: {settings.python} {cause}{_read_last_line(errors)}",
                hint=self._reproduce_hint(),
            )

    def _exchange_messages(
        self,
        request: Mapping[str, Any],
        blobs: Sequence[bytes | memoryview],
        sizes: Sequence[tuple[int, int]],
        limit_s: float,
    ) -> tuple[dict[str, Any], list[CallableScore]] | str:
        """Send a request and return the answer's JSON and outputs, or how the child ended.

        Sizes are (width, height) of the images, empty if the answer has no scores.
        """
        child, text = self._child, json.dumps({**request, "limit_s": limit_s}).encode()
        answer = None
        with self._exchange(limit_s) as (answers, deadline):
            self._send(pack_request(text, blobs))
            answer = _read_answer(answers, sizes)
        if deadline.has_passed:
            self.close()
            return f"took longer than {limit_s:g} s"
        return answer if answer is not None else self._describe_exit(child)

    def _reproduce_hint(self, trace_lines: Sequence[str] = ()) -> str:
        location = (
            f" (in {trace_lines[-2].strip()})"
            if len(trace_lines) > 2 and trace_lines[-2].strip().startswith("File")
            else ""
        )
        name = self._card.architecture.name.partition(":")[0]
        return f"reproduce it{location}: cd {self._settings.folder} && {self._settings.python} -c 'import {name}'"


def require_startable(card: DetectorCard) -> None:
    """Check that the process of a callable can start on this machine.

    The card's Python interpreter must run and find the module of the callable. The module and its
    weights are not loaded. Raises DetectorError with a hint if the check fails.
    """
    with CallableProcess(card, None) as process, tempfile.TemporaryFile() as errors:
        process._start(errors)
        answer = process._exchange_messages(
            {**_describe_callable(card), "probe": True}, (), (), _READY_S
        )
        if isinstance(answer, str):
            raise DetectorError(
                f"{card.name}: its process {answer}{_read_last_line(errors)}",
                hint=process._reproduce_hint(),
            )
        if "error" in answer[0]:
            raise DetectorError(
                f"{card.name}: {answer[0]['error']}",
                hint=answer[0].get("hint") or process._reproduce_hint(),
            )


def require_device(card: DetectorCard, device: str) -> None:
    """Raise DetectorError if a callable cannot run on the device that the user chose.

    A callable without a parameter `device` runs where its own code says. Only "auto" and "cpu"
    allow that.
    """
    if card.process is not None and not card.process.takes_device and device not in ("auto", "cpu"):
        raise DetectorError(
            f"{card.name}: device {device} was chosen, but {card.architecture.name} has no parameter `device`",
            hint=f"choose device cpu, or add the parameter and write the card again: {add_command(card)}",
        )


def read_identity(card: DetectorCard, folder: Path) -> dict[str, Any]:
    """Read the identity that a callable had when its card was written.

    The identity is everything that affects the callable's scores, such as digests of its source. It
    is in the JSON file that the card names as `weights.config`. `folder` is the folder of this
    file. Raises DetectorError if the file is unreadable.
    """
    path = folder / str(card.weights.config)
    try:
        identity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"{card.name}: {path}: {describe_error(error)}",
            hint=f"write the card again: {add_command(card)}",
        ) from None
    return identity


def add_command(card: DetectorCard) -> str:
    """Return the shell command that writes the card of a callable again, for hints to the user.

    The user needs it, for example, if the callable has changed since its card was written. The
    options repeat what the card states.
    """
    settings, arguments = _require_settings(card), card.architecture.arguments
    options = {
        "--as": card.name,
        "--python": settings.python,
        "--folder": settings.folder,
        "--scores": arguments.get("scores", "log-odds"),
        "--pictures": arguments.get("images", "arrays"),
        "--limit-s": f"{settings.limit_s:g}",
        "--licence": card.licence if card.terms != "none-stated" else None,
    }
    parts = [f"{name} {shlex.quote(value)}" for name, value in options.items() if value]
    return f"touchstone detectors add {card.family}:{card.architecture.name} {' '.join(parts)}"


def _describe_callable(card: DetectorCard) -> dict[str, Any]:
    arguments = card.architecture.arguments
    return {
        "target": card.architecture.name,
        "images": arguments.get("images", "arrays"),
        "scores": arguments.get("scores", "log-odds"),
        "offline": True,
    }


def _require_settings(card: DetectorCard) -> CallableSettings:
    if card.process is None:
        raise DetectorError(
            f"{card.name}: the card has no `process` section",
            hint=f"write the card with touchstone detectors add {card.family}:… --python …",
        )
    return card.process


def _read_answer(
    answers: Any, sizes: Sequence[tuple[int, int]]
) -> tuple[dict[str, Any], list[CallableScore]] | None:
    """Read and validate an answer about images of these sizes (width, height).

    Returns None if the child exits first. Raises ValueError if the answer is invalid.
    """
    report_bytes, data_bytes = ANSWER.unpack(answers.read(ANSWER.size))
    max_bytes = sum(16 + max(width * height, program.MAX_SQUARE_PX**2) for width, height in sizes)
    if report_bytes > MAX_REPORT_BYTES or data_bytes > max_bytes:
        raise ValueError("invalid answer")
    text, data = answers.read(report_bytes), answers.read(data_bytes)
    if len(text) < report_bytes or len(data) < data_bytes:
        return None
    report, count, offset = json.loads(text), len(sizes), 16 * len(sizes)
    if not isinstance(report, dict):
        raise ValueError("invalid answer")
    if "error" in report or not sizes:
        return report, []
    outputs, shapes = (
        list[CallableScore](),
        np.frombuffer(data, np.uint32, 2 * count, 8 * count).reshape(count, 2).tolist(),
    )
    for score, (height, width) in zip(
        np.frombuffer(data, np.float64, count).tolist(), shapes, strict=True
    ):
        mask = np.frombuffer(data[offset : offset + height * width], np.uint8).reshape(
            height, width
        )
        outputs.append(CallableScore(score, mask if height else None))
        offset += height * width
    if offset != data_bytes:
        raise ValueError("invalid answer")
    return report, outputs


def _differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    differences = []
    for key in dict.fromkeys([*expected, *actual]):
        if expected.get(key) != actual.get(key):
            old, new = (
                json.dumps(identity.get(key), sort_keys=True)[:160]
                for identity in (expected, actual)
            )
            differences.append(f"{key} was {old}, is {new}")
    return differences


def _read_last_line(errors: IO[bytes]) -> str:
    """Return the last line that a process wrote to stderr, after a colon, or an empty string."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(errors.tell() - 4096, 0))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:_MAX_ERROR_CHARS]}" if lines else ""


def _environment() -> dict[str, str]:
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    return passed_on | {SAFE_PATH: "1"} | (_OFFLINE if weights.is_offline() else {})
