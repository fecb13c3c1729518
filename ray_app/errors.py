"""Define every exception, image status, abstain reason, and exit code of Touchstone.

    TouchstoneError
    ├─ ConfigError              exit 2    a file or an argument is wrong
    │  └─ IdentityError         exit 2    the run directory belongs to another command
    ├─ InputError               a row     one image cannot be scored
    │  └─ SourceError           a row     the file of one image cannot be read
    ├─ DetectorError            exit 4    a detector cannot be used
    └─ ClusterError             exit 5    the cluster has no capacity, or a run makes no progress
       ├─ VerificationError     exit 3    the rows of a run contradict its manifests or its summary
       └─ StorageError          exit 5    a source or a run directory cannot be reached

A problem with one image does not stop a run: the image gets a result row with a status. The other
exceptions stop the command. They have an exit code and, in most cases, a hint for the user.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from typing import NamedTuple, Self


class DescribedEnum(StrEnum):
    """A closed list of values, each with its `meaning` in plain English."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Create a value of the enum with its meaning."""
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member


class Status(DescribedEnum):
    """The status of a listed file: `ok` if it has a score, or else the reason why it has none.

    The list is closed. Details, such as numbers or the message of a decoder, are in the column
    `detail` of the file's result row.
    """

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
    SOURCE_MISSING = "source_missing", "it was listed, but was missing when it was read"
    SOURCE_DENIED = "source_denied", "the storage refused access"
    SOURCE_THROTTLED = "source_throttled", "the storage kept asking to slow down"
    SOURCE_TIMEOUT = "source_timeout", "the storage did not answer in time"
    SOURCE_CHANGED = "source_changed", "it changed after it was listed"
    DETECTOR_FAILED = "detector_failed", "a detector failed on it"


class Reason(DescribedEnum):
    """The reason why the verdict on an image is `abstain`, neither `fake` nor `real`.

    The list is closed and ordered: if several reasons apply, the first is used. The row's
    `verdict_detail` column contains names and values, such as the detector without a score.
    """

    NO_CONTENT = "no_content", "the image has one colour, or nearly so: there is nothing to judge"
    NO_SCORE = "no_score", "a detector that the ensemble needs gave no score"
    OUT_OF_RANGE = "out_of_range", "the image is outside the range for which a detector was made"
    UNLIKE_CALIBRATION = (
        "unlike_calibration",
        "the image is outside the range of the ensemble's calibration",
    )
    INSIDE_BAND = "inside_band", "the score is between the two thresholds"
    UNSTABLE = (
        "unstable",
        "the image gets another verdict after it is saved once more (runs before 1.0)",
    )
    UNLIKE_ARCHIVE = (
        "unlike_archive",
        "the archive is unlike the images on which the ensemble was calibrated",
    )


VERDICT_PHRASES = {"fake": "flagged as fake", "abstain": "left open", "real": "no evidence found"}
# The finding on a file if nothing but the verdict of the detectors is known.
DETECTOR_FINDINGS = {
    "fake": "flagged by detectors",
    "abstain": "left open",
    "real": "no evidence found",
}


class AbstainReason(NamedTuple):
    """The reason why the verdict on an image is `abstain`, neither `fake` nor `real`.

    Attributes:
        reason: The reason, from a closed list.
        detail: Names and values, such as the detector without a score. None if there are none.
    """

    reason: Reason
    detail: str | None = None


class ExitCode(IntEnum):
    """Exit codes of the commands. They are part of the public contract.

    Attributes:
        DONE: The command has done its work.
        BUG: An unexpected exception, which is a bug in Touchstone.
        USAGE: An option, a file, or the run directory is wrong.
        TOO_MANY_BAD: The command is finished, but its result is not acceptable: too many files
            have no score, or a check failed.
        DETECTOR: A detector cannot be used, for example because weights are missing.
        CLUSTER: The cluster or a storage failed.
        INTERRUPTED: The command was interrupted. The same command resumes the run.
    """

    DONE = 0
    BUG = 1
    USAGE = 2
    TOO_MANY_BAD = 3
    DETECTOR = 4
    CLUSTER = 5
    INTERRUPTED = 130


# The maximum length of a `detail`.
MAX_DETAIL_CHARACTERS = 1000

# The note (PEP 678) on an exception that stops a run before it is complete.
RESUMABLE = "committed results are kept; run the same command again to resume"


class TouchstoneError(Exception):
    """The base class of all exceptions of Touchstone.

    Attributes:
        message: The problem, in one line.
        hint: The next step, which is shown on a line of its own; None if there is none.
        exit_code: The exit code of a command that ends with this exception.

    Examples:
        >>> try:
        ...     ray_app.load_ensemble("defualt")
        ... except ray_app.errors.TouchstoneError as error:
        ...     print(error.message)
        ...     print(error.hint)
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            # A traceback shows notes. In Python, the hint would not be visible otherwise.
            self.add_note(f"→ {hint}")

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
    """A file, key or argument is wrong, and the user has to change it."""

    exit_code = ExitCode.USAGE


class IdentityError(ConfigError):
    """The output directory was written with other settings, or another command is writing to it.

    The settings that decide the results of a command are the identity of its output directory. A
    command may only continue a directory with its own identity.
    """


class InputError(TouchstoneError):
    """One image cannot be scored. A run writes a row with the status and the detail.

    Attributes:
        status: The reason, from a closed list.
        detail: Numbers, names, or the message of a decoder, in one line.
        limit: The limit that the image exceeds, such as a number of pixels. None for other reasons.
        observed: The value that exceeds the limit. None for other reasons.
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
    """The bytes of one image file could not be read from its storage.

    A run writes a row with the status, such as `source_missing`, and continues.
    """


class DetectorError(TouchstoneError):
    """A detector cannot be used, for example because its weights are missing.

    Other examples are a card (the detector's YAML file) that does not fit the weights, and a
    licence that is not accepted. The child process of the detector may have died, or the device may
    be missing.
    """

    exit_code = ExitCode.DETECTOR


class ClusterError(TouchstoneError):
    """The Ray cluster has no capacity, or a run made no progress."""

    exit_code = ExitCode.CLUSTER


class VerificationError(ClusterError):
    """The rows of a run contradict its manifests or its summary."""

    exit_code = ExitCode.TOO_MANY_BAD


class StorageError(ClusterError):
    """A source cannot be listed, or a run directory cannot be written."""


@contextmanager
def resumable(*kinds: type[BaseException]) -> Iterator[None]:
    """Add a note to exceptions of these types that leave the `with` block, and raise them again.

    The note (`RESUMABLE`) tells the user that the same command resumes the run.
    """
    try:
        yield
    except kinds as error:
        error.add_note(RESUMABLE)
        raise


def one_line(text: str) -> str:
    r"""Return a text as one printable line of up to 1,000 characters (`MAX_DETAIL_CHARACTERS`).

    Such a line fits in a result row, in JSON, and on a terminal. Characters that cannot be printed
    are escaped: a line break becomes `\n`. A longer text is cut, and ends with `…`.
    """
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode()
            for char in text[: MAX_DETAIL_CHARACTERS + 1]
        )
    return text if len(text) <= MAX_DETAIL_CHARACTERS else text[: MAX_DETAIL_CHARACTERS - 1] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a process or its GPU ran out of memory, whichever library raised the error."""
    # The class of torch is recognised by its name because a decoder does not import torch. On a
    # CPU, torch raises a bare RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in str(error)
    )


def is_image_error(error: Exception) -> bool:
    """Return whether an unexpected exception affects only the image that was being processed.

    The caller then records the failure for this image and continues. The result is False if the
    reason is missing memory, a missing library, or an exception of Touchstone (`TouchstoneError`),
    such as an unreachable storage.
    """
    return not (isinstance(error, TouchstoneError | ImportError) or is_out_of_memory(error))


def describe_error(error: BaseException) -> str:
    """Return the type and the first line of the message of another library's exception.

    The result is one line, such as `ValueError: bad magic number`.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
