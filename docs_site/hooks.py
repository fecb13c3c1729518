"""Hooks of mkdocs: add pages generated from the code, the root files, and notebooks, and fix links."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs_site import reference, schemas
from docs_site.markdown import notebook_page, relink, separate_lists

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are also pages, by their path on the site.
ROOT_PAGES = {
    "README.md": "index.md",  # the site has a first page of its own
    "CHANGELOG.md": "project/changelog.md",
    "UPGRADING.md": "project/upgrading.md",
    "SECURITY.md": "project/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
}
_SOURCES = {page: name for name, page in ROOT_PAGES.items() if page != "index.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not Markdown files in docs/."""
    texts = reference.pages() | {
        page: (ROOT / name).read_text(encoding="utf-8") for page, name in _SOURCES.items()
    }
    texts |= {
        f"{file.src_uri.removesuffix('.ipynb')}.md": notebook_page(file.content_string)
        for file in files
        if file.src_uri.endswith(".ipynb")
    }
    for page, text in (texts | schemas.files()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Rewrite links to paths on the site, and separate lists from paragraphs."""
    uri = page.file.src_uri
    return relink(separate_lists(markdown), _SOURCES.get(uri, f"docs/{uri}"), uri, ROOT_PAGES)


def on_post_page(output: str, **_: Any) -> str:
    """Name the search dialog, and turn empty header cells into data cells, for screen readers."""
    labelled = output.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
    return labelled.replace("<th></th>", "<td></td>")
