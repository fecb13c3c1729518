import pytest

pytest.register_assert_rewrite("tests.reports.every_page")

from tests.reports.browser import CHROMIUM, Browser  # noqa: E402


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium for one module's pages."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
