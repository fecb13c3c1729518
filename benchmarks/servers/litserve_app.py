"""LitServe with our own detector: decoding, preparing and the model in its workers; as many slots
and the same wait. Run as a script.
"""

from typing import Any

import litserve
from fastapi import Request

from benchmarks.servers.litserve import WAIT_S
from benchmarks.servers.server import arguments


class Detecting(litserve.LitAPI):
    """The four methods that LitServe asks for, each as its documentation lays it out."""

    def __init__(self, card: str, slots: int) -> None:
        super().__init__(max_batch_size=slots, batch_timeout=WAIT_S)
        self.card = card

    def setup(self, device: str) -> None:
        import torch

        from ray_app.detectors import load_detector
        from ray_app.images import ImageLimits

        torch.set_num_threads(1)
        self.detector, self.limits = load_detector(self.card), ImageLimits()

    def decode_request(self, request: Request) -> Any:
        from ray_app.images import decode_image

        return self.detector.prepare(decode_image(request["file"].file.read(), self.limits).pixels)

    def predict(self, x: Any) -> list[float]:
        return self.detector.score(x).tolist()

    def encode_response(self, output: float) -> dict[str, float]:
        return {"score": output}


def main() -> None:
    from ray_app.detectors.card import default_slots

    work, port, (workers,) = arguments()
    server = litserve.LitServer(
        Detecting(work.card, default_slots("cpu")),
        accelerator="cpu",
        workers_per_device=int(workers),
        timeout=60,
    )
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
