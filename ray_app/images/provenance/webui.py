"""The text in which Stable Diffusion web UI and its kin write their parameters (`read_parameters`):
on lines of its own, or on one line.
"""

import re
from collections.abc import Iterator
from typing import Any

WEB_UI = "Stable Diffusion web UI"
MOST_SETTINGS = 4000  # characters of the last line: a long one lists the hashes of many networks
_MOST_TRIES = 8  # of a text on one line, where a prompt may have the word, too
_LINE_START = re.compile(r"^Steps: \d+, [A-Z]", re.MULTILINE)
_STEPS = re.compile(r"Steps: \d+, [A-Z]")
_SETTING = re.compile(r'(\w[\w /-]{0,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|\Z)')
_NEGATIVE = "Negative prompt:"
_FIELDS = {"Sampler": "sampler", "Model": "model", "Model hash": "model_hash", "Version": "version"}
# A remark may have a number of steps and one of these names, but not two. Only generators have the
# names in _OWN: a fitness tracker counts steps, and has a model and a size, too.
_OWN = {"Sampler", "CFG scale", "Seed"}
_TYPICAL = _OWN | {"Size", "Model", "Model hash", "Guidance Scale"}
_MIN_TYPICAL = 2

_OTHER_VERSIONS = (
    (re.compile(r"f\d|forge|neo|classic", re.IGNORECASE), f"{WEB_UI} Forge"),
    (re.compile(r"(Ruined)?Fooocus", re.IGNORECASE), "Fooocus"),
    (re.compile(r"ComfyUI", re.IGNORECASE), "ComfyUI"),
)


def read_parameters(text: str, *, is_remark: bool = False) -> dict[str, Any]:
    """The fields of a Generator; empty where the text has no such settings. `is_remark`: a person
    may have written it.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    start, is_own_line = _find_settings(lines)
    if start < 0:
        return {}
    settings = _settings(lines, start)
    if _OWN.isdisjoint(settings) or ((is_remark or not is_own_line) and not _is_typical(settings)):
        return {}
    prompt, negative = _prompts(lines[:start], is_own_line=is_own_line)
    fields = {field: settings[name] for name, field in _FIELDS.items() if name in settings}
    numbers = {
        name.lower(): int(settings[name][:20])
        for name in ("Steps", "Seed")
        if settings.get(name, "")[:20].isdecimal()
    }
    return {
        "tool": _tool(settings),
        "prompt": prompt,
        "negative_prompt": negative,
        **fields,
        **numbers,
    }


def _find_settings(text: str) -> tuple[int, bool]:
    """Where the settings start, or -1, and whether they have a line of their own."""
    start = -1
    for match in _LINE_START.finditer(text):
        start = match.start()
    if start >= 0:
        return start, True
    for place in _last_places(text, "Steps: "):
        if _STEPS.match(text, place) and _is_typical(_settings(text, place)):
            return place, False
    return -1, False


def _last_places(text: str, word: str) -> Iterator[int]:
    end = len(text)
    for _ in range(_MOST_TRIES):
        end = text.rfind(word, 0, end)
        if end < 0:
            return
        yield end


def _settings(text: str, start: int) -> dict[str, str]:
    end = text.find("\n", start, start + MOST_SETTINGS)
    line = text[start : start + MOST_SETTINGS if end < 0 else end]
    return {match[1]: match[2].strip('" ') for match in _SETTING.finditer(line)}


def _is_typical(settings: dict[str, str]) -> bool:
    return len(_TYPICAL & settings.keys()) >= _MIN_TYPICAL and not _OWN.isdisjoint(settings)


def _prompts(text: str, *, is_own_line: bool) -> tuple[str, str]:
    if text.startswith(_NEGATIVE):
        return "", text[len(_NEGATIVE) :]
    prompt, _, negative = text.partition(("\n" if is_own_line else "") + _NEGATIVE)
    return prompt, negative


def _tool(settings: dict[str, str]) -> str:
    if settings.get("App", "").startswith("SD.Next"):
        return "SD.Next"
    version = settings.get("Version", "")
    for pattern, tool in _OTHER_VERSIONS:
        if pattern.match(version):
            return tool
    return WEB_UI
