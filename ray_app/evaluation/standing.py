"""What stands behind a system's figures: whose weights were loaded (`standing_of`), what an image cost (`cost_of`), and the commands that
scored the run (`score_command`) and evaluated it (`evaluate_command`). All of it is read from what the run keeps and from the cards.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from ray_app.config import named_configs
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.card import base_name
from ray_app.detectors.weights import parts_of, stated_digest
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.systems import System
from ray_app.reports.evaluation.system_model import CostFacts, StandingFacts, WeightsFacts, WeightsWord
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import strip_secrets

_LEAST = ("other", "demonstration", "unknown", "own", "published")  # of an ensemble's members the first of these holds
_BINDING = get_args(DetectorCard.model_fields["terms"].annotation)
_OPTIONS = {"ensemble": "--ensemble", "detectors": "--detector", "perturb": "--perturb", "include": "--include", "exclude": "--exclude",
            "limit": "--limit"}  # fmt: skip
_UNNAMED = {"source", "out", "cluster", "prices", "accept_licences", *_OPTIONS}
"""What a command line names otherwise, or what decides no score."""


def standing_of(system: System, members: Sequence[System], described: Mapping[str, Any]) -> StandingFacts:
    """That of a detector, or of an ensemble by its `members`, in a run described by its `run.json`."""
    entries = described["identity"].get("detectors", {})
    parts = list(members) if system.is_ensemble and members else [system]
    weights = [_weights_of(one, entries.get(one.name, {}).get("weights")) for one in parts]
    least = min(weights, key=lambda one: _LEAST.index(one.standing), default=WeightsFacts())
    cards = [one.card for one in parts if one.card is not None]
    sizes = [card.size.gmac if card.size else None for card in cards]
    return StandingFacts(
        weights=least,
        licence=", ".join(dict.fromkeys(card.licence for card in cards)),
        terms=max((card.terms for card in cards), key=_BINDING.index, default=""),
        gmac=sum(size for size in sizes if size is not None) if sizes and None not in sizes else None,
    )


def _weights_of(system: System, loaded: str | None) -> WeightsFacts:
    card = system.card
    if card is None:
        return _weights("unknown", f"the card of {system.name} cannot be read here", loaded)
    if card.demonstration:
        return _weights("demonstration", f"{card.name} is a demonstration", loaded)
    shipped = base_name(card.name) in named_configs("detectors")
    meant = load_card(card.name) if shipped else card
    stated = stated_digest(meant)
    if stated is None:
        missing = ", ".join(part.name for part in parts_of(meant) if part.weights.sha256 is None or None in part.weights.beside.values())
        return _weights("unknown", f"no card states the SHA-256 of the published weights of {missing}", loaded)
    if loaded != stated:
        return _weights("other", f"the run's weights of {card.name} are not the file that its card means", loaded, stated)
    if shipped:
        return _weights("published", "the published or shipped file, by its SHA-256", loaded, stated)
    return _weights("own", "the file of the user's own card, by its SHA-256", loaded, stated)


def _weights(standing: WeightsWord, why: str, loaded: str | None, stated: str = "") -> WeightsFacts:
    return WeightsFacts(standing=standing, why=why, loaded=loaded or "", stated=stated)


def working_session(run: RunDirectory) -> Mapping[str, Any]:
    """What the last command that decoded anything wrote of its work (`sessions/`); empty where none did."""
    for name in sorted(run.store.names("sessions"), reverse=True):
        content: Mapping[str, Any] = run.read_json(f"sessions/{name}")
        if content.get("decoded"):
            return content
    return {}


def measured_ms(described: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of one worker for one picture, by detector, of those that a session measured by themselves; views count as pictures.

    That is what the session says of each of its `detectors`, else the stage `score` where the run has but one.
    """
    names, pictures = described["detectors"], _pictures(described, session)
    found = {name: _own_ms(one) for name, one in (session.get("detectors") or {}).items()}
    if len(names) == 1 and pictures and (whole := (session.get("seconds") or {}).get("score")):
        found = {names[0]: 1000 * whole / pictures} | found
    return {name: ms for name, ms in found.items() if ms}


def cost_of(system: System, described: Mapping[str, Any], session: Mapping[str, Any]) -> CostFacts:
    """What an image cost, by a run's `run.json` and its `working_session`; the ensemble's time is that of all detectors together."""
    names, pictures = described["detectors"], _pictures(described, session)
    ms = measured_ms(described, session).get(system.name)
    if system.is_ensemble and pictures:
        spent = {name: one["seconds"] / one["images"] for name, one in (session.get("detectors") or {}).items() if one.get("images")}
        whole = (session.get("seconds") or {}).get("score")
        ms = 1000 * sum(spent.values()) if spent.keys() >= set(names) else 1000 * whole / pictures if whole else None
    facts: dict[str, Any] = {"process_bytes": session.get("peak_worker_bytes") or None, "of": len(names), "pictures": pictures}
    if ms is not None:
        return CostFacts(ms_per_image=ms, **facts)
    return CostFacts(why=f"the run measured its {len(names)} detectors together" if pictures else "the run keeps no times", **facts)


def _own_ms(one: Mapping[str, Any]) -> float | None:
    """That of a detector: what it takes alone where the session says so, else its part of the time."""
    if one.get("ms_per_image") is not None:
        return float(one["ms_per_image"])
    return 1000 * one["seconds"] / one["images"] if one.get("images") and one.get("seconds") else None


def _pictures(described: Mapping[str, Any], session: Mapping[str, Any]) -> int:
    return int(session.get("decoded") or 0) * (1 + len(described["identity"].get("perturb", {})))


def score_command(run: RunDirectory) -> str:
    """The command line that scores as the first session of a run did, from the settings that it keeps; empty where it keeps none."""
    sessions = sorted(run.store.names("sessions"))
    settings = run.read_json(f"sessions/{sessions[0]}").get("settings", {}) if sessions else {}
    if not settings.get("source"):
        return ""
    words = ["touchstone", "score", *map(strip_secrets, settings["source"]), "--out", strip_secrets(run.store.url)]
    return shlex.join([*words, *options_of(settings, ScoreConfig().model_dump(mode="json"))])


def evaluate_command(config: EvaluateConfig) -> str:
    """The command line that evaluates as a config says."""
    settings, usual = config.model_dump(mode="json"), EvaluateConfig().model_dump(mode="json")
    words = ["touchstone", "evaluate", *(strip_secrets(one) for one in config.at)]
    options = ("out", "labels", "protocol", "layout", "key", "split", "intervals", "regenerated")
    for name in options:
        if settings[name] is not None and settings[name] != usual[name]:
            words += [f"--{name}", strip_secrets(settings[name])]
    words += options_of(settings["score"], usual["score"], "score.")
    for name in settings:  # what no option above says; `tasks` decides no figure
        if name not in (*options, "at", "score", "tasks") and settings[name] != usual[name]:
            words += [word for key, one in _flat(name, settings[name], usual[name]) for word in ("--set", f"{key}={one}")]
    return shlex.join(words)


def options_of(settings: Mapping[str, Any], usual: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Options of `touchstone score` for settings that are not the usual ones, as words; those without an option by `--set`, their keys
    after `prefix`.
    """
    words: list[str] = []
    for name, value in settings.items():
        if name not in usual or value == usual[name] or value is None:
            continue
        if name in _OPTIONS:
            if name == "ensemble" and settings.get("detectors"):
                continue
            words += [word for one in (value if isinstance(value, list | tuple) else [value]) for word in (_OPTIONS[name], str(one))]
        elif name not in _UNNAMED:
            words += [word for key, one in _flat(prefix + name, value, usual[name]) for word in ("--set", f"{key}={one}")]
    return words


def _flat(name: str, value: Any, usual: Any) -> Iterator[tuple[str, str]]:
    """Dotted keys of what differs, with their values as YAML takes them."""
    if isinstance(value, Mapping) and isinstance(usual, Mapping):
        for key, inner in value.items():
            if key not in usual or inner != usual[key]:
                yield from _flat(f"{name}.{key}", inner, usual.get(key))
    else:
        yield name, "null" if value is None else str(value).lower() if isinstance(value, bool) else _listed(value)


def _listed(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
