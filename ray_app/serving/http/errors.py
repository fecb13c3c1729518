"""Refusals as HTTP: one JSON shape, one closed list of codes, one status for each. Knows no route."""

from collections.abc import Mapping

from ray_app.errors import InputError

MESSAGES: dict[str, tuple[int, str]] = {
    "malformed_request": (400, "the request cannot be understood"),
    "unauthorized": (401, "no valid token"),
    "forbidden": (403, "this endpoint does not answer that"),
    "not_found": (404, "nothing is here"),
    "method_not_allowed": (405, "this address knows no such method"),
    "header_timeout": (408, "the headers took longer than they may"),
    "conflict": (409, "it contradicts an earlier request"),
    "body_too_large": (413, "more bytes than one request may have"),
    "file_too_large": (413, "more bytes than one image may have"),
    "too_many_files": (413, "more files than one request may have"),
    "unsupported_format": (415, "not an image format that is let in"),
    "unsupported_encoding": (415, "compressed request bodies are not read"),
    "url_refused": (422, "this address is not fetched"),
    "too_many_requests": (429, "more requests than this token may make"),
    "headers_too_large": (431, "more headers than one request may have"),
    "internal_error": (500, "a fault of this endpoint; its log has the request id"),
    "overloaded": (503, "every place is taken"),
    "not_ready": (503, "the detectors are still loading"),
    "deadline_exceeded": (504, "it took longer than one request may take"),
}


class Refusal(Exception):  # noqa: N818 - the name of a decision, not of a fault
    """Ends a request with a status and `{code, message, limit, observed}`. `code` is one of MESSAGES or an image status.

    `limit` and `observed` are numbers where the refusal is about one, else None. `headers` go along, for example Retry-After.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        limit: float | None = None,
        observed: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, meaning = MESSAGES.get(code, (422, "the image was refused"))
        self.code, self.message = code, message or meaning
        self.limit, self.observed, self.headers = limit, observed, dict(headers or {})
        super().__init__(f"{code}: {self.message}")

    @classmethod
    def of(cls, refused: InputError) -> "Refusal":
        """The refusal of one image: 415 where its bytes are no image that is let in, else 422."""
        return cls(str(refused.status), refused.detail, limit=refused.limit, observed=refused.observed)

    @property
    def is_about_one_image(self) -> bool:
        """Whether another image of the same request, or job, may still get its answer."""
        return self.status in (413, 415, 422)

    def body(self, request_id: str) -> dict[str, object]:
        """The JSON that a client gets: nothing of this machine in it."""
        return {"code": self.code, "message": self.message, "limit": self.limit, "observed": self.observed, "request_id": request_id}
