"""Read the images in the body of a request, which is raw or a form, in memory (`read_images`)."""

import asyncio
import logging
import unicodedata
from collections.abc import AsyncIterator

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from ray_app.errors import InputError, Status
from ray_app.serving.refusal import Refusal

# It would log each invalid form. The client already gets an error.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_FILE_FIELD = "file"
# curl sends this type with -d, which damages a file, and with --data-binary, which does not.
_FORM_ENCODED = b"application/x-www-form-urlencoded"
_QUERY_HINT = "`ensemble`, `detector`, `fpr`, and `masks` are query parameters"
_MAX_HEADER_BYTES = 32 * 1024
_MAX_NAME = 255
_MAX_MESSAGE_NAME = 60
_MAX_PADDING_BYTES = 1024
_PAUSE_BYTES = 2**18

# The name that each image was sent with, and its bytes, in the order of the request.
Images = list[tuple[str | None, bytes]]


async def read_images(request: Request, *, max_files: int, max_file_bytes: int) -> Images:
    """Read the images of a request. A raw body is one image, and each part of a form is one image.

    The image in a raw body (any content type) has no name. All parts of a `multipart/form-data`
    body must be named `file`. Text before the first boundary and after the last boundary is
    ignored. Nothing is written to disk. The result is in the order of the request. The name is None
    if the client sent none. Raises Refusal, `too_many_files` or `file_too_large` before the body
    has ended, or `malformed_request`, also for a file that `curl -d` has damaged, and InputError if
    a raw body is empty.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        return await _Form(options.get(b"boundary", b""), max_files, max_file_bytes).read(
            request.stream()
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_file_bytes:
        raise _make_too_large(max_file_bytes, int(announced))
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_file_bytes:
            raise _make_too_large(max_file_bytes, len(data))
    if not data:
        raise InputError(Status.EMPTY_FILE, "the request has no body")
    if kind == _FORM_ENCODED and not any(byte in data for byte in b"\r\n\0"):
        raise Refusal(
            "malformed_request",
            "the body has no CR, LF, or NUL byte, which curl -d removes from a file: send it with curl --data-binary",
        )
    return [(None, bytes(data))]


def clean_name(name: str) -> str | None:
    """Return the name of a file from a client in a safe form, or None if nothing is left.

    The result is the last part of the path, in Unicode form NFC, without invisible characters, and
    with up to 255 characters.
    """
    base_name = name.replace("\\", "/").rpartition("/")[2]
    visible = "".join(
        letter
        for letter in unicodedata.normalize("NFC", base_name)
        if unicodedata.category(letter)[0] != "C"
    )
    clean = " ".join(visible.split())[:_MAX_NAME]
    return clean if clean.strip(". ") else None


class _Form:
    """A multipart body (RFC 7578), as the callbacks of python-multipart's parser report it."""

    def __init__(self, boundary: bytes, max_files: int, max_file_bytes: int) -> None:
        if not boundary:
            raise Refusal("malformed_request", "the multipart content type has no boundary")
        self.boundary, self.max_files, self.max_file_bytes = boundary, max_files, max_file_bytes
        self.images: Images = []
        self.ended = False
        self.delimiters = self.padding_bytes = 0
        self._in_preamble = True
        self._header = self._value = self._disposition = b""
        self._name: str | None = None
        self._data = bytearray()

    async def read(self, chunks: AsyncIterator[bytes]) -> Images:
        try:
            parser = self._start_parser()
            unpaused = 0
            async for chunk in chunks:
                if not self.ended:  # The rest is the epilogue.
                    self._parse(parser, chunk)
                # Chunks that have already arrived come without a pause. Let other tasks run after
                # every quarter of a MiB.
                unpaused += len(chunk)
                if unpaused > _PAUSE_BYTES:
                    unpaused = 0
                    await asyncio.sleep(0)
        except FormParserError as error:
            raise Refusal("malformed_request", "the multipart body cannot be read") from error
        if not self.ended:
            raise Refusal("malformed_request", "the multipart body ends before its last boundary")
        if not self.images:
            raise Refusal("malformed_request", f"the form has no part named `{_FILE_FIELD}`")
        return self.images

    def _start_parser(self) -> MultipartParser:
        parser = MultipartParser(
            self.boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._end,
            },
            max_header_size=_MAX_HEADER_BYTES,
        )
        # The parser does not support a preamble (RFC 2046, section 5.1.1). These bytes make the
        # preamble the data of a first part, which is dropped.
        parser.write(b"--%b\r\n\r\n\r\n" % self.boundary)
        return parser

    def _parse(self, parser: MultipartParser, chunk: bytes) -> None:
        """Parse a chunk, and refuse a form with too many delimiters or too much padding.

        The parser reads a false end of a part, and the padding of a boundary, byte by byte. 64 MB
        of them would take 20 s of one core.
        """
        delimiter = b"\r\n--" + self.boundary
        last = chunk.find(delimiter + b"--")
        self.delimiters += chunk.count(delimiter, 0, len(chunk) if last < 0 else last)
        if self.delimiters > self.max_files:
            raise self._make_too_many()
        was_padding = parser.state == MultipartState.BOUNDARY_PADDING
        parser.write(chunk)
        if was_padding and parser.state == MultipartState.BOUNDARY_PADDING:
            self.padding_bytes += len(chunk)
        if self.padding_bytes > _MAX_PADDING_BYTES:
            raise Refusal("malformed_request", "a boundary of the multipart body has no end")

    def _part_begins(self) -> None:
        self._header = self._value = self._disposition = b""
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        if self._in_preamble:
            return
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise Refusal("malformed_request", "a part of the form has no name")
        field = _decode_text(options[b"name"])
        if field != _FILE_FIELD:
            name = "".join(letter for letter in field if letter.isprintable())[:_MAX_MESSAGE_NAME]
            raise Refusal(
                "malformed_request",
                f"unknown form field `{name}`: the only field is `{_FILE_FIELD}`; {_QUERY_HINT}",
            )
        self._name = clean_name(_decode_text(options.get(b"filename", b"")))
        if len(self.images) == self.max_files:
            raise self._make_too_many()

    def _make_too_many(self) -> Refusal:
        """Return the refusal for the first file over the limit.

        `observed` is one more than the limit, since the number of files that have arrived depends
        on the network.
        """
        return Refusal("too_many_files", limit=self.max_files, observed=self.max_files + 1)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_preamble:
            return
        self._data += memoryview(data)[start:end]
        if len(self._data) > self.max_file_bytes:
            raise _make_too_large(self.max_file_bytes, len(self._data))

    def _part_ends(self) -> None:
        if not self._in_preamble:
            self.images.append((self._name, bytes(self._data)))
        self._in_preamble = False

    def _end(self) -> None:
        self.ended = True


def _decode_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _make_too_large(limit: int, observed: int) -> Refusal:
    return Refusal("file_too_large", limit=limit, observed=observed)
