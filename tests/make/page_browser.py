"""A person at the page: real Chromium, with a record of what it asked for, complained of and
refused.
"""

import io

import numpy as np
from PIL import Image

_WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"


class Visitor:
    """Opens the page at an address; `requests` and `complaints` are what the browser did and said
    since.

    One tab for all visits, loaded anew, unless a visit has options of its own: a browser's process
    for each costs most of a test.
    """

    def __init__(self, browser, url):
        self.browser, self.url = browser, url
        self.requests, self.complaints = [], []
        self._page, self._contexts = None, []

    def visit(self, *, width=1440, height=900, wait=True, **options):
        if options:
            page = self._opened(**options)
            self._contexts.append(page.context)
        else:
            # animations cost, too
            page = self._page = self._page or self._opened(reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": height})
        page.goto(self.url)
        if wait:
            page.wait_for_selector("#drop-note:not(:empty)")
        return page

    def _opened(self, **options):
        context = self.browser.new_context(**options)
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    def leave(self):
        if self._page is not None and self._page.url != "about:blank":
            self._page.evaluate("sessionStorage.clear()")
            self._page.goto("about:blank")
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        self.requests.clear()
        self.complaints.clear()


def choose(page, named):
    """Choose files: pairs of a name and bytes."""
    kind = "application/octet-stream"
    files = [{"name": name, "mimeType": kind, "buffer": content} for name, content in named]
    page.set_input_files("#files", files)


def score_one(page, name, content):
    """Choose one file and wait for its finding."""
    choose(page, [(name, content)])
    page.wait_for_selector("#finding")


def score_many(page, named):
    """Choose several files and wait until the run is over."""
    choose(page, named)
    page.wait_for_selector(".gallery")
    page.wait_for_selector("#progress", state="hidden")


def encoded(seed, form="JPEG", size=(320, 240), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(data, form, **options)
    return data.getvalue()


PHOTO = encoded(1)
