"""The run directory (`RunDirectory`): what the run is, its rows as a table that grows by parts, and
what stands beside them.

What two commands must share to use one directory: a run's identity (`fingerprint`, `differences`),
and the JSON file by which any command's directory is claimed (`claim_directory`, `is_claimed`).

Only what changes a score or a verdict belongs here; workers, retries and cluster do not.
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

from ray_app.config import overlaid
from ray_app.errors import ConfigError, IdentityError
from ray_app.runs.parts import PartTable
from ray_app.runs.schema import MASK_SCHEMA, OLDEST_SCHEMA, SCHEMA_VERSION
from ray_app.storage import Store

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


def completed(identity: Identity) -> dict[str, Any]:
    """Return stored settings with those that versions before 0.25 left out."""
    return overlaid(LEFT_OUT, identity)


def fingerprint(identity: Identity) -> str:
    """SHA-256 of the canonical JSON of an identity; also names a served ensemble."""
    return hashlib.sha256(
        json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def differences(ours: Identity, theirs: Identity) -> list[str]:
    """One line per key that differs, as `key: this command X, the run Y`; empty when they match."""
    return [
        f"{key}: this command {left}, the run {right}"
        for key, left, right in differing_keys(ours, theirs)
    ]


def differing_keys(ours: Identity, theirs: Identity) -> list[tuple[str, str, str]]:
    """Each dotted key that differs, with either's value as JSON or `has none`; empty when they
    match.
    """
    left, right = dict(_leaves(ours)), dict(_leaves(theirs))
    keys = [*left, *(key for key in right if key not in left)]
    return [
        (".".join(key), _show(left, key), _show(right, key))
        for key in keys
        if left.get(key) != right.get(key)
    ]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value with its keys, which stay apart: a name may have a dot in it."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _show(leaves: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return json.dumps(leaves[key]) if key in leaves else "has none"


# The files by which a directory is known, and what that is.
KINDS = {
    "run.json": "a scored run",
    "pack.json": "packed shards or a filtered archive",
    "index.json": "an index",
    "collect.json": "a collection",
    "generate.json": "generated images",
    "train.json": "a training",
}


def refuse_others(store: Store, name: str) -> None:
    """Raises ConfigError for a directory of another kind than the one that is known by the file
    `name`.
    """
    for other, what in KINDS.items():
        if other != name and store.exists(other):
            raise ConfigError(
                f"{store.url} is another command's directory: {what} ({other})",
                hint="give another --out",
            )


def claim_directory(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> None:
    """Make a directory this command's, or check that it already is. Raises as `is_claimed`."""
    if not is_claimed(store, name, identity, same=same):
        store.write(name, json.dumps(identity, indent=2, ensure_ascii=False).encode())


def claimed_by(store: Store, name: str) -> dict[str, Any] | None:
    """The identity of the command that a directory is of, by the file `name`; None where there is
    none.
    """
    try:
        return dict(json.loads(store.read(name)))
    except FileNotFoundError:
        return None


def is_claimed(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> bool:
    """Whether a directory is this command's already; False where it is free. Writes nothing.

    `name`: the file that holds the identity, one of KINDS. `same`: what would have to be the same,
    in words. Raises ConfigError for another kind, IdentityError with the differences.
    """
    theirs = claimed_by(store, name)
    if theirs is None:
        refuse_others(store, name)
        return False
    differing = [
        line.replace(", the run ", ", the directory ") for line in differences(identity, theirs)
    ]
    if differing:
        raise IdentityError(
            f"{store.url} was made by another command:\n  " + "\n  ".join(differing),
            hint=f"give another --out, or the same {same}",
        )
    return True


LAYOUT = 2  # versions 0.20 to 0.24 wrote layout 1 and did not say so


@dataclass(frozen=True)
class RunDirectory(PartTable):
    """One run on any fsspec URL. Small and picklable: workers receive it and write their parts
    through it.
    """

    @classmethod
    def open(cls, url: str) -> "RunDirectory":
        """The run directory at a URL or path; touches nothing yet."""
        return cls(Store.open(url))

    # -- what the run is
    # ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a run was ever begun here."""
        return self.store.exists("run.json")

    def missing(self) -> ConfigError:
        """What to say where no run was ever begun: whether nothing is there, a file, another
        command's directory or something else.
        """
        hint = "name the folder that `touchstone score SOURCE --out FOLDER` wrote"
        folder = self.store.local_path("")
        if folder:
            if not os.path.lexists(folder):
                beside = [path.parent.name for path in folder.parent.glob("*/run.json")]
                nearest = difflib.get_close_matches(folder.name, beside, 1)
                return ConfigError(
                    f"there is no folder {folder}",
                    hint=f"did you mean {folder.parent / nearest[0]}?" if nearest else hint,
                )
            if not folder.is_dir():
                return ConfigError(f"{folder} is a file, not the folder of a run", hint=hint)
        for name, what in KINDS.items():
            if self.store.exists(name):
                return ConfigError(
                    f"no run in {self.store.url}: it holds {what} ({name})", hint=hint
                )
        return ConfigError(f"no run in {self.store.url}: it has no run.json", hint=hint)

    def describe(self) -> dict[str, Any]:
        """Return the content of `run.json`: schema, creation time, detectors and identity.

        Raises:
            FileNotFoundError: There is no run.
            ConfigError: A version before 0.20 began the run.
        """
        described = self.read_json("run.json")
        if described["schema"] < OLDEST_SCHEMA:
            version = self._version()
            raise ConfigError(
                f"{self.store.url}: Touchstone {version} wrote this run, and this version reads runs that 0.20 or later began",
                hint=f"finish or read it with Touchstone {version}, or score the source again with another --out",
            )
        return described

    def limits(self) -> "ImageLimits":
        """The intake limits that its members were let in by."""
        from ray_app.images import ImageLimits

        return ImageLimits(**self.describe()["identity"].get("limits", {}))

    def check_readable(self, described: Mapping[str, Any]) -> None:
        """Check that no command of an older version is halfway through rewriting the rows.

        Raises:
            ConfigError: It is.
        """
        if described.get("layout", 1) >= LAYOUT:
            return
        is_changing = described.get("deciding") or any(self.store.folders("retries"))
        if is_changing or not self.store.exists("summary.json"):
            raise ConfigError(
                f"{self.store.url}: a command of Touchstone {self._version()} did not finish this run",
                hint=f"finish it with Touchstone {self._version()}, or score the source again with another --out",
            )

    def check_writable(self) -> None:
        """Check that this version can continue the run.

        Raises:
            ConfigError: Another version wrote the run, or it has rows that this one cannot write.
        """
        self.check_known()
        described = self.describe()
        self.check_readable(described)
        if described.get("layout", 1) < LAYOUT:
            raise ConfigError(
                f"{self.store.url}: Touchstone {self._version()} wrote this run, and this version only reads it",
                hint=f"run touchstone runs compact {self.store.url} NEW, and continue with --out NEW; no file is scored again",
            )

    def check_known(self) -> None:
        """Check that this version can write rows like those of the run.

        Raises:
            ConfigError: A later version wrote rows, or verdicts depend on `--stability`.
        """
        described = self.describe()
        if "stability" in described["identity"]:
            raise ConfigError(
                f"{self.store.url}: the run was made with --stability, which 1.0 retires",
                hint="continue it with Touchstone 0.23, or give another --out; this one can read it",
            )
        newest = int(described["schema"])
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, int(self.read_json("summary.json").get("row_schema", 0)))
        if newest > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.store.url}: its rows have schema {newest}, and this Touchstone writes schema {SCHEMA_VERSION}",
                hint="continue it with the Touchstone that wrote it, or a later one; this one can read it",
            )

    def _version(self) -> str:
        """The version of the last command that worked on the run."""
        sessions = self.store.names("sessions")
        return (
            str(self.read_json(f"sessions/{sessions[-1]}")["version"])
            if sessions
            else "of its time"
        )

    def describe_finished(self) -> dict[str, Any]:
        """The same of a run that has ended. Raises ConfigError where there is none, or where blocks
        are still to be scored.
        """
        if not self.store.exists("summary.json"):
            if not self.exists():
                raise self.missing()
            raise ConfigError(
                f"the run in {self.store.url} is not finished yet",
                hint="the `touchstone score` command that began it finishes it",
            )
        return self.describe()

    def claim(self, identity: Identity, detectors: list[str], ensemble: dict[str, Any]) -> None:
        """Make the directory this command's, or check that it already is. Raises IdentityError with
        the differences.
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
        """Raise IdentityError with the differences if the run has other settings."""
        if differing := self.differing(identity):
            raise self.mismatch(differing)

    def check_free(self) -> None:
        """Raises ConfigError for a directory that is none of a run, but that of another command."""
        if not self.exists():
            refuse_others(self.store, "run.json")

    def give_up(self) -> None:
        """Forget a run of which nothing was listed, so that the directory is free again."""
        for folder in ("manifest", "sessions"):
            self.store.clear(folder)
        self.store.delete("run.json")

    def mismatch(self, differing: list[str], *, hint: str | None = None) -> IdentityError:
        """What to say of a command whose identity differs from the run's in these lines."""
        usual = (
            "give another --out, or the same source, detectors and settings; what a command does not say is as in the run; "
            "`touchstone runs decide` applies other thresholds without scoring again"
        )
        return IdentityError(
            f"{self.store.url} was made by another command:\n  " + "\n  ".join(differing),
            hint=hint or usual,
        )

    def differing(self, identity: Identity) -> list[str]:
        """How the identity of a command differs from the run's, in lines; none where it is the
        run's own.
        """
        return differences(identity, completed(self.describe()["identity"]))

    # -- what stands beside rows
    # -------------------------------------------------------------------------

    def block_masks(self, manifest: int, block: int) -> pa.Table:
        """The masks of one block; none where it has no such file."""
        found = self.beside("masks", manifest, block)
        return MASK_SCHEMA.empty_table() if found is None else found

    def write_beside(self, folder: str, manifest: int, block: int, rows: pa.Table) -> None:
        """Keep what stands beside a block's rows, in `folder`: masks, embeddings. Their bytes
        hardly compress, so nothing is tried.

        Called before the block is committed, so that a row whose block is done has its own.
        """
        buffer = io.BytesIO()
        # A dictionary of embeddings would repeat most of them.
        pq.write_table(rows, buffer, compression="none", use_dictionary=["detector", "view"])
        self.store.write(_beside(folder, manifest, block), buffer.getvalue())

    def beside(self, folder: str, manifest: int, block: int) -> pa.Table | None:
        """What stands there of one block; None where it has no such file."""
        try:
            return pq.read_table(pa.BufferReader(self.store.read(_beside(folder, manifest, block))))
        except FileNotFoundError:
            return None

    def masks(self, manifest: int) -> Iterator[pa.Table]:
        """The masks of a manifest in all its views (`MASK_SCHEMA`, or the viewed one), a bounded
        table at a time, in block order.
        """
        for name in sorted(self.store.names(f"masks/{manifest:05d}")):
            yield from self.rows_in(f"masks/{manifest:05d}/{name}", None)

    # -- small files
    # -------------------------------------------------------------------------------------

    def read_json(self, path: str) -> dict[str, Any]:
        """A small file of the run. Raises FileNotFoundError."""
        content: dict[str, Any] = json.loads(self.store.read(path))
        return content

    def write_json(self, path: str, content: dict[str, Any]) -> None:
        """Write a small file of the run, at once."""
        self.store.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


def _beside(folder: str, manifest: int, block: int) -> str:
    return f"{folder}/{manifest:05d}/{block:08d}.parquet"
