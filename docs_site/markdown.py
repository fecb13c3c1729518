"""Markdown from Python: tables, prose from docstrings, a notebook as a page, links as they stand in
the repository.
"""

import inspect
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A link or a picture; or code, in which there is none.
_LINK = re.compile(
    r"^```.*?^```$|`[^`\n]+`|(?P<open>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")
_SIGNS = re.compile(r"[\\*_\[\]<>{}&`|]|^[#>+-]")  # that mean something to Markdown
_PAGE = re.compile(r"docs/([\w-]+)\.md")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a cell is Markdown already, in which bars and line breaks are made harmless."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in line)} |"
            for line in lines
        )
        + "\n"
    )


def code(text: str) -> str:
    """Inline code; what a table would take for the end of a cell is written as HTML."""
    return f"<code>{_plain(text)}</code>" if text else ""


def prose(text: str) -> str:
    """A sentence or a paragraph of plain text with `names` in backticks, on a page of the
    reference: docs/NAME.md becomes a link.
    """
    parts = text.split("`")
    return "".join(
        code(part) if number % 2 else _PAGE.sub(r"[\1](../\1.md)", _plain(part))
        for number, part in enumerate(parts)
    )


def _plain(text: str) -> str:
    return _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", text)


def docstring(text: str | None) -> str:
    """A docstring, or the help of a command: paragraphs; lines that are indented, or follow a \\b, stand as they are."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        lines = paragraph.splitlines()
        if "\b" in paragraph or all(line.startswith(("    ", ">>>")) for line in lines):
            parts.append(
                "\n".join(["```text", *(line for line in lines if line.strip("\b ")), "```"])
            )
        else:
            parts.append(prose(" ".join(line.strip() for line in lines)))
    return "\n\n".join(parts) + "\n"


def notebook_page(content: str) -> str:
    """A notebook as Markdown: its texts, its code, and what the code gave (texts, pictures, HTML)."""
    parts = []
    for cell in json.loads(content)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _output(output: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">\n{"".join(data["text/html"])}\n</div>'
    if "image/png" in data:
        return (
            f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
        )
    text = "".join(output.get("text", data.get("text/plain", output.get("traceback", ""))))
    return f"```text\n{text.rstrip()}\n```"


def relinked(markdown: str, source: str, page: str, pages: Mapping[str, str]) -> str:
    """A file's text with links that hold on the site.

    `source`: where it lies in the repository; `page`: where it stands on the site; `pages`: files
    of the repository and where they stand there. A link to a file that is not on the site stays as
    text.
    """

    def link(match: re.Match[str]) -> str:
        target, sign, anchor = (match["target"] or "").partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in pages:
            return f"{match['open']}({posixpath.relpath(pages[path], posixpath.dirname(page))}{sign}{anchor})"
        if path.startswith("docs/"):
            return f"{match['open']}({posixpath.relpath(path.removeprefix('docs/'), posixpath.dirname(page))}{sign}{anchor})"
        return match["open"].removeprefix("!")[1:-1]

    return _LINK.sub(link, markdown)


def spaced(markdown: str) -> str:
    """With an empty line before each list that follows a paragraph at once, as GitHub needs none
    and Python's Markdown does.
    """
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        if (
            _ITEM.match(line)
            and not fenced
            and lines
            and lines[-1].strip()
            and not lines[-1].startswith(" ")
            and not _ITEM.match(lines[-1])
        ):
            lines.append("")
        fenced ^= line.startswith("```")
        lines.append(line)
    return "\n".join(lines) + "\n"
