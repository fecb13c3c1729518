"""Run a callable in this process, which gets RGB pixels and returns scores and masks.

A callable is Python code of a user that works as a detector. Only `callables.process` starts this
program. It runs as a file in any Python from 3.9 that has NumPy and the callable's packages. It
uses one other file of Touchstone, `child_messages`, and nothing else of Touchstone is on its path.

Messages contain JSON text and binary data. The first request names the callable. The JSON of its
answer has the `identity`: versions and digests that show whether the callable has changed. Each
further request has the `sizes` (width, height) of images, followed by their pixels.

The binary data of an answer begins with one float64 score per image. The height and width of each
mask follow, as 2 × uint32, with 0, 0 for no mask. The masks come last, with one byte per pixel, 255
= certainly altered. If the callable failed, the JSON has `error` and possibly `hint`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import platform
import runpy
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Loaded by path, because this Python may lack packages that `ray_app` imports.
_MESSAGES = runpy.run_path(str(Path(__file__).parents[2] / "child_messages.py"))
ENTRY_POINTS = "touchstone.callables"
# Maximum number of files that identify a package. The first files count if there are more.
_MAX_SOURCES = 2000
# Minimum distance of a probability from 0 and 1, which limits log-odds to ±36.7.
MIN_PROBABILITY = 2.0**-53
# Pixels. A mask has the size of its image, or is a square to which the whole image was resized.
MAX_SQUARE_PX = 1024
_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "albumentations", "numpy", "pillow")
_HINT = "set its folder with --folder, or a Python that has it with --python"
Score = Callable[[Sequence[Any]], Any]


class UnusableError(Exception):
    """The callable or its output cannot be used; `hint` is an instruction for the user."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def main() -> None:
    """Load the callable and score batches of images as the parent process requests.

    The process ends when the parent closes its end of the pipe or exits.
    """
    # The callable must not import Touchstone's files as modules.
    sys.path[:] = [folder for folder in sys.path if folder != str(Path(__file__).parent)]
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # The callable must not read messages from stdin.
    os.dup2(2, 1)  # Its output must not go into an answer.
    threading.Thread(target=_exit_with_parent, args=(requests.fileno(),), daemon=True).start()
    answers.write(_MESSAGES["READY"])
    answers.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    score, meaning = None, ""
    while request := _MESSAGES["read_request"](requests):
        text, data = request
        options = json.loads(text)
        # The parent kills this process at the limit. If the parent dies first, the default action of
        # SIGALRM does, even in hung C code.
        signal.setitimer(signal.ITIMER_REAL, 2 * options["limit_s"] + 1)
        if score is None:
            (score, report), meaning = _open(options), options["scores"]
            data_out = b""
        else:
            report, data_out = _answer(score, meaning, options, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _MESSAGES["write_answer"](answers, json.dumps(report).encode(), [data_out])


def _exit_with_parent(pipe: int) -> None:
    """Exit when the parent closes its end of the pipe, which is the only event polled for."""
    poll = select.poll()
    poll.register(pipe, 0)
    poll.poll()
    os._exit(0)


def _open(options: dict[str, Any]) -> tuple[Score | None, dict[str, Any]]:
    try:
        if options["offline"]:
            sys.addaudithook(_refuse_network)
        if options.get("probe"):
            return None, _probe(options)
        score, report = _load_callable(options)
    except BaseException as error:  # A third-party package may raise anything, even SystemExit.
        return None, {**_failure(error), "trace": traceback.format_exc()[-4000:]}
    _be_silent()
    libraries = {name: _version(name) for name in _LIBRARIES if _version(name)}
    return score, {**report, "libraries": libraries}


def _probe(options: dict[str, Any]) -> dict[str, Any]:
    """Check that the callable's module exists, without importing it."""
    _search_own_folder()
    target = options["target"]
    target = target if ":" in target else _find_entry_point(target)
    name = target.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(name) is None:
        raise UnusableError(f"{sys.executable} has no module {name}", _HINT)
    return {"version": _version(name)}


def _answer(
    score: Score, meaning: str, options: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    import numpy

    images, offset, started = [], 0, time.perf_counter()
    for width, height in options["sizes"]:
        images.append(
            numpy.frombuffer(
                bytearray(data[offset : offset + 3 * width * height]), numpy.uint8
            ).reshape(height, width, 3)
        )
        offset += 3 * width * height
    try:
        outputs = list(score(images))
        if len(outputs) != len(images):
            return {
                "error": f"it returned {len(outputs)} score{'s' * (len(outputs) != 1)} for {len(images)} image{'s' * (len(images) > 1)}"
            }, b""
        results = [
            _read_output(output, images[index].shape[:2], meaning)
            for index, output in enumerate(outputs)
        ]
    except BaseException as error:
        return _failure(error), b""
    scores, masks = (
        numpy.array([score for score, _ in results], numpy.float64),
        [mask for _, mask in results],
    )
    parts = [scores, numpy.array([mask.shape for mask in masks], numpy.uint32), *masks]
    return {"seconds": time.perf_counter() - started, "peak_bytes": _peak_bytes()}, b"".join(
        part.tobytes() for part in parts
    )


def _read_output(output: Any, size: tuple[int, int], meaning: str) -> tuple[float, Any]:
    """Return the score of an image, and its mask as uint8, empty if there is none.

    The output is a score, a mask, or a pair of mask and score. The score of a mask alone is its
    largest value. The size is (height, width).
    """
    import numpy

    mask, score = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if max(getattr(mask, "shape", ()), default=1) == 1:  # A number, or an array with one number.
        return float("nan") if output is None else float(output), numpy.empty((0, 0), numpy.uint8)
    pixels = numpy.asarray(
        mask.detach().cpu().float() if hasattr(mask, "detach") else mask, numpy.float32
    )
    if pixels.shape != size and (
        pixels.shape != pixels.shape[:1] * 2 or len(pixels) > MAX_SQUARE_PX
    ):
        raise UnusableError(f"its mask is {' × '.join(map(str, pixels.shape))}, its image {size[0]} × {size[1]} (height × width)",
                            f"return masks of the image's size, or squares of at most {MAX_SQUARE_PX} px of the resized image")  # fmt: skip
    if not (pixels.min() >= -1e-3 and pixels.max() <= 1.001):  # Also True if there is a NaN.
        raise UnusableError(f"its mask has values from {pixels.min():g} to {pixels.max():g}",
                            "return masks with the probability of each pixel that it was altered, 0 to 1")  # fmt: skip
    pixels = pixels.clip(0, 1)
    # IMDLBenCo scores MVSSNet like this (`gmp` in mvssnet.py), and so does `iml-vit`.
    peak = min(max(float(pixels.max()), MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    mask_score = peak if meaning == "probability" else math.log(peak) - math.log1p(-peak)
    return float(mask_score if score is None else score), numpy.rint(pixels * 255).astype(
        numpy.uint8
    )


def _load_callable(options: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """Return the function that scores a list of images, and the facts of it for the answer."""
    _search_own_folder()
    target = options["target"]
    if ":" not in target:
        target = _find_entry_point(target)
    module_name, _, path = target.partition(":")
    function = module = _import(module_name)
    for name in path.split("."):
        if not hasattr(function, name):
            raise UnusableError(
                f"the module {module_name} has no {path}", _describe_functions(module)
            )
        function = getattr(function, name)
    takes_device = _has_device(function)
    device = {"device": options["device"]} if takes_device else {}
    if isinstance(function, type):
        function, device = function(**device), {}
    if not callable(function):
        hint = "name a function, or a class with callable instances"
        raise UnusableError(f"{target} must be callable, got {type(function).__name__}", hint)
    identity: dict[str, Any] = {
        "callable": target,
        "source": _source_digest(module),
        "package": _find_distribution(module),
    }
    identity["python"] = _python()
    # Scores depend on weights as well as on the source. A callable may list the paths of its weights
    # in `weight_files`.
    identity["files"] = {
        Path(file).name: _sha256(Path(file)) for file in getattr(function, "weight_files", ())
    }
    scored: Score = functools.partial(function, **device)
    score: Score = (
        scored
        if options["images"] == "arrays"
        else lambda images: scored([_to_pil(image) for image in images])
    )
    return score, {
        "identity": {key: value for key, value in identity.items() if value},
        "max_side_px": getattr(function, "max_side_px", None),
        "takes_device": takes_device,
    }


def _has_device(function: Any) -> bool:
    """Return whether a function or class has a parameter `device`."""
    try:
        return "device" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # It is not callable, or is compiled code.
        return False


def _find_entry_point(name: str) -> str:
    import importlib.metadata

    points: Any = importlib.metadata.entry_points()  # A dict before Python 3.10.
    group = (
        points.select(group=ENTRY_POINTS)
        if hasattr(points, "select")
        else points.get(ENTRY_POINTS, [])
    )
    targets: dict[str, str] = {point.name: point.value for point in group}
    if name not in targets:
        others = f"use one of {', '.join(targets)}, or " if targets else ""
        raise UnusableError(
            f"no installed package has an entry point {name} in the group {ENTRY_POINTS}",
            f"{others}write callable:MODULE:FUNCTION",
        )
    return targets[name]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnusableError(f"{sys.executable} cannot import {name}: {error}", _HINT) from None


def _search_own_folder() -> None:
    """Search the working directory for modules, after all installed modules."""
    sys.path.append(os.getcwd())


def _describe_functions(module: Any) -> str:
    """Return a hint for a module that does not have the requested function."""
    file = getattr(module, "__file__", None)
    if (
        file
        and Path(os.getcwd(), f"{module.__name__}.py").exists()
        and not Path(file).is_relative_to(os.getcwd())
    ):
        return f"rename your module: Python already has a module of that name, {file}"
    functions = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return f"use one of its functions: {', '.join(functions) or 'none'}"


def _to_pil(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _source_digest(module: Any) -> str:
    """Return the SHA-256 of the module's file, or of all Python files of its package."""
    top = sys.modules[module.__name__.partition(".")[0]]
    file = Path(
        getattr(top, "__file__", None) or getattr(module, "__file__", None) or sys.executable
    )
    sources = (
        sorted(file.parent.rglob("*.py"))[:_MAX_SOURCES] if file.name == "__init__.py" else [file]
    )
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.relative_to(file.parent)} {_sha256(source)}\n".encode())
    return digest.hexdigest()


def _find_distribution(module: Any) -> str | None:
    """Return `name version` of the installed distribution of a module, or None."""
    import importlib.metadata

    top = module.__name__.partition(".")[0]
    if not {"site-packages", "dist-packages"} & set(
        Path(getattr(module, "__file__", None) or "").parts
    ):
        return None  # Searching all installed packages takes longer than importing most modules.
    packages_distributions: Any = getattr(
        importlib.metadata, "packages_distributions", dict
    )  # From Python 3.10.
    name = next(iter(packages_distributions().get(top, [])), top)
    version = _version(name)
    return f"{name} {version}" if version else None


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse host lookups and connections, as an audit hook. Local sockets still work."""
    if event == "socket.getaddrinfo" or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        raise OSError("no network: this machine is offline (TOUCHSTONE_OFFLINE, HF_HUB_OFFLINE)")


def _be_silent() -> None:
    """Discard all further output, which for a million images would be gigabytes."""
    with open(os.devnull, "wb") as nothing:
        for descriptor in (1, 2):
            os.dup2(nothing.fileno(), descriptor)


def _failure(error: BaseException) -> dict[str, str]:
    if isinstance(error, UnusableError):
        return {"error": str(error), "hint": error.hint}
    lines = str(error).strip().splitlines()
    return {"error": f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__}


if __name__ == "__main__":
    main()
