"""`add_callable`: write the card of a Python callable, after its process has shown that it loads
and scores.

The card and a small file that says what the callable is go to the folder of the user's own cards,
where commands find them by name.
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
from ray_app.detectors.callables.process import CallableProcess, Found, OpenedDetector
from ray_app.detectors.card import DetectorCard, load_card
from ray_app.detectors.card_sections import formula_image
from ray_app.detectors.card_writer import write_card
from ray_app.detectors.registry import refuse_retired_family
from ray_app.detectors.weights import file_sha256
from ray_app.errors import ConfigError, DetectorError

Scores = Literal["log-odds", "probability"]
FAMILY = "callable"
# the first warms up, the second is timed, the third is kept as the golden score
_SAMPLES = ((1024, 1024), (1024, 1024), (640, 480))
_TOLERANCE = 1e-3
_PIXEL_STD = 0.00392156862745098


class CallableAddition(NamedTuple):
    """A callable to add. `target`: `module:function`, or the name of an entry point.

    `python`: None = the one that runs here. `folder`: where its process runs. `scores`: what it
    gives; None = log-odds. `images`: what it is given.
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
    """The card as written and what its process said. `score`: of the formula image; None where it
    gave none, for the reason `failure`.
    """

    card: DetectorCard
    path: Path
    opened: OpenedDetector
    score: float | None
    failure: str | None

    def facts(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            "name": self.card.name,
            "card": str(self.path),
            "identity": self.opened.identity,
            "libraries": self.opened.libraries,
            "score": self.score,
            "failure": self.failure,
        }

    def lines(self) -> list[str]:
        """Return the result for people, with the next command."""
        card = self.card
        mask = ", and drew a mask" if card.masks else ""
        result = (
            f"of an image by formula it gave no score: {self.failure}"
            if self.score is None
            else f"it scored an image by formula{mask}: log-odds {self.score:.6f}"
        )
        licence = f"{card.licence} ({licences.TERMS_IN_WORDS[card.terms]})"
        lines = [f"its card is {self.path}", result]
        if licences.is_accepted(card.name, card.licence, card.terms):
            lines += [licence, f"try it: touchstone check PHOTO.jpg --detector {card.name}"]
        else:
            command = f"touchstone detectors fetch {card.name} --accept-licence {card.name}"
            lines.append(f"{licence}; accept it: {command}")
        return [f"{card.name}: {line}" for line in lines]


def is_callable(word: str) -> bool:
    """Whether a word names a callable, `callable:MODULE:FUNCTION`. Raises ConfigError for the
    retired adapters.
    """
    refuse_retired_family(word)
    return word.startswith("callable:") and not Path(word).exists()


def add_callable(wanted: CallableAddition) -> AddedCard:
    """Start the callable once, weights and all, let it score three images by formula, and write its
    card.

    Raises ConfigError for a taken name or no place for cards, DetectorError with a hint where it
    cannot be had or gives no score or mask.
    """
    wanted = wanted._replace(python=_python(wanted.python), folder=wanted.folder.resolve())
    name = wanted.name or _card_name(wanted)
    path = _place() / f"{name}.yaml"
    if name in named_configs("detectors"):
        raise ConfigError(
            f"{name}: a shipped detector has that name", hint="give another one: --as NAME"
        )
    draft = validate(_described(name, wanted), DetectorCard, where=str(path))
    with CallableProcess(draft, None) as process:
        opened, measured, found = process.open(), None, list[Found | str]()
        samples = [
            tuple(min(side, opened.max_side_px or side) for side in size) for size in _SAMPLES
        ]
        for size in samples:
            found += process.score([formula_image(*size)])
            measured = process.measured if size == samples[1] else measured
    failure = next((one for one in found if isinstance(one, str)), None)
    if measured is None or process.hint:
        raise DetectorError(
            f"{name}: it scored no image by formula: {failure}",
            hint=process.hint or "try it there by hand, on an image",
        )
    described = _described(name, wanted)
    if opened.max_side_px is not None:
        described["valid_range"] = {"max_side_px": opened.max_side_px}
    if any(isinstance(one, Found) and one.mask is not None for one in found):
        described["masks"] = True
        described["notes"] += [
            "Where it says nothing of the whole image, its score is the largest value in its mask, as log-odds."
        ]
    identity = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    identity.write_text(
        json.dumps(opened.identity, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    described["weights"] = {
        "uri": identity.name,
        "sha256": file_sha256(identity),
        "config": identity.name,
    }
    described["process"] |= {"peak_bytes": measured[1], "seconds": round(max(measured[0], 1e-4), 4)}
    score = found[-1].score if isinstance(found[-1], Found) else None
    if score is not None:
        said = ", ".join(f"{library} {version}" for library, version in opened.libraries.items())
        width, height = samples[-1]
        described["golden"] = [{
            "image": "formula", "width": width, "height": height, "logit": score, "tolerance": _TOLERANCE * max(1, abs(score)),
            "source": f"scored when this card was written, with {said or 'none of the libraries that are looked for'}",
        }]  # fmt: skip
    validate(described, DetectorCard, where=str(path))
    write_card(path, described)
    return AddedCard(load_card(path), path, opened, score, failure)


def _python(given: str | None) -> str:
    if given is None:
        return sys.executable
    # Not resolved: a virtual environment is known by the path of its link.
    found = shutil.which(given)
    if found is None:
        raise DetectorError(
            f"--python {given}: there is no such program",
            hint="give the path of the Python that has the package",
        )
    return os.path.abspath(found)


def _card_name(wanted: CallableAddition) -> str:
    """A name as cards have: lower case, digits, dots and dashes."""
    words = re.split("[:.]", wanted.target)[-1]
    return f"callable-{re.sub('[^a-z0-9.]+', '-', words.casefold()).strip('-.')}"


def _place() -> Path:
    file = config_file()
    if file is None:
        raise ConfigError(
            "there is no home for cards of your own",
            hint=f"name a config file: export {CONFIG_VARIABLE}=/path/config.yaml",
        )
    return file.parent / "detectors"


def _terms(licence: str) -> str:
    """Of a licence that its user names: what is well known to be permissive is; of anything else
    the terms have to be read.
    """
    permissive = (
        "mit",
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "cc0-1.0",
        "cc-by-4.0",
        "own",
    )
    return "permissive" if licence.casefold() in permissive else "restricted"


def _described(name: str, wanted: CallableAddition) -> dict[str, Any]:
    licence = {"licence": wanted.licence, "terms": _terms(wanted.licence)} if wanted.licence else {}
    return {
        "name": name,
        "title": f"The callable {wanted.target}",
        "family": FAMILY,
        "architecture": {
            "name": wanted.target,
            "arguments": {"scores": wanted.scores or "log-odds", "images": wanted.images},
        },
        "process": {
            "python": wanted.python,
            "folder": str(wanted.folder),
            "limit_s": wanted.limit_s,
        },
        "preprocessing": {"mean": [0.0] * 3, "std": [_PIXEL_STD] * 3},
        "weights": {
            "uri": f"{name}.json",
            "unverified": "not written yet",
            "config": f"{name}.json",
        },
        "output": {"sign": 1},
        "precision": "fp32",
        "precision_note": "The package decides itself in which precision it computes.",
        "licence": "none stated",
        "terms": "none-stated",
        **licence,
        "licence_note": "Whoever wrote the function decides; --licence states it when the card is written.",
        "citation": "not stated",
        "source": f"{wanted.target}, in {wanted.folder}",
        "training_data": {
            "name": "not stated",
            "licence": "not stated",
            "generators": [],
            "complete": False,
        },
        "notes": [
            "It is given the image as decoded, RGB at its own size; alpha lies on white, the EXIF orientation is not applied."
        ],
    }
