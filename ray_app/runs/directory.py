"""Manage a run directory (`RunDirectory`), the folder with the results of `touchstone score`.

A run directory has an identity, a table of result rows that grows while the run scores, and sidecar
files with masks and embeddings. The identity of a run consists of the settings that change a score
or a verdict. The number of workers, retries, and the cluster are not part of the identity. A
command can continue a run only if their identities are equal. `fingerprint` and `differences`
compare identities.

Other commands, such as `touchstone train`, also store an identity in their output directories. So
no command overwrites the results of another (`claim_directory`, `is_claimed`).
"""

import contextlib
import difflib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.config import merge_mappings
from ray_app.errors import ConfigError, IdentityError
from ray_app.runs.parts import PartTable
from ray_app.runs.schema import MASK_SCHEMA, OLDEST_SCHEMA, SCHEMA_VERSION
from ray_app.storage import Store
from ray_app.storage.output_kinds import KINDS, refuse_others

if TYPE_CHECKING:
    from ray_app.images import ImageLimits

Identity = Mapping[str, Any]


# Versions before 0.25 stored these settings only if they had other values.
LEFT_OUT: Identity = {
    "limits": {"max_whole_pixels": None},
    "columns": {"image": None, "uri": None},
    "container_limits": {"max_members": 10_000_000, "max_ratio": 200.0},
    "perturb": {},
    "perturb_kinds": {},
    "perturb_absent": {},
    "features": [],
    "waive_guarantee": False,
    "profile": None,
}


def add_defaults(identity: Identity) -> dict[str, Any]:
    """Complete the stored identity of a run that a version before 0.25 may have started.

    The keys that these versions left out get default values.
    """
    return merge_mappings(LEFT_OUT, identity)


def fingerprint(identity: Identity) -> str:
    """Return the SHA-256 of the canonical JSON of an identity, in hexadecimal digits.

    An identity is a mapping of the settings that change a score or a verdict. A run has an
    identity, and so has an ensemble in `touchstone serve` and `touchstone check`.
    """
    return hashlib.sha256(
        json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def differences(requested: Identity, stored: Identity) -> list[str]:
    """Return a line for each key that differs between two identities, for an error message.

    Each line has the form `key: this command X, the run Y`. The list is empty if the identities are
    equal. `requested` has the settings of a command, and `stored` those of the run.
    """
    return [
        f"{key}: this command {left}, the run {right}"
        for key, left, right in differing_keys(requested, stored)
    ]


def differing_keys(requested: Identity, stored: Identity) -> list[tuple[str, str, str]]:
    """Return each dotted key that differs between two identities, with both values.

    A value is JSON, or `has none` if the key is missing. The list is empty if they are equal.
    """
    left, right = dict(_leaves(requested)), dict(_leaves(stored))
    keys = [*left, *(key for key in right if key not in left)]
    return [
        (".".join(key), _show(left, key), _show(right, key))
        for key in keys
        if left.get(key) != right.get(key)
    ]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value with the tuple of its keys, since a name may contain a dot."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _show(leaves: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return json.dumps(leaves[key]) if key in leaves else "has none"


def claim_directory(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> None:
    """Claim a directory for this command, or check that this command has already claimed it.

    A claimed directory has a JSON file with the identity of the command, the settings that decide
    its results. A command with another identity cannot write to the directory. The file's name is a
    key of `KINDS` such as "generate.json". The hint of the error names `same`, the settings that a
    user has to keep, such as "source and form". Raises ConfigError if the directory contains the
    results of another kind of command, and IdentityError with the differences.
    """
    if not is_claimed(store, name, identity, same=same):
        store.write(name, json.dumps(identity, indent=2, ensure_ascii=False).encode())


def read_claiming_identity(store: Store, name: str) -> dict[str, Any] | None:
    """Return the identity of the command that claimed a directory, or None if none did.

    The identity consists of the settings that decide the command's results (`claim_directory`).
    `name` is the JSON file with the identity, such as "generate.json".
    """
    try:
        return dict(json.loads(store.read(name)))
    except FileNotFoundError:
        return None


def is_claimed(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> bool:
    """Return whether a command with this identity has claimed a directory. Writes nothing.

    Arguments and errors are those of `claim_directory`.
    """
    stored = read_claiming_identity(store, name)
    if stored is None:
        refuse_others(store, name)
        return False
    differing = [
        line.replace(", the run ", ", the directory ") for line in differences(identity, stored)
    ]
    if differing:
        raise IdentityError(
            f"{store.url} belongs to another command:\n  " + "\n  ".join(differing),
            hint=f"set another --out, or use the same {same}",
        )
    return True


LAYOUT = 2  # Versions 0.20 to 0.24 wrote layout 1 without a key for it.
COPY_OF = "copy_of"  # Key of `run.json` with the source of a copy that is not finished.
# The folders that a run writes.
FOLDERS = (
    "manifest",
    "ids",
    "parts",
    "scores",
    "masks",
    "features",
    "summaries",
    "sessions",
    "weights",
    "attempts",
)


@dataclass(frozen=True)
class RunDirectory(PartTable):
    """A run directory at any fsspec URL, with the results of one `touchstone score`.

    The object is a small, picklable handle. Workers receive it and write their results through it.
    """

    @classmethod
    def open(cls, url: str) -> "RunDirectory":
        """Return the run directory at a URL or path, without accessing it."""
        return cls(Store.open(url))

    # -- Identity
    # -----------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether a run was started in this directory."""
        return self.store.exists("run.json")

    def missing_run_error(self) -> ConfigError:
        """Return the error to raise if a user names this directory, but it has no run.

        The message states the reason: the folder does not exist, is a file, contains the results of
        another kind of command, or has no `run.json`.
        """
        hint = "name the folder that `touchstone score SOURCE --out FOLDER` wrote"
        folder = self.store.local_path("")
        if folder:
            if not os.path.lexists(folder):
                siblings = [path.parent.name for path in folder.parent.glob("*/run.json")]
                nearest = difflib.get_close_matches(folder.name, siblings, 1)
                return ConfigError(
                    f"there is no folder {folder}",
                    hint=f"did you mean {folder.parent / nearest[0]}?" if nearest else hint,
                )
            if not folder.is_dir():
                return ConfigError(f"{folder} is a file, not the folder of a run", hint=hint)
        for name, description in KINDS.items():
            if self.store.exists(name):
                return ConfigError(
                    f"no run in {self.store.url}: it contains {description} ({name})", hint=hint
                )
        return ConfigError(f"no run in {self.store.url}: it has no run.json", hint=hint)

    def describe(self) -> dict[str, Any]:
        """Return the content of `run.json`: detectors, ensemble, identity, and schema.

        The identity consists of the settings that decide scores and verdicts. Raises
        FileNotFoundError if there is no run, and ConfigError if a version before 0.20 started the
        run.
        """
        run_info = self.read_json("run.json")
        if run_info["schema"] < OLDEST_SCHEMA:
            version = self._version(before="0.20")
            raise ConfigError(
                f"{self.store.url}: {version} wrote this run, and this version reads runs that 0.20 or later started",
                hint=f"finish or read it with {version}, or score the source again with another --out",
            )
        return run_info

    def limits(self) -> "ImageLimits":
        """Return the limits that images must meet to be scored, such as a maximum size in pixels."""
        from ray_app.images import ImageLimits

        return ImageLimits(**self.describe()["identity"].get("limits", {}))

    def check_readable(self, run_info: Mapping[str, Any]) -> None:
        """Raise ConfigError if this version cannot read the rows of the run.

        This is the case if a command of a version before 0.25 was interrupted while it worked on
        the run. A finished run of such a version is readable.
        """
        if run_info.get("layout", 1) >= LAYOUT:
            return
        is_changing = run_info.get("deciding") or any(self.store.folders("retries"))
        if is_changing or not self.store.exists("summary.json"):
            version = self._version(before="0.25")
            raise ConfigError(
                f"{self.store.url}: a command of {version} did not finish this run",
                hint=f"finish it with {version}, or score the source again with another --out",
            )

    def check_writable(self) -> None:
        """Check that this version can add rows to the run.

        Raises ConfigError if a version before 0.25 wrote the run, so that it is read-only, it is a
        copy that is not finished, or `check_known` fails.
        """
        self.check_known()
        run_info = self.describe()
        if COPY_OF in run_info:
            raise self._unfinished_copy_error(run_info)
        self.check_readable(run_info)
        if run_info.get("layout", 1) < LAYOUT:
            raise ConfigError(
                f"{self.store.url}: {self._version(before='0.25')} wrote this run, and this version only reads it",
                hint=f"run touchstone runs compact {self.store.url} NEW, and continue with --out NEW; no file is scored again",
            )

    def check_known(self) -> None:
        """Check that this version knows all columns of the run's rows, so that it can write them.

        This check is sufficient for a command that copies the rows to another directory. A command
        that adds rows to the run calls `check_writable`. Raises ConfigError if a later version
        wrote rows, or if the run used the retired option `--stability`.
        """
        run_info = self.describe()
        if "stability" in run_info["identity"]:
            raise ConfigError(
                f"{self.store.url}: the run was made with --stability, which 1.0 retires",
                hint="continue it with Touchstone 0.23, or set another --out; this version can read it",
            )
        newest = int(run_info["schema"])
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, int(self.read_json("summary.json").get("row_schema", 0)))
        if newest > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.store.url}: the run's rows have schema {newest}, but this version of Touchstone writes schema {SCHEMA_VERSION}",
                hint="continue it with the version of Touchstone that wrote it, or a later one; this version can read it",
            )

    def _version(self, before: str) -> str:
        """Return the version of the last command that worked on the run.

        `before` is the first version that would not have written this run, for a run without
        sessions.
        """
        sessions = self.store.names("sessions")
        return (
            f"Touchstone {self.read_json(f'sessions/{sessions[-1]}')['version']}"
            if sessions
            else f"a version before {before}"
        )

    def describe_finished(self) -> dict[str, Any]:
        """Return the content of `run.json` of a finished run.

        Raises ConfigError if there is no run, or if no listing of it has been scored completely.
        """
        is_finished = self.store.exists("summary.json")
        if not is_finished and not self.exists():
            raise self.missing_run_error()
        run_info = self.describe()
        if COPY_OF in run_info:
            raise self._unfinished_copy_error(run_info)
        if not is_finished:
            raise ConfigError(
                f"the run in {self.store.url} is not finished yet",
                hint="repeat the `touchstone score` command that started this run: it finishes the run",
            )
        return run_info

    def _unfinished_copy_error(self, run_info: Mapping[str, Any]) -> ConfigError:
        return ConfigError(
            f"{self.store.url}: the copy of {run_info[COPY_OF]} is not finished",
            hint="repeat the command that copies the run: it starts the copy again",
        )

    def check_copy(self, run_info: Mapping[str, Any]) -> None:
        """Check that a run can be copied to this directory. Writes nothing.

        The directory has to be free, or contain an interrupted copy that is the same. `run_info`
        has the key `COPY_OF`. Raises ConfigError if the directory contains another run, or another
        command's files.
        """
        self.check_free()
        if not self.exists():
            return
        stored = self.describe()
        if fingerprint(stored) == fingerprint(run_info):
            return
        if COPY_OF in stored:
            kind = f"an unfinished copy of {stored[COPY_OF]}"
        else:
            kind = "a run" if self.last_finished() >= 0 else "a run that is not finished"
        raise ConfigError(
            f"{self.store.url} contains {kind}", hint="name another directory for the new run"
        )

    def claim(self, identity: Identity, detectors: list[str], ensemble: dict[str, Any]) -> None:
        """Start a run in the directory, or check that the run in it has the same settings.

        A directory without a run gets the file `run.json`. Raises ConfigError if the directory
        contains the results of another kind of command, and IdentityError with the differences if
        the run has other settings.
        """
        self.check_free()
        if not self.exists():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.write_json(
                "run.json",
                {
                    "schema": SCHEMA_VERSION,
                    "layout": LAYOUT,
                    "created_at": now,
                    "detectors": detectors,
                    "ensemble": ensemble,
                    "identity": dict(identity),
                },
            )
            return
        self.require_same(identity)

    def require_same(self, identity: Identity) -> None:
        """Raise IdentityError if the run was started with other settings than a command has.

        `identity` has the settings of the command that decide scores and verdicts. The message
        lists the differences.
        """
        if differing := self.compare_identity(identity):
            raise self.mismatch(differing)

    def check_free(self) -> None:
        """Raise ConfigError if a run in this directory would mix with other files.

        A directory with a run passes. Any other directory must not contain the results of another
        kind of command, or files in a folder that a run writes and clears.
        """
        if self.exists():
            return
        refuse_others(self.store, "run.json")
        for name in set(FOLDERS).intersection(self.store.folders("")):
            if self.store.names(name) or self.store.folders(name):
                raise ConfigError(
                    f"{self.store.url} contains files in {name}, but not a run (run.json)",
                    hint="name a directory without such a folder for the run",
                )

    def discard(self) -> None:
        """Delete a run that has no rows yet, so that another command can use the directory.

        `run.json`, the manifests, the sessions, and published weights are deleted, but no rows.
        """
        for folder in ("manifest", "sessions", "weights"):
            self.store.clear(folder)
        self.store.delete("run.json")

    def mismatch(self, differing: list[str], *, hint: str | None = None) -> IdentityError:
        """Return the error to raise if the settings of a command differ from those of the run.

        The lines are those of `compare_identity`. None is a hint that suits most commands.
        """
        usual = (
            "set another --out, or use the same source, detectors and settings; settings that a command leaves out are those of the run; "
            "`touchstone runs decide` applies other thresholds without scoring again"
        )
        return IdentityError(
            f"{self.store.url} belongs to another command:\n  " + "\n  ".join(differing),
            hint=hint or usual,
        )

    def compare_identity(self, identity: Identity) -> list[str]:
        """Return a line for each setting of a command that differs from that of the run.

        The list is empty if all settings are equal. `identity` has the settings of the command.
        """
        return differences(identity, add_defaults(self.describe()["identity"]))

    # -- Sidecar files of rows
    # -------------------------------------------------------------------------------------

    def block_masks(self, manifest: int, block: int) -> pa.Table:
        """Return the masks of altered pixels that detectors predicted for the images of a block.

        A block is a fixed range of the files of a manifest, which lists the files of the archive.
        The table has a row per image and detector. It is empty if no detector returned a mask.
        """
        rows = self.read_sidecar("masks", manifest, block)
        return MASK_SCHEMA.empty_table() if rows is None else rows

    def write_sidecar(self, folder: str, manifest: int, block: int, rows: pa.Table) -> None:
        """Write the masks or the embeddings of a block to a sidecar file.

        A block is a fixed range of files that is scored and stored together. A sidecar file has
        data that is too large for the result rows. It is not compressed, because its bytes can
        hardly be compressed. Call this method before the result rows of the block are written, so
        that every finished block has its sidecar files.
        """
        buffer = io.BytesIO()
        # A dictionary of embeddings would repeat most of them.
        pq.write_table(rows, buffer, compression="none", use_dictionary=["detector", "view"])
        self.store.write(_sidecar_path(folder, manifest, block), buffer.getvalue())

    def read_sidecar(self, folder: str, manifest: int, block: int) -> pa.Table | None:
        """Return the masks or the embeddings of a block from its sidecar file, if it exists."""
        try:
            return pq.read_table(
                pa.BufferReader(self.store.read(_sidecar_path(folder, manifest, block)))
            )
        except FileNotFoundError:
            return None

    def masks(self, manifest: int) -> Iterator[pa.Table]:
        """Yield the predicted masks of the images of one listing, as tables of bounded size.

        The tables have the columns of `schema.MASK_SCHEMA`. If the run also scored perturbed copies
        of the images, their masks are included. The additional column `view` names the
        perturbation. There is a row per mask, in the order of the manifest.
        """
        for name in sorted(self.store.names(f"masks/{manifest:05d}")):
            yield from self.rows_in(f"masks/{manifest:05d}/{name}", None)

    # -- Small files
    # -------------------------------------------------------------------------------------

    def read_json(self, path: str) -> dict[str, Any]:
        """Return the content of a small JSON file of the run. Raises FileNotFoundError."""
        content: dict[str, Any] = json.loads(self.store.read(path))
        return content

    def write_json(self, path: str, content: dict[str, Any]) -> None:
        """Write a small JSON file of the run atomically; readers never see a part of it."""
        self.store.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


def _sidecar_path(folder: str, manifest: int, block: int) -> str:
    return f"{folder}/{manifest:05d}/{block:08d}.parquet"
