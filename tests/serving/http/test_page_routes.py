import re

import httpx
import pytest

from ray_app.errors import Reason, Status
from ray_app.images.facts import FLAG_MEANING
from ray_app.serving.config import ServeConfig
from ray_app.serving.http.app import create_app
from ray_app.serving.refusal import MESSAGES
from tests.serving.http.live import serving

TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@pytest.fixture(scope="module")
def client():
    app = create_app(ServeConfig(ensembles=("tiny",)), None, None)
    with serving(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


def test_files_of_the_page_have_their_types(client):
    index = client.get("/")
    assert (index.status_code, index.headers["content-type"]) == (200, "text/html; charset=utf-8")
    named = set(re.findall(r'(?:href|src)="([^"]+)"', index.text))
    scripts = {name for name in named if name.endswith(".js")}
    assert {"page/page.css", "page/house.css", "page/mark.svg", "page/page.js"} <= named
    for name in named:
        answer = client.get(name)
        assert answer.status_code == 200, name
        assert answer.headers["content-type"] == TYPES[name.rpartition(".")[2]], name
    imported = {
        f"page/{name}"
        for script in scripts
        for name in re.findall(r'from "\./([^"]+)"', client.get(script).text)
    }
    assert imported <= scripts  # all are preloaded: no chain of requests


def test_markup_is_without_inline_scripts_and_foreign_origins(client):
    answer = client.get("/")
    inline = r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:"
    assert not re.search(inline, answer.text)
    # The line for readers without JavaScript names the endpoint's own address.
    origins = set(re.findall(r"https?://[^/\"\s]+", answer.text))
    assert origins == {"http://localhost:8000"}
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'; style-src 'self'" in policy


def test_every_code_flag_and_reason_has_words(client):
    known = set(re.findall(r"^  (\w+): ", client.get("/page/words.js").text, re.MULTILINE))
    statuses = {str(status) for status in Status if status is not Status.OK}
    assert {*MESSAGES, *statuses, *FLAG_MEANING, *map(str, Reason)} <= known


def test_unchanged_file_is_not_sent_again(client):
    for path in ("/", "/page/page.js"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"If-None-Match": '"older"'}).status_code == 200


def test_no_other_file_is_served(client):
    for path in (
        *("", "nothing.js", "..%2F__init__.py", "%2e%2e/config.py", "..%5cconfig.py"),
        *("/etc/passwd", "page.js%00", "__init__.py"),
    ):
        answer = client.get(f"/page/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
