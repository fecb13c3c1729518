"""Add a Python callable as a detector: test it in its process and write its card.

Start at `add_callable`. The card and a small JSON file are written to the folder of the user's own
cards, where commands find them by name. The JSON file has the identity of the callable: versions
and digests that show later whether the callable has changed.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray_app.config import CONFIG_VARIABLE, config_file, named_configs, validate
from ray_app.detectors import licences
from ray_app.detectors.callables.process import CallableProcess, CallableScore, OpenedDetector
from ray_app.detectors.card import DetectorCard, load_card
from ray_app.detectors.card_sections import generate_formula_image
from ray_app.detectors.card_writer import write_card
from ray_app.detectors.registry import refuse_retired_family
from ray_app.detectors.weights import hash_file
from ray_app.errors import ConfigError, DetectorError

Scores = Literal["log-odds", "probability"]
FAMILY = "callable"
# Sizes of the test images. The first warms up, the second is timed, the third gives the golden
# score.
_SAMPLES = ((1024, 1024), (1024, 1024), (640, 480))
_TOLERANCE = 1e-3
_PIXEL_STD = 0.00392156862745098


class CallableAddition(NamedTuple):
    """A request to add a Python callable as a detector.

    Attributes:
        target: `module:function`, or the name of an entry point in the group
            `touchstone.callables`.
        python: Path or name of the Python interpreter that has the callable. None means the
            interpreter that is running.
        folder: Working directory of the process that runs the callable.
        name: Name of the card. None derives it from `target`.
        scores: Meaning of the scores that the callable returns, "log-odds" or "probability" of
            fake. None means log-odds.
        images: Type of the images that the callable gets: NumPy "arrays" or "pil" images.
        limit_s: Maximum seconds per batch.
    """

    target: str
    python: str | None = None
    folder: Path = Path()
    name: str | None = None
    scores: Scores | None = None
    images: Literal["arrays", "pil"] = "arrays"
    limit_s: float = 60.0
    licence: str | None = None


class AddedCard(NamedTuple):
    """A card that `add_callable` wrote, and the result of the test of its callable.

    A callable is Python code of a user that works as a detector. In the test, it scores three
    generated images.

    Attributes:
        opened: Report of the callable's process: the versions and digests that identify the
            callable, versions of libraries, and the size limit of images.
        score: Log-odds of fake of the last test image. None if the callable returned no score.
        failure: The reason why a test image got no score. None if all test images got a score.
    """

    card: DetectorCard
    path: Path
    opened: OpenedDetector
    score: float | None
    failure: str | None

    def facts(self) -> dict[str, Any]:
        """Return the card's name and path and the test result as plain JSON."""
        return {
            "name": self.card.name,
            "card": str(self.path),
            "identity": self.opened.identity,
            "libraries": self.opened.libraries,
            "score": self.score,
            "failure": self.failure,
        }

    def lines(self) -> list[str]:
        """Return text for people: the card's path, the test result, and the command to run next."""
        card = self.card
        mask = " and returned a mask" if card.masks else ""
        result = (
            f"it returned no score for a generated image: {self.failure}"
            if self.score is None
            else f"it scored a generated image{mask}: log-odds {self.score:.6f}"
        )
        licence = f"{card.licence} ({licences.TERMS_IN_WORDS[card.terms]})"
        lines = [f"its card is {self.path}", result]
        if licences.is_accepted(card.name, card.licence, card.terms):
            lines += [licence, f"try it: touchstone check PHOTO.jpg --detector {card.name}"]
        else:
            command = f"touchstone detectors fetch {card.name} --accept-licence {card.name}"
            lines.append(f"{licence}; accept it: {command}")
        return [f"{card.name}: {line}" for line in lines]


def is_callable(name: str) -> bool:
    """Return whether `name` means a Python callable, such as `callable:MODULE:FUNCTION`.

    The name begins with `callable:`. After it, the name of an entry point may replace
    MODULE:FUNCTION. If `name` is the path of an existing file or folder, the result is False.
    Raises ConfigError for a form that only earlier versions had, such as `detectzoo:safe`.
    """
    refuse_retired_family(name)
    return name.startswith("callable:") and not Path(name).exists()


def add_callable(request: CallableAddition) -> AddedCard:
    """Start a callable once, let it score three generated images, and write its card.

    Raises ConfigError if a shipped detector has the name, or the name is not valid for a card, and
    DetectorError if the callable cannot be loaded or returns neither a score nor a valid mask.
    """
    request = request._replace(python=_find_python(request.python), folder=request.folder.resolve())
    name = request.name or _card_name(request)
    path = _cards_folder() / f"{name}.yaml"
    if name in named_configs("detectors"):
        raise ConfigError(
            f"{name}: a shipped detector has this name", hint="choose another name: --as NAME"
        )
    draft = validate(_describe(name, request), DetectorCard, where=str(path))
    with CallableProcess(draft, None) as process:
        opened, measurement, results = process.open(), None, list[CallableScore | str]()
        samples = [
            tuple(min(side, opened.max_side_px or side) for side in size) for size in _SAMPLES
        ]
        for size in samples:
            results += process.score([generate_formula_image(*size)])
            measurement = process.measured if size == samples[1] else measurement
    failure = next((result for result in results if isinstance(result, str)), None)
    if measurement is None or process.hint:
        raise DetectorError(
            f"{name}: it scored no generated image: {failure}",
            hint=process.hint or "run the callable by hand on an image",
        )
    data = _describe(name, request)
    if opened.max_side_px is not None:
        data["valid_range"] = {"max_side_px": opened.max_side_px}
    if any(isinstance(result, CallableScore) and result.mask is not None for result in results):
        data["masks"] = True
        data["notes"] += [
            "If it returns no score of the whole image, the score is the largest value in its mask, as log-odds."
        ]
    identity = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    identity.write_text(
        json.dumps(opened.identity, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    data["weights"] = {
        "uri": identity.name,
        "sha256": hash_file(identity),
        "config": identity.name,
    }
    data["process"] |= {
        **({"takes_device": True} if opened.takes_device else {}),
        "peak_bytes": measurement[1],
        "seconds": round(max(measurement[0], 1e-4), 4),
    }
    score = results[-1].score if isinstance(results[-1], CallableScore) else None
    if score is not None:
        versions = ", ".join(
            f"{library} {version}" for library, version in opened.libraries.items()
        )
        width, height = samples[-1]
        data["golden"] = [{
            "image": "formula", "width": width, "height": height, "logit": score, "tolerance": _TOLERANCE * max(1, abs(score)),
            "source": f"scored when this card was written, with {versions or 'none of the known libraries'}",
        }]  # fmt: skip
    validate(data, DetectorCard, where=str(path))
    write_card(path, data)
    return AddedCard(load_card(path), path, opened, score, failure)


def _find_python(python: str | None) -> str:
    if python is None:
        return sys.executable
    # Links are not resolved, because Python finds a virtual environment by the path of its link.
    path = shutil.which(python)
    if path is None:
        raise DetectorError(
            f"--python {python}: program not found",
            hint="give the path of a Python that has the package",
        )
    return os.path.abspath(path)


def _card_name(request: CallableAddition) -> str:
    """Return a valid card name for a callable: lower case, digits, dots, and dashes."""
    last_part = re.split("[:.]", request.target)[-1]
    return f"callable-{re.sub('[^a-z0-9.]+', '-', last_part.casefold()).strip('-.')}"


def _cards_folder() -> Path:
    file = config_file()
    if file is None:
        raise ConfigError(
            "cannot choose a folder for your own cards, because this user has no home folder",
            hint=f"run export {CONFIG_VARIABLE}=/path/config.yaml: cards are then kept in /path/detectors",
        )
    return file.parent / "detectors"


def _describe(name: str, request: CallableAddition) -> dict[str, Any]:
    licence = (
        {"licence": request.licence, "terms": licences.infer_terms(request.licence)}
        if request.licence
        else {}
    )
    return {
        "name": name,
        "title": f"The callable {request.target}",
        "family": FAMILY,
        "architecture": {
            "name": request.target,
            "arguments": {"scores": request.scores or "log-odds", "images": request.images},
        },
        "process": {
            "python": request.python,
            "folder": str(request.folder),
            "limit_s": request.limit_s,
        },
        "preprocessing": {"mean": [0.0] * 3, "std": [_PIXEL_STD] * 3},
        "weights": {
            "uri": f"{name}.json",
            "unverified": "not written yet",
            "config": f"{name}.json",
        },
        "output": {"sign": 1},
        "precision": "fp32",
        "precision_note": "The package chooses its own precision.",
        "licence": "none stated",
        "terms": "none-stated",
        **licence,
        "licence_note": "The author of the function decides. Set it with --licence when the card is written.",
        "citation": "not stated",
        "source": f"{request.target}, in {request.folder}",
        "training_data": {
            "name": "not stated",
            "licence": "not stated",
            "generators": [],
            "complete": False,
        },
        "notes": [
            "It gets the decoded image, RGB at its own size. Alpha is composited on white, and the EXIF orientation is not applied."
        ],
    }
