"""FastAPI and uvicorn as people write them: the model in the process, a plain function as endpoint,
one image at a time, no batching.

The function runs in FastAPI's pool of threads, so that several models' worth of work runs at once,
each on one thread.
"""

from benchmarks.servers.server import Server, arguments, script


def main() -> None:
    import torch
    import uvicorn
    from fastapi import FastAPI, UploadFile

    from ray_app.detectors import load_detector
    from ray_app.images import ImageLimits, decode_image

    work, port, _ = arguments()
    torch.set_num_threads(1)
    # one slot: without batching nobody fills up a batch
    detector, limits = load_detector(work.card, slots=1), ImageLimits()
    app = FastAPI()

    @app.get("/ready")
    def ready() -> bool:
        return True

    @app.post("/score")
    def score(file: UploadFile) -> dict[str, float]:
        pixels = detector.prepare(decode_image(file.file.read(), limits).pixels)
        return {"score": float(detector.score(pixels[None])[0])}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


FASTAPI = Server(
    "fastapi",
    "FastAPI + uvicorn, no batching, its thread pool",
    script("benchmarks.servers.fastapi"),
    2,
)

if __name__ == "__main__":
    main()
