"""A worker process of an endpoint: it holds all detectors, and answers the images that the HTTP
process sends through a socket.

One thread receives images, `decoders` threads have them decoded in child processes, and the main
thread scores what is decoded. `ray_app.serving.pool` starts it.
"""

import logging
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray_app.errors import TouchstoneError
from ray_app.serving import answers
from ray_app.serving.config import ServeConfig
from ray_app.serving.engine import (
    MAX_SILENT_IMAGES,
    EncodedAnswer,
    Engine,
    PendingImage,
    ScoreRequest,
    golden_image,
)
from ray_app.serving.frames import FrameSocket, WorkerFrame
from ray_app.serving.worker_log import FrameLogHandler

# How long an image waits for others that are being decoded. With two busy workers on two cores, 20 ms
# made batches that were a fifth empty.
COMPANY_S = 0.05
# The module runs as a program, and is then called __main__.
_log = logging.getLogger("ray_app.serving.worker")


class EndpointWorker:
    """Answer images from a socket until its other end closes.

    Args:
        engine: Scores the images.
        connection: The socket.
        decoders: Images that are decoded at a time.
    """

    def __init__(self, engine: Engine, connection: FrameSocket, decoders: int) -> None:
        self._engine, self._connection = engine, connection
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        # An image with the number of its frame. None once the HTTP process has ended.
        self._decoded: queue.SimpleQueue[tuple[int, PendingImage] | None] = queue.SimpleQueue()
        # Images that have arrived, and images that are answered, since the start.
        self._taken = self._answered = 0

    def run(self) -> None:
        """Answer images. Returns when the HTTP process has ended."""
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        while batch := self._take_batch():
            answered = self._engine.answer([image for _, image in batch])
            self._answered += len(batch)
            for row, ((number, _), answer) in enumerate(zip(batch, answered, strict=True)):
                batch_images = len(batch) if row == 0 else 0
                self._connection.send(_answer_frame(number, answer, batch_images))
            if self._engine.silent_images >= MAX_SILENT_IMAGES:
                # The images are not the reason, but perhaps a device is.
                _log.error(
                    "no score for %d images in a row; the worker starts again",
                    self._engine.silent_images,
                )
                return
        self._decoders.shutdown(cancel_futures=True)

    def _take_batch(self) -> list[tuple[int, PendingImage]]:
        """Wait for a decoded image, and take all that are decoded by then. Take others that are
        being decoded too, since a batch costs the same however full it is.
        """
        batch: list[tuple[int, PendingImage]] = []
        until = math.inf
        while len(batch) < self._engine.slots:
            is_coming = len(batch) < self._taken - self._answered
            patience_s = max(until - time.monotonic(), 0.0) if is_coming else 0.0
            try:
                decoded = self._decoded.get(timeout=patience_s if batch else None)
            except queue.Empty:
                break
            if decoded is None:
                return []
            if not batch:
                until = time.monotonic() + COMPANY_S
            batch.append(decoded)
        return batch

    def _receive(self) -> None:
        while (frame := self._connection.receive()) is not None:
            self._taken += 1
            self._decoders.submit(self._decode, frame)
        self._decoded.put(None)

    def _decode(self, frame: WorkerFrame) -> None:
        number, given = frame.header["number"], frame.header["request"]
        data = golden_image() if given.pop("is_golden", False) else frame.data
        request = ScoreRequest(data, **given | {"detectors": tuple(given["detectors"])})
        self._decoded.put((number, self._engine.decode(request)))


def _answer_frame(number: int, answer: EncodedAnswer, batch_images: int) -> WorkerFrame:
    """Return the frame of an answer. The first answer of a batch has the number of its images."""
    header: dict[str, Any] = {
        "number": number,
        "status": answer.status,
        "ensemble": answer.ensemble,
        "verdict": answer.verdict,
        "refused": answer.refused,
        "timings": answer.timings and answer.timings.model_dump(),
        "batch_images": batch_images,
    }
    return WorkerFrame(header, answer.body)


def _describe(engine: Engine) -> WorkerFrame:
    """Return what the HTTP process has to know of the detectors."""
    served = engine.served
    return WorkerFrame(
        {
            "slots": engine.slots,
            "ensembles": [info.model_dump() for info in answers.ensemble_infos(served)],
            "optional": list(served.plan.optional),
            "detectors": [info.model_dump() for info in answers.detector_infos(served.plan)],
        }
    )


def main(descriptor: int) -> int:
    """Load the detectors of the config that comes first, and answer images.

    Args:
        descriptor: File descriptor of the socket.

    Returns:
        The exit code.
    """
    # Ctrl-C reaches all processes of a terminal. The HTTP process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = FrameSocket(socket.socket(fileno=descriptor))
    first = connection.receive()
    if first is None:
        return 0
    # Warnings of other packages, and records of this one from the endpoint's level on.
    logging.basicConfig(handlers=[FrameLogHandler(connection)])
    logging.getLogger("ray_app").setLevel(first.header["log_level"])
    config = ServeConfig.model_validate(first.header["config"])
    try:
        engine = Engine(config)
    except TouchstoneError as error:
        failure = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        connection.send(WorkerFrame({"failure": failure}))
        return 1
    description = _describe(engine)
    _log.info("process %d has loaded %s", os.getpid(), ", ".join(engine.served.points))
    connection.send(description)
    try:
        EndpointWorker(engine, connection, config.decoders).run()
    except ConnectionError:
        pass
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    # Threads that still decode must not delay the end.
    os._exit(main(int(sys.argv[1])))
