"""`CallableProcess`: a callable, asked in a process of its own, by another interpreter where the
card names one.

A crash, a hang, an exception or a wrong answer costs the images that it met, one by one; a process
that cannot start is a DetectorError. No torch here: the driver of a run asks `require_startable`
before anything is listed.
"""

import json
import math
import os
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
MOST_REPORT_BYTES = 64 * 1024
_MOST_SAID = 300  # characters of what a detector says of its failure
_READY_S = 60.0  # until the bare interpreter is up

# What an interpreter and its libraries need of our environment. Tokens and keys stay here, and so
# does our own path of modules.
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY",
         "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME", "SSL_CERT_FILE", "http_proxy", "https_proxy",
         "no_proxy")  # fmt: skip
_KEPT_GROUPS = ("CUDA_", "NVIDIA_")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class OpenedDetector(NamedTuple):
    """What a process says of its detector: all that decides its scores, and the libraries that it
    runs on.

    `max_side_px`: the largest side of an image that it takes, None = any.
    """

    identity: Mapping[str, Any]
    libraries: Mapping[str, str]
    max_side_px: int | None


class Found(NamedTuple):
    """What a detector says of an image: log-odds of fake, and of one that localizes where: (h, w)
    uint8, 255 = surely altered.
    """

    score: float
    mask: PixelArray | None


class CallableProcess(ChildProcess):
    """One callable, in memory of a child of its own. Any thread may ask; one at a time is answered.

    `identity`: what the card's detector was; another one is refused. None: whatever is there
    (`opened`).
    """

    def __init__(
        self, card: DetectorCard, identity: Mapping[str, Any] | None, device: str = "cpu"
    ) -> None:
        super().__init__()
        self._card, self._identity, self._device = card, identity, device
        self._settings = _settings_of(card)
        self._lock = threading.RLock()
        # seconds and peak bytes of the last batch in the child
        self.measured: tuple[float, int] | None = None
        self.hint: str | None = None  # what to do about the last answer that was of the wrong kind

    def open(self) -> OpenedDetector:
        """Start the child and load the detector. Raises DetectorError with a hint where it cannot
        be had, or is another one.
        """
        with self._lock, tempfile.TemporaryFile() as words:
            self._start(words)
            wanted = {**_named(self._card), "device": self._device, "offline": weights.is_offline()}
            answer = self._asked(wanted, (), (), self._settings.start_limit_s)
            if isinstance(answer, str):
                raise DetectorError(
                    f"{self._card.name}: its process {answer}{_last_of(words)}",
                    hint=self._how_to_see(),
                )
            said = answer[0]
            if "error" in said:
                self.close()
                last = str(said.get("trace", "")).strip().splitlines()
                raise DetectorError(
                    f"{self._card.name}: {said['error']}",
                    hint=said.get("hint") or self._how_to_see(last),
                )
            opened = OpenedDetector(
                said["identity"], said.get("libraries", {}), said.get("max_side_px")
            )
            if self._identity is not None and opened.identity != self._identity:
                self.close()
                raise DetectorError(
                    f"{self._card.name}: it is another detector by now: {'; '.join(_differences(self._identity, opened.identity))}",
                    hint=f"bring back what the card was written for, or write a new card: {add_command(self._card)}",
                )
            return opened

    def score(self, images: Sequence[PixelArray]) -> list[Found | str]:
        """Per image (height, width, 3) uint8 RGB what was found, or why nothing was. Raises
        DetectorError as `open`.

        A batch that fails is asked again image by image, each in a child that is started anew where
        the last one is gone.
        """
        with self._lock:
            found = self._scored(images)
            if isinstance(found, str):
                return (
                    [found]
                    if len(images) == 1
                    else [one for image in images for one in self.score([image])]
                )
            return found

    def _scored(self, images: Sequence[PixelArray]) -> list[Found | str] | str:
        if self.pid is None:
            self.open()
        limit_s = self._settings.limit_s
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        answer = self._asked(
            {"sizes": sizes},
            [np.ascontiguousarray(image).data.cast("B") for image in images],
            sizes,
            limit_s,
        )
        if isinstance(answer, str):
            return f"its process {answer}"
        said, given = answer
        if "error" in said:
            self.hint = said.get("hint", self.hint)
            return str(said["error"])[:_MOST_SAID]
        self.measured = float(said["seconds"]), int(said["peak_bytes"])
        return [self._in_log_odds(one) for one in given]

    def _in_log_odds(self, found: Found) -> Found | str:
        if not math.isfinite(found.score):
            return f"its score is {found.score}"
        if self._card.architecture.arguments.get("scores") != "probability":
            return found
        if not 0 <= found.score <= 1:
            self.hint = "say what it gives: --scores log-odds"
            return f"its score is {found.score:g}, and its card says that it is a probability"
        bounded = min(max(found.score, program.FEWEST), 1 - program.FEWEST)
        return found._replace(score=math.log(bounded) - math.log1p(-bounded))

    def _start(self, words: IO[bytes]) -> None:
        settings = self._settings
        try:
            is_ready = self._spawn(
                [settings.python, program.__file__],
                _environment(),
                READY,
                _READY_S,
                folder=Path(settings.folder),
                errors=words,
            )
        except OSError as error:
            raise DetectorError(
                f"{self._card.name}: no process of {settings.python} in {settings.folder}: {describe_error(error)}",
                hint=f"name a Python that is there: {add_command(self._card)}",
            ) from None
        if not is_ready:
            end = self._epitaph(self._child)
            raise DetectorError(
                f"{self._card.name}: {settings.python} {end}{_last_of(words)}",
                hint=self._how_to_see(),
            )

    def _asked(
        self,
        wanted: Mapping[str, Any],
        blobs: Sequence[bytes | memoryview],
        sizes: Sequence[tuple[int, int]],
        limit_s: float,
    ) -> tuple[dict[str, Any], list[Found]] | str:
        """What the child says, and gives of images of these sizes (width, height), scores as they
        are; or, in words, how it ended.
        """
        running, text = self._child, json.dumps({**wanted, "limit_s": limit_s}).encode()
        answer = None
        with self._exchange(limit_s) as (answers, deadline):
            self._send(pack_request(text, blobs))
            answer = _believed(answers, sizes)
        if deadline.has_passed:
            self.close()
            return f"took longer than {limit_s:g} s"
        return answer if answer is not None else self._epitaph(running)

    def _how_to_see(self, last: Sequence[str] = ()) -> str:
        where = (
            f" (in {last[-2].strip()})"
            if len(last) > 2 and last[-2].strip().startswith("File")
            else ""
        )
        name = self._card.architecture.name.partition(":")[0]
        return f"try it there{where}: cd {self._settings.folder} && {self._settings.python} -c 'import {name}'"


def require_startable(card: DetectorCard) -> None:
    """Whether the card's interpreter runs here and has the package; loads neither it nor weights.
    Raises DetectorError with a hint.
    """
    with CallableProcess(card, None) as process, tempfile.TemporaryFile() as words:
        process._start(words)
        answer = process._asked({**_named(card), "probe": True}, (), (), _READY_S)
        if isinstance(answer, str):
            raise DetectorError(
                f"{card.name}: its process {answer}{_last_of(words)}", hint=process._how_to_see()
            )
        if "error" in answer[0]:
            raise DetectorError(
                f"{card.name}: {answer[0]['error']}",
                hint=answer[0].get("hint") or process._how_to_see(),
            )


def read_identity(card: DetectorCard, folder: Path) -> dict[str, Any]:
    """What the card's detector was when its card was written: the file that stands where others
    have weights. Raises DetectorError.
    """
    path = folder / str(card.weights.config)
    try:
        identity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"{card.name}: {path}: {describe_error(error)}",
            hint=f"write the card anew: {add_command(card)}",
        ) from None
    return identity


def add_command(card: DetectorCard) -> str:
    """The command that writes such a card."""
    settings = _settings_of(card)
    return f"touchstone detectors add {card.family}:{card.architecture.name} --python {settings.python} --folder {settings.folder}"


def _named(card: DetectorCard) -> dict[str, Any]:
    given = card.architecture.arguments
    return {
        "target": card.architecture.name,
        "images": given.get("images", "arrays"),
        "scores": given.get("scores", "log-odds"),
        "offline": True,
    }


def _settings_of(card: DetectorCard) -> CallableSettings:
    if card.process is None:
        raise DetectorError(
            f"{card.name}: its card does not say which Python it runs in",
            hint=f"touchstone detectors add {card.family}:… --python …",
        )
    return card.process


def _believed(
    answers: Any, sizes: Sequence[tuple[int, int]]
) -> tuple[dict[str, Any], list[Found]] | None:
    """An answer that can be one about images of these sizes (width, height); None where the child
    ended first. Raises ValueError.
    """
    said_bytes, number_bytes = ANSWER.unpack(answers.read(ANSWER.size))
    most = sum(16 + max(width * height, program.MOST_SQUARE**2) for width, height in sizes)
    if said_bytes > MOST_REPORT_BYTES or number_bytes > most:
        raise ValueError("no answer to this")
    text, numbers = answers.read(said_bytes), answers.read(number_bytes)
    if len(text) < said_bytes or len(numbers) < number_bytes:
        return None
    said, count, at = json.loads(text), len(sizes), 16 * len(sizes)
    if not isinstance(said, dict):
        raise ValueError("no answer to this")
    if "error" in said or not sizes:
        return said, []
    found, shapes = (
        list[Found](),
        np.frombuffer(numbers, np.uint32, 2 * count, 8 * count).reshape(count, 2).tolist(),
    )
    for score, (height, width) in zip(
        np.frombuffer(numbers, np.float64, count).tolist(), shapes, strict=True
    ):
        mask = np.frombuffer(numbers[at : at + height * width], np.uint8).reshape(height, width)
        found.append(Found(score, mask if height else None))
        at += height * width
    if at != number_bytes:
        raise ValueError("no answer to this")
    return said, found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) != now.get(key):
            then, today = (json.dumps(one.get(key), sort_keys=True)[:160] for one in (before, now))
            found.append(f"{key} was {then}, is {today}")
    return found


def _last_of(words: IO[bytes]) -> str:
    """The last line that a process wrote to stderr."""
    words.seek(0, os.SEEK_END)
    words.seek(max(words.tell() - 4096, 0))
    lines = words.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:_MOST_SAID]}" if lines else ""


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_GROUPS)
    }
    return kept | {SAFE_PATH: "1"} | (_OFFLINE if weights.is_offline() else {})
