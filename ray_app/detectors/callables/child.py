"""The process of a callable: RGB pixels in, its own scores and masks out. `callables.process` alone
starts it.

It runs as a file in any Python from 3.9, with NumPy and whatever the detector needs: of Touchstone
it runs one more file, `child_messages`, and nothing of Touchstone is on its path.

The texts of messages are JSON. The first request names the detector, and the answer what it is
(`identity`); each further one has `sizes` (width, height) of images whose pixels follow, and the
answer is one float64 per image, height and width (2 × uint32) of each mask (0, 0 = none), and the
masks, one byte per pixel, 255 = surely altered. If the detector failed, the JSON has `error`, and
`hint` if there is one.
"""

from __future__ import annotations

import hashlib
import importlib.util
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

# By its path: this Python may lack what the package `ray_app` imports.
_MESSAGES = runpy.run_path(str(Path(__file__).parents[2] / "child_messages.py"))
ENTRY_POINTS = "touchstone.callables"
# files of a module that is no installed distribution; one with more is known by the first of them
_MOST_SOURCES = 2000
FEWEST = 2.0**-53  # a probability nearer to 0 or 1 than this says no more: log-odds end at ±36.7
# px: a mask has its image's size, or is the square that the whole image was resized to
MOST_SQUARE = 1024
_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "albumentations", "numpy", "pillow")
_HINT = "name its folder by --folder, or give by --python the Python that has it"
Score = Callable[[Sequence[Any]], Any]


class UnusableError(Exception):
    """The detector cannot be had here. `hint`: what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def main() -> None:
    """Serve until whoever started this process closes its side, or is gone."""
    # our files are no modules of its own
    sys.path[:] = [place for place in sys.path if place != str(Path(__file__).parent)]
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # a detector that asks a question must not read our messages
    os.dup2(2, 1)  # and one that prints must not write into an answer
    threading.Thread(target=_end_with_parent, args=(requests.fileno(),), daemon=True).start()
    answers.write(_MESSAGES["READY"])
    answers.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    score, meaning = None, ""
    while request := _MESSAGES["read_request"](requests):
        text, data = request
        wanted = json.loads(text)
        # The parent kills us at the limit; should it die first, the kernel's default for SIGALRM
        # does, hung C code or not.
        signal.setitimer(signal.ITIMER_REAL, 2 * wanted["limit_s"] + 1)
        if score is None:
            (score, said), meaning = _opened(wanted), wanted["scores"]
            numbers = b""
        else:
            said, numbers = _answer(score, meaning, wanted, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _MESSAGES["write_answer"](answers, json.dumps(said).encode(), [numbers])


def _end_with_parent(pipe: int) -> None:
    """End when nobody is left who could ask: no event but the end of the other side is waited for."""
    waiting = select.poll()
    waiting.register(pipe, 0)
    waiting.poll()
    os._exit(0)


def _opened(wanted: dict[str, Any]) -> tuple[Score | None, dict[str, Any]]:
    try:
        if wanted["offline"]:
            sys.addaudithook(_refuse_network)
        if wanted.get("probe"):
            return None, _probed(wanted)
        score, identity, max_side_px = _callable(wanted)
    except BaseException as error:  # whatever a stranger's package raises, SystemExit too
        return None, {**_failure(error), "trace": traceback.format_exc()[-4000:]}
    _be_silent()
    libraries = {name: _version(name) for name in _LIBRARIES if _version(name)}
    return score, {"identity": identity, "libraries": libraries, "max_side_px": max_side_px}


def _probed(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether the callable's module is there, without importing it."""
    _search_own_folder()
    target = wanted["target"]
    target = target if ":" in target else _entry_point(target)
    name = target.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(name) is None:
        raise UnusableError(f"{sys.executable} has no module {name}", _HINT)
    return {"version": _version(name)}


def _answer(
    score: Score, meaning: str, wanted: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    import numpy

    images, at, begun = [], 0, time.perf_counter()
    for width, height in wanted["sizes"]:
        images.append(
            numpy.frombuffer(bytearray(data[at : at + 3 * width * height]), numpy.uint8).reshape(
                height, width, 3
            )
        )
        at += 3 * width * height
    try:
        given = list(score(images))
        if len(given) != len(images):
            return {
                "error": f"it gave {len(given)} score{'s' * (len(given) != 1)} for {len(images)} image{'s' * (len(images) > 1)}"
            }, b""
        found = [_found(one, images[place].shape[:2], meaning) for place, one in enumerate(given)]
    except BaseException as error:
        return _failure(error), b""
    scores, masks = (
        numpy.array([score for score, _ in found], numpy.float64),
        [mask for _, mask in found],
    )
    parts = [scores, numpy.array([mask.shape for mask in masks], numpy.uint32), *masks]
    return {"seconds": time.perf_counter() - begun, "peak_bytes": _peak_bytes()}, b"".join(
        part.tobytes() for part in parts
    )


def _found(given: Any, size: tuple[int, int], meaning: str) -> tuple[float, Any]:
    """The score of an image (height, width), of a mask alone that mask's largest value, and the
    mask as uint8, empty if there is none.
    """
    import numpy

    mask, score = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if max(getattr(mask, "shape", ()), default=1) == 1:  # a number, also as an array of one
        return float("nan") if given is None else float(given), numpy.empty((0, 0), numpy.uint8)
    pixels = numpy.asarray(
        mask.detach().cpu().float() if hasattr(mask, "detach") else mask, numpy.float32
    )
    if pixels.shape != size and (pixels.shape != pixels.shape[:1] * 2 or len(pixels) > MOST_SQUARE):
        raise UnusableError(f"its mask is {' × '.join(map(str, pixels.shape))}, its image {size[0]} × {size[1]} (height × width)",
                            f"a mask has its image's size, or is the square, of at most {MOST_SQUARE} px, that was made of it")  # fmt: skip
    if not (pixels.min() >= -1e-3 and pixels.max() <= 1.001):  # not where one is NaN, either
        raise UnusableError(f"its mask has values from {pixels.min():g} to {pixels.max():g}",
                            "a mask has of each pixel the probability that it was altered, 0 to 1")  # fmt: skip
    pixels = pixels.clip(0, 1)
    # as IMDLBenCo labels by MVSSNet (`gmp` in mvssnet.py), and `iml-vit` here
    peak = min(max(float(pixels.max()), FEWEST), 1 - FEWEST)
    alone = peak if meaning == "probability" else math.log(peak) - math.log1p(-peak)
    return float(alone if score is None else score), numpy.rint(pixels * 255).astype(numpy.uint8)


def _callable(wanted: dict[str, Any]) -> tuple[Score, dict[str, Any], int | None]:
    """Return a function of a list of images, what identifies it, and the largest side of an image
    that it takes, None = any.
    """
    _search_own_folder()
    target = wanted["target"]
    if ":" not in target:
        target = _entry_point(target)
    module_name, _, path = target.partition(":")
    given = module = _imported(module_name)
    for name in path.split("."):
        if not hasattr(given, name):
            raise UnusableError(f"the module {module_name} has no {path}", _hint_on(module))
        given = getattr(given, name)
    if isinstance(given, type):
        given = given()
    if not callable(given):
        hint = "name a function, or a class whose instances are called"
        raise UnusableError(f"{target} is a {type(given).__name__} and no function", hint)
    identity: dict[str, Any] = {
        "callable": target,
        "source": _source_digest(module),
        "package": _distribution_of(module),
    }
    identity["python"] = _python()
    # Weights decide scores as much as the source does; a callable may name their paths in
    # `weight_files`.
    identity["files"] = {
        Path(file).name: _sha256(Path(file)) for file in getattr(given, "weight_files", ())
    }
    score: Score = (
        given
        if wanted["images"] == "arrays"
        else lambda images: given([_picture(image) for image in images])
    )
    return (
        score,
        {key: value for key, value in identity.items() if value},
        getattr(given, "max_side_px", None),
    )


def _entry_point(name: str) -> str:
    import importlib.metadata

    points: Any = importlib.metadata.entry_points()  # before Python 3.10 a dict
    there = (
        points.select(group=ENTRY_POINTS)
        if hasattr(points, "select")
        else points.get(ENTRY_POINTS, [])
    )
    found: dict[str, str] = {point.name: point.value for point in there}
    if name not in found:
        raise UnusableError(f"no package there has an entry point {name} in the group {ENTRY_POINTS}",
                            f"there are {', '.join(found) or 'none'}; or write callable:MODULE:FUNCTION")  # fmt: skip
    return found[name]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnusableError(f"{sys.executable} cannot import {name}: {error}", _HINT) from None


def _search_own_folder() -> None:
    """Find modules of the detector's folder, but never instead of an installed module of that name."""
    sys.path.append(os.getcwd())


def _hint_on(module: Any) -> str:
    """Return what to do about a module without the function that was named."""
    file = getattr(module, "__file__", None)
    if (
        file
        and Path(os.getcwd(), f"{module.__name__}.py").exists()
        and not Path(file).is_relative_to(os.getcwd())
    ):
        return f"rename your module: Python already has one of that name, {file}"
    own = [
        name
        for name, one in vars(module).items()
        if callable(one) and getattr(one, "__module__", None) == module.__name__
    ]
    return f"it has {', '.join(own) or 'no function'}"


def _picture(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _source_digest(module: Any) -> str:
    """The SHA-256 of the module's file; of all Python files of the package that it belongs to."""
    top = sys.modules[module.__name__.partition(".")[0]]
    file = Path(
        getattr(top, "__file__", None) or getattr(module, "__file__", None) or sys.executable
    )
    sources = (
        sorted(file.parent.rglob("*.py"))[:_MOST_SOURCES] if file.name == "__init__.py" else [file]
    )
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.relative_to(file.parent)} {_sha256(source)}\n".encode())
    return digest.hexdigest()


def _distribution_of(module: Any) -> str | None:
    """`name version` of the installed distribution that a module is of, where there is one."""
    import importlib.metadata

    top = module.__name__.partition(".")[0]
    if not {"site-packages", "dist-packages"} & set(
        Path(getattr(module, "__file__", None) or "").parts
    ):
        return None  # to ask all installed packages takes longer than most modules
    finds: Any = getattr(importlib.metadata, "packages_distributions", dict)  # from Python 3.10
    name = next(iter(finds().get(top, [])), top)
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
    """An audit hook: no host is looked up or spoken to; sockets of this machine stay."""
    if event == "socket.getaddrinfo" or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        raise OSError("no network: this machine is offline (TOUCHSTONE_OFFLINE, HF_HUB_OFFLINE)")


def _be_silent() -> None:
    """What it prints from now on is for nobody: of a million images that would be gigabytes."""
    with open(os.devnull, "wb") as nothing:
        for place in (1, 2):
            os.dup2(nothing.fileno(), place)


def _failure(error: BaseException) -> dict[str, str]:
    if isinstance(error, UnusableError):
        return {"error": str(error), "hint": error.hint}
    lines = str(error).strip().splitlines()
    return {"error": f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__}


if __name__ == "__main__":
    main()
