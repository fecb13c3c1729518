"""A headless Chromium: enough to load a page and ask it questions."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_WATCHED = (
    *(
        "Network.requestWillBeSent",
        "Log.entryAdded",
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
    ),
    "Page.javascriptDialogOpening",
)


def only_with_chromium() -> None:
    """Called at the head of a module of tests: without a browser it is skipped, once and as a
    whole.
    """
    if not CHROMIUM.exists():
        pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser; one at a time in a process."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


class Browser:
    """One tab, with what its page asked for and complained of since it was shown."""

    def __init__(self, started: Any) -> None:
        self.page = started.new_context(no_viewport=True).new_page()
        self._session = self.page.context.new_cdp_session(self.page)
        self._events: list[tuple[str, dict[str, Any]]] = []
        for method in _WATCHED:
            self._session.on(method, partial(self._note, method))
        for domain in ("Page", "Log", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        self._events.append((method, parameters))

    def show(self, page: Path, *, width: int, scheme: str = "light") -> None:
        self.resize(width, scheme=scheme)
        self._events.clear()
        self.page.goto(page.as_uri())

    def resize(self, width: int, *, scheme: str = "light", media: str = "screen") -> None:
        """The page that is shown, in another window or on another medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def ask(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def called(self, method: str) -> list[dict[str, Any]]:
        return [parameters for name, parameters in self._events if name == method]

    def call(self, method: str, **parameters: Any) -> Any:
        return self._session.send(method, parameters)
