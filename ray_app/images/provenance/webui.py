"""Read the text in which Stable Diffusion web UI and related programs write their parameters.

`read_parameters` returns the parameters as a dictionary. The text contains the prompt, the negative
prompt, and settings such as `Steps: 20`. The settings are on a separate line after the prompts, or
all text is on one line.
"""

import re
from collections.abc import Iterator
from typing import Any

WEB_UI = "Stable Diffusion web UI"
MAX_SETTINGS_CHARACTERS = 4000  # In the last line. A long line lists the hashes of many networks.
_MAX_TRIES = 8  # In a text on one line, because a prompt may have the word, too.
_LINE_START = re.compile(r"^Steps: \d+, [A-Z]", re.MULTILINE)
_STEPS = re.compile(r"Steps: \d+, [A-Z]")
_SETTING = re.compile(r'(\w[\w /-]{0,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|\Z)')
_NEGATIVE = "Negative prompt:"
_FIELDS = {"Sampler": "sampler", "Model": "model", "Model hash": "model_hash", "Version": "version"}
# A remark may have a number of steps and one of these names, but not two. Only generators have the
# names in _DECISIVE: a fitness tracker counts steps, and has a model and a size, too.
_DECISIVE = {"Sampler", "CFG scale", "Seed"}
_TYPICAL = _DECISIVE | {"Size", "Model", "Model hash", "Guidance Scale"}
_MIN_TYPICAL = 2

_OTHER_VERSIONS = (
    (re.compile(r"f\d|forge|neo|classic", re.IGNORECASE), f"{WEB_UI} Forge"),
    (re.compile(r"(Ruined)?Fooocus", re.IGNORECASE), "Fooocus"),
    (re.compile(r"ComfyUI", re.IGNORECASE), "ComfyUI"),
)


def read_parameters(text: str, *, is_remark: bool = False) -> dict[str, Any]:
    """Parse the text in which web UIs of Stable Diffusion write prompt, seed, and other parameters.

    The keys of the result are fields of `statement.Generator`, such as `prompt`. The result is
    empty if the text has no such parameters.

    Args:
        text: The text.
        is_remark: Whether a person may have written the text. If so, more settings are required for
            the text to be recognised.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    start, is_own_line = _find_settings(lines)
    if start < 0:
        return {}
    settings = _read_settings(lines, start)
    if _DECISIVE.isdisjoint(settings) or (
        (is_remark or not is_own_line) and not _is_typical(settings)
    ):
        return {}
    prompt, negative = _split_prompts(lines[:start], is_own_line=is_own_line)
    fields = {field: settings[name] for name, field in _FIELDS.items() if name in settings}
    numbers = {
        name.lower(): int(settings[name][:20])
        for name in ("Steps", "Seed")
        if settings.get(name, "")[:20].isdecimal()
    }
    return {
        "tool": _find_tool(settings),
        "prompt": prompt,
        "negative_prompt": negative,
        **fields,
        **numbers,
    }


def _find_settings(text: str) -> tuple[int, bool]:
    """Return the start of the settings, or -1, and whether they have a line of their own."""
    start = -1
    for match in _LINE_START.finditer(text):
        start = match.start()
    if start >= 0:
        return start, True
    for position in _find_last(text, "Steps: "):
        if _STEPS.match(text, position) and _is_typical(_read_settings(text, position)):
            return position, False
    return -1, False


def _find_last(text: str, phrase: str) -> Iterator[int]:
    end = len(text)
    for _ in range(_MAX_TRIES):
        end = text.rfind(phrase, 0, end)
        if end < 0:
            return
        yield end


def _read_settings(text: str, start: int) -> dict[str, str]:
    end = text.find("\n", start, start + MAX_SETTINGS_CHARACTERS)
    line = text[start : start + MAX_SETTINGS_CHARACTERS if end < 0 else end]
    return {match[1]: match[2].strip('" ') for match in _SETTING.finditer(line)}


def _is_typical(settings: dict[str, str]) -> bool:
    return len(_TYPICAL & settings.keys()) >= _MIN_TYPICAL and not _DECISIVE.isdisjoint(settings)


def _split_prompts(text: str, *, is_own_line: bool) -> tuple[str, str]:
    if text.startswith(_NEGATIVE):
        return "", text[len(_NEGATIVE) :]
    prompt, _, negative = text.partition(("\n" if is_own_line else "") + _NEGATIVE)
    return prompt, negative


def _find_tool(settings: dict[str, str]) -> str:
    if settings.get("App", "").startswith("SD.Next"):
        return "SD.Next"
    version = settings.get("Version", "")
    for pattern, tool in _OTHER_VERSIONS:
        if pattern.match(version):
            return tool
    return WEB_UI
