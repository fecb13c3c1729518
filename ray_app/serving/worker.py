"""Run a worker process of an endpoint.

The worker loads all detectors, and answers the images that the HTTP process sends through a socket.
One thread receives images. Other threads pass them to child processes, which decode them. The main
thread scores the decoded images. `ray_app.serving.pool` starts the worker.
"""

import logging
import math
import os
import pickle
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
from ray_app.serving.ensembles import EnsemblePlan
from ray_app.serving.frames import FrameSocket, WorkerFrame
from ray_app.serving.worker_log import FrameLogHandler

# How long an image waits for others that are being decoded. With two busy workers on two cores,
# batches were a fifth empty at 20 ms.
MAX_BATCH_WAIT_S = 0.05
# The name of this module is __main__ when it runs as a program.
_log = logging.getLogger("ray_app.serving.worker")


class EndpointWorker:
    """Score the images that the HTTP process sends through a socket, and send back the answers.

    `decoders` images are decoded at the same time.
    """

    def __init__(self, engine: Engine, connection: FrameSocket, decoders: int) -> None:
        self._engine, self._connection = engine, connection
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        # Images with the number of their frame. None after the HTTP process has ended.
        self._decoded: queue.SimpleQueue[tuple[int, PendingImage] | None] = queue.SimpleQueue()
        # Images that were received and images that were answered since the start.
        self._received = self._answered = 0

    def run(self) -> None:
        """Answer images until the HTTP process ends.

        This method also returns after 20 images in a row without a score, since the cause is then
        probably the device. The HTTP process then starts a new worker.
        """
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        while batch := self._take_batch():
            answered = self._engine.answer([image for _, image in batch])
            self._answered += len(batch)
            for row, ((number, _), answer) in enumerate(zip(batch, answered, strict=True)):
                batch_images = len(batch) if row == 0 else 0
                self._connection.send(_make_frame(number, answer, batch_images))
            if self._engine.silent_images >= MAX_SILENT_IMAGES:
                # A device is a more likely cause than that many images.
                _log.error(
                    "restarting the worker: no score for %d images in a row",
                    self._engine.silent_images,
                )
                return
        self._decoders.shutdown(cancel_futures=True)

    def _take_batch(self) -> list[tuple[int, PendingImage]]:
        """Wait for a decoded image, and return a batch with all images that are decoded.

        Wait a short time for images that are being decoded, since a batch costs the same whether it
        is full or not.
        """
        batch: list[tuple[int, PendingImage]] = []
        until = math.inf
        while len(batch) < self._engine.slots:
            is_decoding = len(batch) < self._received - self._answered
            timeout_s = max(until - time.monotonic(), 0.0) if is_decoding else 0.0
            try:
                decoded = self._decoded.get(timeout=timeout_s if batch else None)
            except queue.Empty:
                break
            if decoded is None:
                return []
            if not batch:
                until = time.monotonic() + MAX_BATCH_WAIT_S
            batch.append(decoded)
        return batch

    def _receive(self) -> None:
        while (frame := self._connection.receive()) is not None:
            self._received += 1
            self._decoders.submit(self._decode, frame)
        self._decoded.put(None)

    def _decode(self, frame: WorkerFrame) -> None:
        number, options = frame.header["number"], frame.header["request"]
        data = golden_image() if options.pop("is_golden", False) else frame.data
        request = ScoreRequest(data, **options | {"detectors": tuple(options["detectors"])})
        self._decoded.put((number, self._engine.decode(request)))


def _make_frame(number: int, answer: EncodedAnswer, batch_images: int) -> WorkerFrame:
    """Return the frame of an answer. The first answer of a batch carries the size of the batch."""
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
    """Return the description of the detectors for the HTTP process."""
    served = engine.served
    return WorkerFrame(
        {
            "slots": engine.slots,
            "ensembles": [info.model_dump() for info in answers.list_ensemble_infos(served)],
            "optional": list(served.plan.optional),
            "detectors": [info.model_dump() for info in answers.list_detector_infos(served.plan)],
        }
    )


def main(descriptor: int) -> int:
    """Run a worker process: load the detectors of the endpoint, then score images.

    The HTTP process sends the settings of the endpoint, and those of its ensembles, in its first
    message. `descriptor` is that of the socket to the HTTP process. The exit code is 1 if the
    detectors cannot be loaded.
    """
    # Ctrl-C reaches all processes of a terminal. The HTTP process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = FrameSocket(socket.socket(fileno=descriptor))
    first = connection.receive()
    if first is None:
        return 0
    # Log warnings of other packages, and records of this package from the endpoint's level.
    logging.basicConfig(handlers=[FrameLogHandler(connection)])
    logging.getLogger("ray_app").setLevel(first.header["log_level"])
    config = ServeConfig.model_validate(first.header["config"])
    try:
        plan: EnsemblePlan = pickle.loads(first.data)  # noqa: S301 -- The parent process sends it.
        engine = Engine(config, plan)
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
    # Exit without waiting for threads that are still decoding.
    os._exit(main(int(sys.argv[1])))
