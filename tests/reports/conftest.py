import pytest

pytest.register_assert_rewrite("tests.reports.every_page")

from tests.reports.browser import CHROMIUM, Browser, chromium  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    """A Chromium for one module's pages."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with chromium() as started:
        yield Browser(started)
