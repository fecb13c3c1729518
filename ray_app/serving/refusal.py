"""Why an endpoint refuses a request or an image (`Refusal`): a closed list of codes, each with an
HTTP status.
"""

from collections.abc import Mapping
from http import HTTPStatus

from ray_app.errors import InputError

MESSAGES: dict[str, tuple[int, str]] = {
    "malformed_request": (400, "the request cannot be understood"),
    "unauthorized": (401, "no valid token"),
    "forbidden": (403, "there is nothing at this address"),
    "not_found": (404, "nothing is here"),
    "method_not_allowed": (405, "this address does not take this method"),
    "header_timeout": (408, "the headers took too long"),
    "body_too_large": (413, "the request has more bytes than allowed"),
    "file_too_large": (413, "the image has more bytes than allowed"),
    "too_many_files": (413, "the request has more files than allowed"),
    "unsupported_format": (415, "not an image format that this endpoint accepts"),
    "unsupported_encoding": (415, "compressed request bodies are not read"),
    "too_many_requests": (429, "this token has made more requests than allowed"),
    "headers_too_large": (431, "the request has more headers than allowed"),
    "internal_error": (500, "a fault of this endpoint; its log has the request id"),
    "overloaded": (503, "the endpoint is busy: every place is taken"),
    "not_ready": (503, "the detectors are still loading"),
    "deadline_exceeded": (504, "the request took longer than allowed"),
}
_RETRY_AFTER_S = 2  # of a 503 that names no time


class Refusal(Exception):  # noqa: N818 - the name of a decision, not of a fault
    """Ends a request with a status and `{code, message, limit, observed}`. `code` is one of
    MESSAGES or an image status.

    `limit` and `observed` are numbers where the refusal is about one, else None. `headers` go
    along, for example Retry-After. A 503 always has a Retry-After.
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
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers.setdefault("Retry-After", str(_RETRY_AFTER_S))
        super().__init__(f"{code}: {self.message}")

    @classmethod
    def of(cls, refused: InputError) -> "Refusal":
        """The refusal of one image: 415 where its bytes are no image that is let in, else 422."""
        return cls(
            str(refused.status), refused.detail, limit=refused.limit, observed=refused.observed
        )

    def body(self, request_id: str) -> dict[str, object]:
        """The JSON that a client gets: nothing of this machine in it."""
        return {
            "code": self.code,
            "message": self.message,
            "limit": self.limit,
            "observed": self.observed,
            "request_id": request_id,
        }
