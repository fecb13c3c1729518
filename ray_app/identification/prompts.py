"""Clean prompts, so that they describe only the image (`clean_prompt`).

Programs such as Stable Diffusion web UI and Midjourney have a prompt syntax, such as
`(word:1.3)` and `--ar 16:9`. `normalise_prompt` removes this syntax. `clean_prompt` also removes
ratings such as nsfw. The rules follow the cleaning of the data set DFLIP-3K.
"""

import re
import unicodedata

MIN_CHARACTERS, MAX_CHARACTERS = 10, 2000

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

_PLACEHOLDERS = {bracket: chr(0xE000 + index) for index, bracket in enumerate("()[]{}")}
_RESTORED = {letter: bracket for bracket, letter in _PLACEHOLDERS.items()}

_RATING = re.compile(
    r"(?<![\w-])(?:not safe for work|safe for work|n?sfw|r-?18\+?|rating[:_ ](?:safe|general|sensitive|questionable|explicit))(?![\w-])",
    re.IGNORECASE,
)


def normalise_prompt(prompt: str) -> str:
    r"""Remove the prompt syntax of programs such as Stable Diffusion web UI and Midjourney.

    Removed: leading image links, `<lora:…>` and similar tags, parameters such as `--ar 16:9`, `--no
    x, y` with its values, the weights `::2` and `(word:1.3)`, brackets of emphasis, and BREAK.
    Kept: escaped brackets as in `\(so\)`, and both texts of `[from:to:0.5]`.
    """
    text = _one_line(unicodedata.normalize("NFKC", prompt))
    for pattern in (_LEADING_URLS, _NETWORK, _UNWANTED, _PARAMETER, _PART_WEIGHT, _BREAK):
        text = _one_line(pattern.sub(" ", text))  # Runs of spaces would take quadratic time.
    text = _ESCAPED.sub(lambda match: _PLACEHOLDERS[match[1]], text)
    text = _EDIT.sub(lambda match: re.sub(r"[:|]", " ", match[1]), _TOKEN_WEIGHT.sub("", text))
    text = re.sub(r"[()\[\]{}]", "", text)
    text = "".join(_RESTORED.get(letter, letter) for letter in text)
    return _COMMAS.sub(", ", _one_line(text)).strip(", ")


def _one_line(text: str) -> str:
    """Replace each run of white space with one space."""
    return " ".join(text.split())


def clean_prompt(prompt: str | None) -> str | None:
    """Return a prompt on one line, without weights, tags, and parameters, and without ratings.

    Weights such as `(word:1.3)` and parameters such as `--ar 16:9` are instructions to generators,
    which `normalise_prompt` removes. Ratings are words such as sfw, nsfw, rating:safe, and
    R-18. The result is None if the cleaned text cannot be a prompt, because it has no letter, fewer
    than 10 characters, or more than 2,000.
    """
    text = normalise_prompt(_RATING.sub(" ", prompt or ""))
    return (
        text
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS
        and any(letter.isalpha() for letter in text)
        else None
    )
