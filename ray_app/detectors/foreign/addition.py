"""`add_foreign`: write the card of a detector of another package, after its process has shown that it loads and scores.

The card and a small file that says what the detector is go to the folder of the user's own cards, where commands find them by name. What
is known of a package's detectors lies in configs/detectzoo.yaml and configs/imdlbenco.yaml.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ray_app.config import CONFIG_VARIABLE, Frozen, config_file, config_root, named_configs, read_mapping, validate
from ray_app.detectors.card import DetectorCard, load_card
from ray_app.detectors.card_sections import formula_image
from ray_app.detectors.files_by_hash import file_sha256
from ray_app.detectors.foreign.child import BENCO
from ray_app.detectors.foreign.process import ForeignProcess, Found, OpenedDetector
from ray_app.errors import ConfigError, DetectorError

Scores = Literal["log-odds", "probability", "above-threshold"]
PACKAGES = {  # by family: what a card calls the package, where it is, its licence
    "detectzoo": ("DetectZoo", "https://github.com/sadjadeb/DetectZoo", "Apache-2.0"),
    "imdlbenco": ("IMDLBenCo", "https://github.com/scu-zjz/IMDLBenCo", "CC-BY-4.0"),
}
FAMILIES = (*PACKAGES, "callable")
_SAMPLES = ((1024, 1024), (1024, 1024), (640, 480))  # the first warms up, the second is timed, the third is kept as the golden score
_TOLERANCE = 1e-3
_PIXEL_STD = 0.00392156862745098


class KnownDetector(Frozen):
    """What is known of one of a package's detectors; of one that nobody looked at, nothing is. `options`: its usual ones."""

    title: str
    citation: str = "not stated"
    source: str
    options: Mapping[str, Any] = {}
    licence: str = "none stated"
    terms: Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"] = "none-stated"
    trained_on: str = "not stated"
    generators: tuple[str, ...] = ()
    scores: Scores = "probability"
    note: str | None = None


class ForeignAddition(NamedTuple):
    """What is to be added. `target`: a registry name of the package, `module:function`, or the name of an entry point.

    `python`: None = the one that runs here. `folder`: where its process runs. `scores`: what a callable gives; None = log-odds.
    `images`: what a callable is given. `options`: keyword arguments of a package's detector.
    """

    family: str
    target: str
    python: str | None = None
    folder: Path = Path()
    name: str | None = None
    scores: Scores | None = None
    images: Literal["arrays", "pil"] = "arrays"
    limit_s: float = 60.0
    options: Mapping[str, Any] = {}
    licence: str | None = None


class AddedCard(NamedTuple):
    """The card as written and what its process said. `score`: of the formula image; None where it gave none, for the reason `failure`."""

    card: DetectorCard
    path: Path
    opened: OpenedDetector
    score: float | None
    failure: str | None


def is_foreign(word: str) -> bool:
    """Whether a word names a detector of another package: `detectzoo:NAME`, `imdlbenco:NAME`, `callable:MODULE:FUNCTION`."""
    return word.partition(":")[0] in FAMILIES and ":" in word and not Path(word).exists()


def add_foreign(wanted: ForeignAddition) -> AddedCard:
    """Start the detector once, weights and all, let it score two images by formula, and write its card.

    Raises ConfigError for a taken name or no place for cards, DetectorError with a hint where it cannot be had or gives no score or mask.
    """
    wanted = wanted._replace(python=_python(wanted.python), folder=wanted.folder.resolve())
    name = wanted.name or _card_name(wanted)
    path = _place() / f"{name}.yaml"
    if name in named_configs("detectors"):
        raise ConfigError(f"{name}: a shipped detector has that name", hint="give another one: --as NAME")
    known = _known(wanted)
    draft = validate(_described(name, wanted, known), DetectorCard, where=str(path))
    samples = [tuple(min(side, draft.valid_range.max_side_px or side) for side in size) for size in _SAMPLES]
    with ForeignProcess(draft, None) as process:
        opened, measured, found = process.open(), None, list[Found | str]()
        for size in samples:
            found += process.score([formula_image(*size)])
            measured = process.measured if size == samples[1] else measured
    failure = next((one for one in found if isinstance(one, str)), None)
    if measured is None or process.hint:
        raise DetectorError(f"{name}: it scored no image by formula: {failure}", hint=process.hint or "try it there by hand, on an image")
    described = _described(name, wanted, known)
    if any(isinstance(one, Found) and one.mask is not None for one in found):
        described["masks"] = True
        described["notes"] += ["Where it says nothing of the whole image, its score is the largest value in its mask, as log-odds."]
    identity = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    identity.write_text(json.dumps(opened.identity, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    described["weights"] = {"uri": identity.name, "sha256": file_sha256(identity), "config": identity.name}
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
    path.write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
    return AddedCard(load_card(path), path, opened, score, failure)


def _python(given: str | None) -> str:
    if given is None:
        return sys.executable
    # Not resolved: a virtual environment is known by the path of its link.
    found = shutil.which(given)
    if found is None:
        raise DetectorError(f"--python {given}: there is no such program", hint="give the path of the Python that has the package")
    return os.path.abspath(found)


def _card_name(wanted: ForeignAddition) -> str:
    """A name as cards have: lower case, digits, dots and dashes."""
    words = re.split("[:.]", wanted.target)[-1]
    return f"{wanted.family}-{re.sub('[^a-z0-9.]+', '-', words.casefold()).strip('-.')}"


def _place() -> Path:
    file = config_file()
    if file is None:
        raise ConfigError("there is no home for cards of your own", hint=f"name a config file: export {CONFIG_VARIABLE}=/path/config.yaml")
    return file.parent / "detectors"


def _known(wanted: ForeignAddition) -> KnownDetector:
    if wanted.family in PACKAGES:
        path, (package, source, _) = config_root() / f"{wanted.family}.yaml", PACKAGES[wanted.family]
        described = read_mapping(path).get(wanted.target) or {"title": wanted.target}
        known = validate({"source": source, **described}, KnownDetector, where=str(path))
        known = known.model_copy(update={"title": f"{known.title} ({package})", "options": {**known.options, **wanted.options}})
    else:
        source = f"{wanted.target}, in {wanted.folder}"
        known = KnownDetector(title=f"The callable {wanted.target}", source=source, scores=wanted.scores or "log-odds")
    given = {"licence": wanted.licence, "terms": _terms(wanted.licence)} if wanted.licence else {}
    return known.model_copy(update=given | ({"scores": wanted.scores} if wanted.scores else {}))


def _terms(licence: str) -> str:
    """Of a licence that its user names: what is well known to be permissive is; of anything else the terms have to be read."""
    permissive = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "own")
    return "permissive" if licence.casefold() in permissive else "restricted"


def _described(name: str, wanted: ForeignAddition, known: KnownDetector) -> dict[str, Any]:
    package = PACKAGES.get(wanted.family)
    whose = "No licence of it is known, so that nothing is granted" if known.terms == "none-stated" else known.licence
    return {
        "name": name,
        "title": known.title,
        "family": wanted.family,
        "architecture": {
            "name": wanted.target,
            "arguments": {"scores": known.scores} | ({"options": dict(known.options)} if package else {"images": wanted.images}),
        },
        "process": {"python": wanted.python, "folder": str(wanted.folder), "limit_s": wanted.limit_s},
        "preprocessing": {"mean": [0.0] * 3, "std": [_PIXEL_STD] * 3},
        "weights": {"uri": f"{name}.json", "unverified": "not written yet", "config": f"{name}.json"},
        "output": {"sign": 1},
        **({"valid_range": {"max_side_px": {**BENCO, **known.options}["image_size"]}} if known.options.get("if_padding") else {}),
        "precision": "fp32",
        "precision_note": "The package decides itself in which precision it computes.",
        "licence": known.licence,
        "terms": known.terms,
        "licence_note": f"{package[0]}'s code is {package[2]}. Of the detector: {whose} ({known.source})." if package else
        "Whoever wrote the function decides; --licence states it when the card is written.",
        "citation": known.citation,
        "source": known.source,
        "training_data": {"name": known.trained_on, "licence": "not stated", "generators": list(known.generators),
                          "complete": bool(known.generators)},
        "notes": [*([known.note] if known.note else []),
                  "It is given the image as decoded, RGB at its own size; alpha lies on white, the EXIF orientation is not applied."],
    }  # fmt: skip
