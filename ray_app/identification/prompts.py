"""Prompt cleaning: prompts as people and tools wrote them → the words that a model can learn and be
judged by (`cleaned`, `normalised_prompt`).

What is dropped: specs/localization.md §5, after DFLIP's own cleaning.
"""

import re
import unicodedata

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

_KEPT = {bracket: chr(0xE000 + place) for place, bracket in enumerate("()[]{}")}
_RESTORED = {letter: bracket for bracket, letter in _KEPT.items()}

_RATING = re.compile(
    r"(?<![\w-])(?:not safe for work|safe for work|n?sfw|r-?18\+?|rating[:_ ](?:safe|general|sensitive|questionable|explicit))(?![\w-])",
    re.IGNORECASE,
)


def normalised_prompt(prompt: str) -> str:
    """The words of a prompt without the syntax of Stable Diffusion's and Midjourney's front ends
    (specs/localization.md §5.1).

    Dropped: leading image links, `<lora:…>` and its like, `--ar 16:9` and every other parameter
    (`--no x, y` with what it forbids), weights `::2` and `(word:1.3)`, the brackets of emphasis,
    BREAK. Kept: brackets written `\\(so\\)`, both sides of `[from:to:0.5]`.
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


def cleaned(prompt: str | None) -> str | None:
    """The words of a prompt on one line, without front ends' syntax and without ratings (sfw, nsfw,
    rating:safe, R-18).

    None for what is no prompt: fewer than 10 characters, more than 2,000, or not one letter.
    """
    text = normalised_prompt(_RATING.sub(" ", prompt or ""))
    return (
        text
        if LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS
        and any(letter.isalpha() for letter in text)
        else None
    )
