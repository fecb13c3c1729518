"""`Selection`: which paths of an archive count, by patterns, and which folders need not be listed
for that.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_app.archives.containers import Container, Unopened
from ray_app.archives.members import ListedMember, UnreadableFolder
from ray_app.storage import matcher, matcher_below, matcher_of_all_below

Found = tuple[str, ListedMember | Container]  # with the path that patterns are compared with


@dataclass(frozen=True)
class Selection:
    """Which paths count: patterns as in `ray_app.storage.urls`, and places never listed, such as
    the run directory in its own source.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def chosen(self, found: Iterator[Found]) -> Iterator[tuple[Found, bool]]:
        """Yield everything outside the skipped places, and whether the patterns let it pass.

        A container passes if its members might, to be opened, or to be reported if it cannot be. An
        unreadable folder passes if any file in it might.
        """
        included, excluded = (
            _test(self.include, otherwise=True),
            _test(self.exclude, otherwise=False),
        )
        may_have_some, enters = matcher_below(self.include), self.enters()
        has_include = bool(self.include)
        for path, item in found:
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
        """Return a test of a folder by its path and its uri: False if everything in the folder is
        excluded or skipped.
        """
        excludes_all = matcher_of_all_below(self.exclude)
        return lambda path, uri: not (excludes_all(path) or self._is_skipped(uri))

    def _is_skipped(self, uri: str) -> bool:
        return any(
            uri.startswith(place) and uri[len(place) : len(place) + 1] in ("", "/")
            for place in self.skip
        )


def _test(patterns: tuple[str, ...], *, otherwise: bool) -> Callable[[str], bool]:
    return matcher(patterns) if patterns else lambda _: otherwise
