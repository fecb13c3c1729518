"""What became of a url, in the words of `errors.Status` where one fits. Knows words only."""

from ray_app.errors import Status

OK = "ok"
FORBIDDEN_ADDRESS = "forbidden_address"
BAD_URL = "bad_url"

MEANING: dict[str, str] = {
    OK: "an image that decodes, in its place",
    Status.SOURCE_MISSING: "404 or 410, or no such host",
    Status.SOURCE_DENIED: "the host refuses (401, 403, …), or answers with what is no use",
    Status.SOURCE_THROTTLED: "the host kept asking to slow down (429, 503)",
    Status.SOURCE_TIMEOUT: "no answer, a fault of the host, or an answer that broke off, each time",
    FORBIDDEN_ADDRESS: "its address is not on the public Internet",
    BAD_URL: "not a URL that is fetched",
    Status.UNSUPPORTED_FORMAT: "what came is no image, a page for example",
    Status.EMPTY_FILE: "what came has no bytes",
    Status.CORRUPT_IMAGE: "what came does not decode",
    Status.TRUNCATED_IMAGE: "what came ends before the image does, each time",
    Status.IMAGE_TOO_LARGE: "over the limits in bytes or pixels",
    Status.METADATA_TOO_LARGE: "text or profiles over the limits",
    Status.DECODE_TIMEOUT: "decoding took longer than the wall limit",
    Status.DECODER_CRASHED: "the decoder process died on it",
}
# What another day may give.
PASSING = (str(Status.SOURCE_THROTTLED), str(Status.SOURCE_TIMEOUT), str(Status.TRUNCATED_IMAGE))


class Failed(Exception):  # noqa: N818 - an outcome of one url, not of the program
    """One url did not give its image. `passing`: it may by itself; `wait_s`: not before so long; `answered`: its host said
    something; `asked`: there was a request at all.
    """

    def __init__(
        self,
        status: str,
        detail: str,
        *,
        passing: bool = False,
        wait_s: float | None = None,
        answered: bool = True,
        asked: bool = True,
        http_status: int | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.passing, self.wait_s = str(status), detail, passing, wait_s
        self.answered, self.asked, self.http_status, self.sha256 = answered, asked, http_status, sha256
