"""The text that Stable Diffusion web UI writes: prompt, negative prompt, and a last line of `Steps: 20, Sampler: Euler a, …`."""

import re
from typing import Any

MOST_SETTINGS = 4000  # characters of the last line: a long one lists the hashes of many networks
_STEPS = re.compile(r"^Steps: \d+, [A-Z]", re.MULTILINE)
_SETTING = re.compile(r'(\w[\w /-]{0,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|\Z)')
_NEGATIVE = "Negative prompt:"
_FIELDS = {"Sampler": "sampler", "Model": "model", "Model hash": "model_hash", "Version": "version"}


def read_parameters(text: str) -> dict[str, Any]:
    """The fields of a Generator but for the tool; empty where the text has no such line."""
    starts = [match.start() for match in _STEPS.finditer(text)]
    if not starts:
        return {}
    said = text[: starts[-1]]
    prompt, _, negative = said.partition("\n" + _NEGATIVE) if not said.startswith(_NEGATIVE) else ("", "", said[len(_NEGATIVE) :])
    line = text[starts[-1] :].partition("\n")[0][:MOST_SETTINGS]
    settings = {match[1]: match[2].strip('" ') for match in _SETTING.finditer(line)}
    fields = {field: settings[name] for name, field in _FIELDS.items() if name in settings}
    numbers = {name.lower(): int(settings[name][:20]) for name in ("Steps", "Seed") if settings.get(name, "")[:20].isdecimal()}
    return {"prompt": prompt, "negative_prompt": negative, **fields, **numbers}
