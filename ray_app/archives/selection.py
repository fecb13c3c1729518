"""Select the files of an archive by patterns, and the folders that must be listed (`Selection`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_app.archives.containers import Container, Unopened
from ray_app.archives.members import ListedMember, UnreadableFolder
from ray_app.storage import make_folder_matcher, make_matcher, make_subtree_matcher

# The path that patterns are compared with, and the member or container.
ListedEntry = tuple[str, ListedMember | Container]


@dataclass(frozen=True)
class Selection:
    """The patterns and URLs that decide which files of an archive are listed.

    Attributes:
        include: Patterns as in `ray_app.storage.urls`; if there are any, a path must match one.
        exclude: Patterns of paths that are left out.
        skip: URLs that are never listed, such as the run directory in its own source.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def filter_entries(self, entries: Iterator[ListedEntry]) -> Iterator[tuple[ListedEntry, bool]]:
        """Yield each entry outside the skipped URLs, and whether the patterns let the entry pass.

        An entry is a member or an unopened container, with its path. A container passes if any of
        its members might pass. So it is opened, or it is reported if it cannot be opened. An
        unreadable folder passes if any file in it might pass.
        """
        included, excluded = (
            _build_test(self.include, otherwise=True),
            _build_test(self.exclude, otherwise=False),
        )
        may_have_some, enters = make_folder_matcher(self.include), self.enters()
        has_include = bool(self.include)
        for path, item in entries:
            if self._is_skipped(item.uri):
                continue
            if isinstance(item, UnreadableFolder):
                yield (
                    (path, item),
                    enters(path, item.uri) and (may_have_some(path) or not has_include),
                )
                continue
            passes = included(path) or (
                isinstance(item, Container | Unopened) and may_have_some(path)
            )
            yield (path, item), passes and not excluded(path)

    def enters(self) -> Callable[[str, str], bool]:
        """Return a function that decides from a folder's path and uri whether to list the folder.

        It returns False if everything in the folder is excluded or skipped.
        """
        excludes_all = make_subtree_matcher(self.exclude)
        return lambda path, uri: not (excludes_all(path) or self._is_skipped(uri))

    def _is_skipped(self, uri: str) -> bool:
        return any(
            uri.startswith(prefix) and uri[len(prefix) : len(prefix) + 1] in ("", "/")
            for prefix in self.skip
        )


def _build_test(patterns: tuple[str, ...], *, otherwise: bool) -> Callable[[str], bool]:
    return make_matcher(patterns) if patterns else lambda _: otherwise
