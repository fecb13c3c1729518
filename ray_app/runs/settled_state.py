"""What is settled of a run, so that a night looks at what is new alone: `settled.json` (`Settled`),
and the rows since (`NewRows`).

A manifest is settled when its blocks are published, compared with its members, and counted. The
file names the last such manifest, the published files with the versions that their store gives
them, and what was counted on their rows.

It is no more than a memory: the facts are manifests, parts and published files. It counts only as
long as every file that it names is the very version that it names, so that nothing can be altered
behind it; damaged, removed or out of date it is as if there were none, and a command looks at all
manifests once and writes it anew. Whoever changes published rows removes it first.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from ray_app import __version__
from ray_app.archives import manifests, read_complete, read_vanished
from ray_app.runs import directory, reader, score_files

FORMAT = 1
_DIGEST = "sha256"  # of all else that stands there


@dataclass(frozen=True)
class Settled:
    """The state of all manifests up to `manifest`: `members` and `blocks` of them together, `files`
    by name with their versions.

    `tallies`: by name what was counted on their current rows by this `version`, for a run of this
    `fingerprint` whose `vanished` ids are those of that digest.
    """

    manifest: int
    members: int
    blocks: int
    files: Mapping[str, str]
    vanished: str
    fingerprint: str
    tallies: Mapping[str, Any]
    version: str = __version__
    format: int = FORMAT


def read_settled(run: directory.RunDirectory, numbers: Sequence[int]) -> Settled | None:
    """What is settled of a run with these complete manifests; None where that is not known."""
    try:
        content = json.loads(run.store.read(directory.SETTLED))
        digest = content.pop(_DIGEST)
        found = Settled(**content)
        is_known = (
            found.format == FORMAT and bool(numbers) and numbers[0] <= found.manifest <= numbers[-1]
        )
        is_whole = digest == directory.fingerprint(content)
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return (
        found
        if is_known and is_whole and _is_as_settled(found, run.store.versions("scores"))
        else None
    )


def _is_as_settled(found: Settled, versions: Mapping[str, str]) -> bool:
    """Whether the files are what they were, and beside them lie only later ones and what an
    interrupted merge leaves.
    """
    if any(versions.get(name) != version for name, version in found.files.items()):
        return False
    return all(
        _is_of_merge(found, file)
        for file in score_files.named(versions.keys() - found.files.keys())
        if file.manifest <= found.manifest
    )


def _is_of_merge(found: Settled, file: score_files.Published) -> bool:
    """Whether a file beside settled ones is of a merge: not made out before it died, or one that
    was merged and was to go.
    """
    ours = score_files.named(found.files)
    if any(one.is_merged and one.contains(file) for one in ours):
        return True
    return (
        file.is_merged and file.end[0] <= found.manifest and any(file.contains(one) for one in ours)
    )


def finish_merge(run: directory.RunDirectory) -> None:
    """Remove what an interrupted merge of small files left: rows that stand there twice."""
    found = read_settled(run, manifests(run.store))
    if found is None:
        run.remove_replaced()
    else:
        beside = (
            file
            for file in run.all_published()
            if file.name not in found.files and file.manifest <= found.manifest
        )
        run.store.delete_all([file.path for file in beside])


@dataclass
class NewRows:
    """The current rows of a run that tallies lack, in `files`; `earlier` tallies by name are of all
    other rows.

    `found`: the tallies of all rows, as they are made; see `settle`.
    """

    run: directory.RunDirectory
    files: Sequence[str]
    earlier: Mapping[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def since(cls, run: directory.RunDirectory, settled: Settled | None) -> "NewRows":
        """Those of manifests that are not settled; all rows where nothing is, others have vanished
        since, or anything else was counted.
        """
        if settled is None:
            return cls.all_of(run)
        numbers = manifests(run.store)
        now = (
            __version__,
            directory.fingerprint(run.describe()["identity"]),
            _digest_of_vanished(run, numbers[-1]),
        )
        if (settled.version, settled.fingerprint, settled.vanished) != now:
            return cls.all_of(run)
        newer = [number for number in numbers if number > settled.manifest]
        return cls(run, run.row_files(newer) if newer else [], settled.tallies)

    @classmethod
    def all_of(cls, run: directory.RunDirectory) -> "NewRows":
        """All rows, of which nothing is counted."""
        return cls(run, run.row_files(manifests(run.store)))

    def count_anew(self) -> None:
        """Forget earlier tallies: rows were written anew."""
        self.files, self.earlier = self.run.row_files(manifests(self.run.store)), {}

    def tables(self, earlier: object | None, columns: list[str]) -> Iterator[pa.Table]:
        """The rows that an `earlier` tally lacks, a bounded table at a time; all where there is
        none.
        """
        files = (
            self.files
            if earlier is not None or not self.earlier
            else self.run.row_files(manifests(self.run.store))
        )
        yield from reader.tables_in(self.run, files, columns) if files else ()


def settle(run: directory.RunDirectory, tallies: Mapping[str, Any]) -> None:
    """Note that everything is settled: all blocks are published and compared, and these tallies are
    of all current rows.
    """
    numbers = manifests(run.store)
    before = read_settled(run, numbers)
    infos = [
        read_complete(run.store, number)
        for number in numbers
        if before is None or number > before.manifest
    ]
    versions = run.store.versions("scores")
    files = score_files.split_off(score_files.named(versions))[0]
    settled = Settled(
        manifest=numbers[-1],
        members=sum(info.members for info in infos if info is not None)
        + (before.members if before else 0),
        blocks=sum(info.blocks for info in infos if info is not None)
        + (before.blocks if before else 0),
        files={file.name: versions[file.name] for file in files},
        vanished=_digest_of_vanished(run, numbers[-1]),
        fingerprint=directory.fingerprint(run.describe()["identity"]),
        tallies=tallies,
    )
    content = json.loads(json.dumps(asdict(settled)))
    run.write_json(directory.SETTLED, content | {_DIGEST: directory.fingerprint(content)})


def _digest_of_vanished(run: directory.RunDirectory, number: int) -> str:
    return hashlib.sha256(read_vanished(run.store, number).tobytes()).hexdigest()
