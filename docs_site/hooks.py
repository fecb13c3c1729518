"""mkdocs' hooks: pages made of the code, of the repository's root files and of notebooks; links
between all of them.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs_site import reference, schemas
from docs_site.markdown import notebook_page, relinked, spaced

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are pages too, and where.
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
    """Add what does not lie in docs/ as Markdown."""
    made = reference.pages() | {
        page: (ROOT / name).read_text(encoding="utf-8") for page, name in _SOURCES.items()
    }
    made |= {
        f"{file.src_uri.removesuffix('.ipynb')}.md": notebook_page(file.content_string)
        for file in files
        if file.src_uri.endswith(".ipynb")
    }
    for page, text in (made | schemas.files()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point links where their files stand on the site; lists are lists."""
    uri = page.file.src_uri
    return relinked(spaced(markdown), _SOURCES.get(uri, f"docs/{uri}"), uri, ROOT_PAGES)


def on_post_page(output: str, **_: Any) -> str:
    """For screen readers: name the search, which the theme does not; a cell without a heading is no
    heading.
    """
    named = output.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
    return named.replace("<th></th>", "<td></td>")
