"""Prompt cleaning: prompts as people and tools wrote them → the words that a model can learn and be judged by (`cleaned`,
`normalised_prompt`).

What is dropped: specs/localization.md §5, after DFLIP's own cleaning.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

LEAST_CHARACTERS, MOST_CHARACTERS = 10, 2000

_LEADING_URLS = re.compile(r"\A(?:\s*<?https?://\S+)+")
_NETWORK = re.compile(r"<[A-Za-z]\w*:[^<>]*>")  # <lora:name:0.6>, <hypernet:name:1>, <lyco:name:1>
_UNWANTED = re.compile(r"(?:(?<=\s)|\A)(?:--|—)no\s.*?(?=\s(?:--|—)[A-Za-z]|\Z)", re.DOTALL)
_VALUE = r"(?:https?://\S+|[-\d.:]\S*|raw|random|cute|expressive|original|scenic)"
_PARAMETER = re.compile(rf"(?:(?<=\s)|\A)(?:--|—)[A-Za-z]\w*(?:[\s=]+{_VALUE}(?=\s|\Z))*")
_PART_WEIGHT = re.compile(r"::\s*-?(?:\d+(?:\.\d*)?|\.\d+)?")
_ESCAPED = re.compile(r"\\([()\[\]{}])")
_TOKEN_WEIGHT = re.compile(r":\s*-?(?:\d+(?:\.\d*)?|\.\d+)\s*(?=[)\]])")
_EDIT = re.compile(r"\[([^\[\]]*)\]")  # [from:to:0.5] and [one|other]
_COMMAS = re.compile(r" ?,(?: ?,)* ?")
_BREAK = re.compile(r"\bBREAK\b")


def normalised_prompt(prompt: str) -> str:
    """The words of a prompt without the syntax of Stable Diffusion's and Midjourney's front ends (specs/localization.md §5.1).

    Dropped: leading image links, `<lora:…>` and its like, `--ar 16:9` and every other parameter (`--no x, y` with what it forbids),
    weights `::2` and `(word:1.3)`, the brackets of emphasis, BREAK. Kept: brackets written `\\(so\\)`, both sides of `[from:to:0.5]`.
    """
    text = _one_line(unicodedata.normalize("NFKC", prompt))
    for dropped in (_LEADING_URLS, _NETWORK, _UNWANTED, _PARAMETER, _PART_WEIGHT, _BREAK):
        text = _one_line(dropped.sub(" ", text))  # runs of spaces would cost their square
    text = _ESCAPED.sub(lambda found: _KEPT[found[1]], text)
    text = _EDIT.sub(lambda found: re.sub(r"[:|]", " ", found[1]), _TOKEN_WEIGHT.sub("", text))
    text = re.sub(r"[()\[\]{}]", "", text)
    text = "".join(_RESTORED.get(letter, letter) for letter in text)
    return _COMMAS.sub(", ", _one_line(text)).strip(", ")


def _one_line(text: str) -> str:
    """The same with one space wherever there was any."""
    return " ".join(text.split())


_KEPT = {bracket: chr(0xE000 + place) for place, bracket in enumerate("()[]{}")}
_RESTORED = {letter: bracket for bracket, letter in _KEPT.items()}

_RATING = re.compile(
    r"(?<![\w-])(?:not safe for work|safe for work|n?sfw|r-?18\+?|rating[:_ ](?:safe|general|sensitive|questionable|explicit))(?![\w-])",
    re.IGNORECASE,
)
_TEXTS = ("text", "text_positive", "text2")  # inputs of ComfyUI's nodes that hold words


def cleaned(prompt: str | None) -> str | None:
    """The words of a prompt on one line, without front ends' syntax and without ratings (sfw, nsfw, rating:safe, R-18).

    None for what is no prompt: fewer than 10 characters, more than 2,000, or not one letter.
    """
    text = normalised_prompt(_RATING.sub(" ", prompt or ""))
    return text if LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS and any(letter.isalpha() for letter in text) else None


def prompt_in(record: Mapping[str, Any]) -> str | None:
    """The prompt of a metadata record, as it stands there: `prompt`, else `meta.prompt`, else the words of the ComfyUI graph in
    `meta.comfy`, else `description` or `caption`. None where there is none.
    """
    meta = record.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    for found in (record.get("prompt"), meta.get("prompt"), _in_graph(meta.get("comfy")), record.get("description"), record.get("caption")):
        if isinstance(found, str) and found.strip():
            return found
    return None


def _in_graph(comfy: Any) -> str | None:
    """The words that a ComfyUI graph makes an image from: those that reach a `positive` input, else all that reach no `negative` one."""
    nodes = _nodes(comfy)
    wanted, refused = (_upstream(nodes, name) for name in ("positive", "negative"))
    chosen = [name for name in nodes if name in wanted] or [name for name in nodes if name not in refused]
    words = [text for name in chosen for text in _texts(nodes[name])]
    return ", ".join(dict.fromkeys(words)) or None


def _nodes(comfy: Any) -> dict[str, Mapping[str, Any]]:
    """Inputs by the name of their node; empty for what is no graph."""
    if isinstance(comfy, str):
        try:
            comfy = json.loads(comfy)
        except (ValueError, RecursionError):
            return {}
    graph = comfy.get("prompt", comfy) if isinstance(comfy, Mapping) else {}
    if not isinstance(graph, Mapping):
        return {}
    inputs = {str(name): node.get("inputs") for name, node in graph.items() if isinstance(node, Mapping)}
    return {name: given for name, given in inputs.items() if isinstance(given, Mapping)}


def _upstream(nodes: Mapping[str, Mapping[str, Any]], name: str) -> set[str]:
    """Every node from which something flows into an input of this name; a link is [node, output]."""
    waiting = [str(link[0]) for given in nodes.values() if _is_link(link := given.get(name, ()))]
    found: set[str] = set()
    while waiting:
        if (node := waiting.pop()) in nodes and node not in found:
            found.add(node)
            waiting += [str(link[0]) for link in nodes[node].values() if _is_link(link)]
    return found


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _texts(given: Mapping[str, Any]) -> Iterator[str]:
    yield from (text.strip() for name in _TEXTS if isinstance(text := given.get(name), str) and text.strip())
