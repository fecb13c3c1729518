"""A proxy that makes of a real S3 server one without conditional writes: it ignores
`If-None-Match`, or refuses it.
"""

from tests.make.servers import faulty_proxy
from tests.make.servers.faulty import error_body

REFUSALS = {
    501: error_body(
        "NotImplemented", "A header you provided implies functionality that is not implemented."
    ),
    400: error_body("InvalidArgument", "Unsupported header: If-None-Match"),
}


class UnconditionalProxy(faulty_proxy.FaultyProxy):
    """`refusal`: the HTTP status that a conditional write is answered with; None = 200, as if
    nothing had been said.
    """

    def __init__(self, upstream: str, refusal: int | None = None) -> None:
        self.refusal = refusal
        super().__init__(upstream, share=0.0, handler=Handler)


class Handler(faulty_proxy.Handler):
    def _asked(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        refusal = self.server.owner.refusal if self.headers.get("If-None-Match") else None
        del self.headers["If-None-Match"]
        return super()._asked(body) if refusal is None else (refusal, REFUSALS[refusal], {})
