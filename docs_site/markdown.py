"""Write Markdown from Python: tables, docstrings, notebooks, and links between pages."""

import inspect
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A link or an image. Code is matched first, because it contains no links.
_LINK = re.compile(
    r"^```.*?^```$|`[^`\n]+`|(?P<open>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")
_SIGNS = re.compile(r"[\\*_\[\]<>{}&`|]|^[#>+-]")  # Characters with a meaning in Markdown.
_SECTIONS = {"Args:": "Arguments", "Attributes:": "Attributes", "Raises:": "Exceptions"}
_PAGE = re.compile(r"docs/([\w-]+)\.md")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown, and their bars and line breaks are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in line)} |"
            for line in lines
        )
        + "\n"
    )


def code(text: str) -> str:
    """Return inline code as HTML, which is safe inside a table cell."""
    return f"<code>{_plain(text)}</code>" if text else ""


def prose(text: str) -> str:
    """Return plain text with `names` in backticks as Markdown for a page of the reference.

    A mention of docs/NAME.md becomes a link.
    """
    parts = text.split("`")
    return "".join(
        code(part) if number % 2 else _PAGE.sub(r"[\1](../\1.md)", _plain(part))
        for number, part in enumerate(parts)
    )


def _plain(text: str) -> str:
    return _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", text)


def docstring(text: str | None) -> str:
    r"""Return a docstring or the help of a command as Markdown.

    Indented paragraphs, and those that contain click's \b, stay preformatted.
    """
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        lines = paragraph.splitlines()
        if lines[0] in _SECTIONS:
            parts.append(_section(lines))
        elif "\b" in paragraph or all(line.startswith(("    ", ">>>")) for line in lines):
            parts.append(
                "\n".join(["```text", *(line for line in lines if line.strip("\b ")), "```"])
            )
        else:
            parts.append(prose(" ".join(line.strip() for line in lines)))
    return "\n\n".join(parts) + "\n"


def _section(lines: Sequence[str]) -> str:
    """Return a section of a docstring in Google style, such as `Args:`, as a list."""
    indent = len(lines[1]) - len(lines[1].lstrip())
    items: list[str] = []
    for line in lines[1:]:
        if len(line) - len(line.lstrip()) > indent:
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    entries = (item.partition(": ") for item in items)
    return "\n".join(
        [
            f"{_SECTIONS[lines[0]]}:",
            "",
            *(f"- {code(name)}: {prose(text)}" for name, _, text in entries),
        ]
    )


def notebook_page(content: str) -> str:
    """Return a notebook as Markdown: text, code, and outputs (text, images, HTML)."""
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


def relink(markdown: str, source: str, page: str, pages: Mapping[str, str]) -> str:
    """Rewrite the links of a file for the site; links to files that are not pages become text.

    Args:
        markdown: The text of the file.
        source: The path of the file in the repository.
        page: The path of its page on the site.
        pages: The paths of other root files on the site, by their path in the repository.
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


def separate_lists(markdown: str) -> str:
    """Insert an empty line before each list that follows a paragraph, which Python-Markdown needs."""
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
