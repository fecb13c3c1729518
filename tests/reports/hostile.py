"""Names that try to break out of a page, a line or a column, and documents that have them wherever
a text may stand.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

# No name is longer than a key of S3: 1,024 bytes.
NAMES = {
    "markup": 's3://b/"><script>alert(1)</script>.jpg',
    "attribute": "s3://b/x' onerror='alert(1)",
    "template": "{{ 7 * 7 }}{% raw %}.jpg",
    "scheme": "javascript:alert(1)//.jpg",
    "remote": '"><img src="http://127.0.0.1:9/x.png"><link href="https://127.0.0.1:9/x.css">',
    "comment": "<!-- --><![CDATA[ ]]></style></svg></table>",
    "long": "s3://b/" + "a" * 1000 + ".jpg",
    "deep": "s3://" + "a/" * 500 + "b.jpg",
    "unprintable": "s3://b/one\ntwo\r\tthree\x00\x1b[31m\u202egpj\u2066\u200b\u00ad\u2028\udcff.jpg",
    "stacked": "s3://b/Z" + "\u0336\u0489\u0301" * 8 + ".jpg",
    "wide": "s3://b/דוגמה/" + "日本語" * 60 + ".jpg",
    "no name": "",
}
# Short texts first, because long texts are cut.
ALL_NAMES = "".join(sorted(NAMES.values(), key=len))


def poisoned(
    document: Any, text: str, *, names: Collection[str] = (), words: Collection[str] = ()
) -> Any:
    """The document with `text` in place of every text in it, but for fields in `words`, which
    decide where something stands.

    `names`: what is a key in one place and may be a value in another: each bears the text with a
    number behind it, in all of them.
    """
    return _poisoned(
        document,
        text,
        {name: f"{text}{number or ''}" for number, name in enumerate(names)},
        words,
        "",
    )


def _poisoned(
    value: Any, text: str, renamed: Mapping[str, str], words: Collection[str], key: str
) -> Any:
    if isinstance(value, str):
        return value if key in words else renamed.get(value, text)
    if isinstance(value, Mapping):
        return {
            renamed.get(name, name): _poisoned(item, text, renamed, words, name)
            for name, item in value.items()
        }
    if is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: _poisoned(getattr(value, field.name), text, renamed, words, field.name)
            for field in fields(value)
        }
        return replace(value, **changed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        items = zip(value._fields, value, strict=True)
        return type(value)(*(_poisoned(item, text, renamed, words, name) for name, item in items))
    return (
        type(value)(_poisoned(item, text, renamed, words, key) for item in value)
        if isinstance(value, list | tuple)
        else value
    )
