"""Counts every request as it ends: route template, status, seconds, and why it was refused. Knows ASGI and the meter."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app.serving.metrics import Meter

ABANDONED = 499  # the client left before an answer began; as nginx counts it


class Metering:
    """The outermost layer: also what the guards refuse is counted."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app, self._meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), ABANDONED

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # A template, never a path: every value of a label is a series for ever.
            route = getattr(scope.get("route"), "path", "other")
            self._meter.request(route, status, time.perf_counter() - started)
            if refused := scope.get("state", {}).get("refused"):
                self._meter.refused(refused)
