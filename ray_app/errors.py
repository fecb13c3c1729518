"""Every way Touchstone can fail, as one tree, one list of statuses and one list of exit codes; and
why a verdict may be withheld.

    TouchstoneError
    ├─ ConfigError              exit 2    the user edits a file or an argument
    │  └─ IdentityError         exit 2    the run directory belongs to another command
    ├─ InputError               a row     this image, not the system: its status says why
    │  └─ SourceError           a row     this member could not be read: its status says why
    ├─ DetectorError            exit 4    card, weights or device
    └─ ClusterError             exit 5    no capacity, no progress
       └─ StorageError          exit 5    source listing or run directory out of reach

A bad image is a row with a status; a bad system is an exception with a hint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from typing import NamedTuple, Self


class Explained(StrEnum):
    """Words of a closed list, each with its `meaning` for people."""

    meaning: str

    def __new__(cls, word: str, meaning: str = "") -> Self:
        """A word as the class lists it; by the word alone, the one that is there."""
        one = str.__new__(cls, word)
        one._value_, one.meaning = word, meaning
        return one


class Status(Explained):
    """Why a member has a score (`ok`) or has none. Closed: details go to the `detail` column."""

    OK = "ok", "scored"
    EMPTY_FILE = "empty_file", "the file has no bytes"
    UNSUPPORTED_FORMAT = "unsupported_format", "not an image format that Touchstone reads"
    CORRUPT_IMAGE = "corrupt_image", "the image is damaged: its bytes do not decode"
    TRUNCATED_IMAGE = "truncated_image", "the file ends before the image does"
    IMAGE_TOO_LARGE = "image_too_large", "larger than the limits allow, refused before decoding"
    METADATA_TOO_LARGE = (
        "metadata_too_large",
        "printing colours whose profile is larger than the limits allow",
    )
    UNSAFE_MEMBER = "unsafe_member", "a file in an archive with an unsafe name or type"
    ENCRYPTED_MEMBER = "encrypted_member", "an encrypted file in an archive"
    DECODE_TIMEOUT = "decode_timeout", "decoding took longer than the limit"
    DECODER_CRASHED = (
        "decoder_crashed",
        "the decoder crashed on it, or Touchstone's own code failed",
    )
    SOURCE_MISSING = "source_missing", "it was listed, but was gone when it was read"
    SOURCE_DENIED = "source_denied", "the storage refused access"
    SOURCE_THROTTLED = "source_throttled", "the storage kept asking to slow down"
    SOURCE_TIMEOUT = "source_timeout", "the storage did not answer in time"
    SOURCE_CHANGED = "source_changed", "it changed after it was listed"
    DETECTOR_FAILED = "detector_failed", "a detector failed on it"


class Reason(Explained):
    """Why a verdict is `abstain`. Closed, and in order: where several hold, the first is named.
    What varies, such as names and figures, goes to the `verdict_detail` column.
    """

    NO_CONTENT = "no_content", "the image is one colour, or nearly: there is nothing to judge"
    NO_SCORE = "no_score", "a detector that the ensemble needs gave no score"
    OUT_OF_RANGE = "out_of_range", "the image is outside what a detector was made for"
    UNLIKE_CALIBRATION = (
        "unlike_calibration",
        "the image is outside what the ensemble was calibrated on",
    )
    INSIDE_BAND = "inside_band", "the score lies between the two thresholds"
    UNSTABLE = "unstable", "saved once more, the image gets another verdict (runs before 1.0)"
    UNLIKE_ARCHIVE = "unlike_archive", "the archive is not like what the ensemble was calibrated on"


VERDICT_WORDS = {"fake": "flagged as fake", "abstain": "abstained", "real": "no evidence found"}
# The finding on a file about which nothing but the verdict is known.
DETECTOR_FINDINGS = {
    "fake": "flagged by detectors",
    "abstain": "left open",
    "real": "no evidence found",
}


class Doubt(NamedTuple):
    """Why there is no verdict: a word of the closed list, and what varies in it."""

    reason: Reason
    detail: str | None = None


class ExitCode(IntEnum):
    """What the process says when it ends; part of the public contract."""

    DONE = 0
    BUG = 1
    USAGE = 2
    TOO_MANY_BAD = 3
    DETECTOR = 4
    CLUSTER = 5
    INTERRUPTED = 130


MOST_CHARACTERS = 1000  # of a `detail`

# The note (PEP 678) on an exception that ended a run in its middle.
RESUMABLE = "what is committed is kept; the same command resumes"


class TouchstoneError(Exception):
    """The base class of all exceptions of Touchstone.

    Attributes:
        message: The problem, in one line.
        hint: The next step, shown on a line of its own.
        exit_code: The exit code of a command that ends with this exception.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"→ {hint}")  # which a traceback shows: from Python nobody else would

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions between processes; keyword-only fields would be lost by the
        # default.
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(cls: type[TouchstoneError], fields: dict[str, object]) -> TouchstoneError:
    error = cls.__new__(cls)
    Exception.__init__(error, fields["message"])
    error.__dict__.update(fields)
    return error


class ConfigError(TouchstoneError):
    """A file, key or argument that the user has to change."""

    exit_code = ExitCode.USAGE


class IdentityError(ConfigError):
    """Another command made the run directory, or another run is writing it."""


class InputError(TouchstoneError):
    """One image cannot be scored. A run writes a row with the status and the detail.

    Attributes:
        status: The reason, from a closed list.
        detail: Numbers, names, or the message of a decoder, in one line.
        limit: The limit that the image exceeds.
        observed: The value that exceeds the limit.
    """

    def __init__(
        self,
        status: Status,
        detail: str,
        *,
        limit: float | None = None,
        observed: float | None = None,
    ) -> None:
        detail = one_line(detail)
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.limit = limit
        self.observed = observed


class SourceError(InputError):
    """Storage did not return the bytes of one member."""


class DetectorError(TouchstoneError):
    """A card, its weights or its device is unusable."""

    exit_code = ExitCode.DETECTOR


class ClusterError(TouchstoneError):
    """The cluster has no capacity, or a run made no progress."""

    exit_code = ExitCode.CLUSTER


class StorageError(ClusterError):
    """A source cannot be listed, or a run directory cannot be written."""


@contextmanager
def resumable(*kinds: type[BaseException]) -> Iterator[None]:
    """What of these kinds leaves the block carries the note RESUMABLE."""
    try:
        yield
    except kinds as error:
        error.add_note(RESUMABLE)
        raise


def one_line(text: str) -> str:
    """Text as a row, JSON and a terminal can hold it: escapes for what cannot be printed (line
    breaks, controls, halves of characters), and no more than `MOST_CHARACTERS`.
    """
    if not text.isprintable():
        text = "".join(
            one if one.isprintable() else one.encode("unicode_escape").decode()
            for one in text[: MOST_CHARACTERS + 1]
        )
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def is_want_of_memory(error: BaseException) -> bool:
    """Whether a process, or its GPU, had too little memory, whichever library says so."""
    # torch's own class is known by its name, since a decoder has no torch; on a CPU torch raises a
    # bare RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in str(error)
    )


def is_of_one_image(error: Exception) -> bool:
    """Whether an exception that nobody foresaw costs no more than the image that it met: neither
    memory nor a library was missing, and it says nothing of settings, storage or the cluster.
    """
    return not (isinstance(error, TouchstoneError | ImportError) or is_want_of_memory(error))


def describe_error(error: BaseException) -> str:
    """A foreign exception in one line: its kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
