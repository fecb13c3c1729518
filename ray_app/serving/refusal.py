"""Define refusals of requests and images, each with a code and an HTTP status (`Refusal`)."""

from collections.abc import Mapping
from http import HTTPStatus

from ray_app.errors import InputError

MESSAGES: dict[str, tuple[int, str]] = {
    "malformed_request": (400, "the request cannot be understood"),
    "unauthorized": (401, "the request has no valid token: send Authorization: Bearer TOKEN"),
    "forbidden": (403, "access to this path is not allowed"),
    "not_found": (404, "this path does not exist"),
    "method_not_allowed": (405, "this path does not support this HTTP method"),
    "header_timeout": (408, "the headers of the request took too long"),
    "body_too_large": (413, "the request has more bytes than allowed"),
    "file_too_large": (413, "the image has more bytes than allowed"),
    "too_many_files": (413, "the request has more files than allowed"),
    "unsupported_format": (415, "not an image format that this endpoint accepts"),
    "unsupported_encoding": (415, "compressed request bodies are not accepted"),
    "too_many_requests": (429, "this token has made more requests than allowed"),
    "headers_too_large": (431, "the headers of the request are larger than allowed"),
    "internal_error": (500, "internal error of this endpoint; its log has the request id"),
    "overloaded": (503, "the endpoint is busy: all slots are taken"),
    "not_ready": (503, "the detectors are still loading"),
    "deadline_exceeded": (504, "the request took longer than allowed"),
}
_RETRY_AFTER_S = 2  # For a 503 without another time.


class Refusal(Exception):  # noqa: N818 - The name is that of a decision, not of an error.
    """Refuse a request with an HTTP status and the JSON `{code, message, limit, observed}`.

    Args:
        code: The reason as a code. It is a key of MESSAGES, such as `overloaded`, or the status of
            an image that cannot be scored, such as `corrupt_image`.
        message: The reason for people. None for the text in MESSAGES.
        limit: The limit that was exceeded. None if the reason is not a limit.
        observed: The number that exceeded `limit`.
        headers: Headers of the answer, such as Retry-After, which a 503 always has.
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
    def from_error(cls, error: InputError) -> "Refusal":
        """Return the refusal for an image that cannot be scored.

        Its status is 415 if the format of the image is not accepted, and otherwise 422.
        """
        return cls(str(error.status), error.detail, limit=error.limit, observed=error.observed)

    def body(self, request_id: str) -> dict[str, object]:
        """Return the refusal as a JSON object for the client.

        It has no information on this machine, such as paths.
        """
        return {
            "code": self.code,
            "message": self.message,
            "limit": self.limit,
            "observed": self.observed,
            "request_id": request_id,
        }
