"""Bare git repositories of this machine as sources of files (`Mirror`), found in a folder of mirrors or cloned into it (`Mirrors`).

What is read is read at a commit, by git's own `cat-file`: no branch, no work tree, no filter of a repository's own.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ray_app.datajobs.repositories.image_rules import MAX_BYTES
from ray_app.errors import ConfigError, StorageError, one_line

# Of a foreign repository nothing is run, nobody is asked for a password, and what a partial clone lacks is not fetched one by one.
_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
    "LC_ALL": "C",
}
_SETTINGS = ("-c", "safe.directory=*", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60", "-c", "core.hooksPath=/dev/null")
_SMALL = f"--filter=blob:limit={MAX_BYTES + 1}"
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-auto-gc", "--no-recurse-submodules", _SMALL)
_ALL_REFS = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
_REGULAR = ("100644", "100755", "100664")  # no links, no submodules
_LINE = 200


class CommitGone(Exception):  # noqa: N818 - an outcome of one repository
    """A commit, or its whole repository, cannot be had; says why."""


@dataclass(frozen=True)
class TrackedFile:
    """A file at a commit. `size_bytes`: None where the repository does not have its content."""

    path: str
    blob: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class Mirror:
    """The repository `name` in the git directory `at`."""

    name: str
    at: Path

    def has(self, commit: str) -> bool:
        """Whether the commit and its folders are there."""
        return self._git("cat-file", "-e", f"{commit}^{{tree}}", check=False).returncode == 0

    def files(self, commit: str) -> list[TrackedFile]:
        """All files at a commit, in the order of their paths' bytes; without links and submodules. Raises StorageError."""
        found = []
        for entry in self._git("ls-tree", "-r", "-z", "--full-tree", commit).stdout.split(b"\0"):
            if entry:
                facts, _, path = entry.partition(b"\t")
                mode, kind, blob = facts.decode().split()
                if kind == "blob" and mode in _REGULAR:
                    found.append(TrackedFile(path.decode("utf-8", "backslashreplace"), blob))
        return found

    def sized(self, files: Sequence[TrackedFile]) -> list[TrackedFile]:
        """The same files with their sizes. Raises StorageError, also for content that a whole clone lacks; a snapshot without settings, or
        a partial clone, may leave out large files.
        """
        asked = "".join(f"{file.blob}\n" for file in files).encode()
        lines = self._git("cat-file", "--batch-check=%(objectname) %(objectsize)", given=asked).stdout.decode().splitlines()
        sizes = dict(line.split()[:2] for line in lines)
        found = [TrackedFile(file.path, file.blob, int(size) if (size := sizes[file.blob]).isdigit() else None) for file in files]
        lacking = [file for file in found if file.size_bytes is None]
        if lacking and self._is_whole():
            raise self._damaged(lacking[0])
        return found

    def _is_whole(self) -> bool:
        is_partial = self._git("config", "--get-regexp", r"^remote\..*\.promisor$", check=False).returncode == 0
        return (self.at / "config").exists() and not is_partial

    def contents(self, files: Iterable[TrackedFile]) -> Iterator[bytes]:
        """The bytes of each file. Raises StorageError, naming repository and path, for one that is not there whole."""
        with subprocess.Popen(
            self._command("cat-file", "--batch"),
            env=os.environ | _QUIET,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as git:
            assert git.stdin is not None
            assert git.stdout is not None
            try:
                for file in files:
                    git.stdin.write(f"{file.blob}\n".encode())
                    git.stdin.flush()
                    words = git.stdout.readline().split()
                    if len(words) != 3 or words[1] != b"blob":
                        raise self._damaged(file)
                    data = git.stdout.read(int(words[2]) + 1)[:-1]
                    if len(data) != int(words[2]):
                        raise self._damaged(file)
                    yield data
            except BrokenPipeError:
                raise self._damaged(None) from None
            finally:
                git.kill()

    def _damaged(self, file: TrackedFile | None) -> StorageError:
        what = f"{file.path} (blob {file.blob})" if file else "a file"
        return StorageError(
            f"{self.name}: {what} cannot be read from {self.at}", hint=f"check it: git --git-dir {self.at} fsck; or delete it"
        )

    def _command(self, *words: str) -> list[str]:
        return ["git", *_SETTINGS, f"--git-dir={self.at}", *words]

    def _git(self, *words: str, given: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(self._command(*words), env=os.environ | _QUIET, input=given, capture_output=True)
        if check and done.returncode:
            raise StorageError(f"{self.name}: git {words[0]} failed in {self.at}: {_words(done.stderr)}")
        return done

    @property
    def is_ours(self) -> bool:
        """Whether it is a clone that may fetch what it lacks; a mirror that somebody else made is read as it is."""
        return bool(self._git("config", "--get", "remote.origin.url", check=False).stdout.strip())

    def fetch(self, commit: str) -> None:
        """Get a commit by its name, or, from a host that knows branches alone, all of them. Raises CommitGone with git's words."""
        for words in (("--depth=1", commit), _ALL_REFS):
            done = self._git(*_FETCH, "origin", *words, check=False)
            if self.has(commit):
                return
        raise CommitGone(_words(done.stderr) if done.returncode else "no branch or tag leads to it")


@dataclass(frozen=True)
class Mirrors:
    """The repositories in `folder`; what is not there is cloned from `host`."""

    folder: Path
    host: str

    def get(self, name: str, commits: Iterable[str]) -> tuple[Mirror | None, dict[str, str]]:
        """The repository, None where it cannot be had, and those of its commits that are gone, with why."""
        require_git()
        mirror = self._there(name)
        at = mirror.at if mirror else self.folder / name.replace("/", "+") / "repo"
        gone: dict[str, str] = {}
        for commit in dict.fromkeys(commits):
            if mirror is None or not mirror.has(commit):
                try:
                    mirror = self._fetched(name, at, mirror, commit)
                except CommitGone as error:
                    gone[commit] = str(error)
        return mirror, gone

    def _there(self, name: str) -> Mirror | None:
        joined = self.folder / name.replace("/", "+")
        places = (joined / "repo", joined / "repo" / ".git", joined, joined / ".git", self.folder / f"{name}.git", self.folder / name)
        return next((Mirror(name, at) for at in places if (at / "HEAD").is_file() and (at / "objects").is_dir()), None)

    def _fetched(self, name: str, at: Path, mirror: Mirror | None, commit: str) -> Mirror:
        if mirror is not None:
            if not mirror.is_ours:
                raise CommitGone(f"not in {mirror.at}")
            mirror.fetch(commit)
            return mirror
        begun = Mirror(name, at.with_name(f"{at.name}.part"))
        try:
            begun.at.mkdir(parents=True, exist_ok=True)
            begun._git("init", "--quiet", "--bare")
            begun._git("config", "remote.origin.url", f"{self.host.rstrip('/')}/{name}")
            begun.fetch(commit)
            begun.at.rename(at)
        except OSError as error:
            raise ConfigError(f"{begun.at}: {error.strerror}", hint="--mirror names a folder that can be written") from None
        except CommitGone:
            shutil.rmtree(begun.at, ignore_errors=True)
            with suppress(OSError):
                begun.at.parent.rmdir()  # where nothing else is in it
            raise
        return Mirror(name, at)


def require_git() -> None:
    """Raises ConfigError where there is no git."""
    if shutil.which("git") is None:
        raise ConfigError("git is not installed", hint="repositories are read by git: apt install git")


def _words(stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip() and not line.startswith("warning:")]
    return one_line(lines[-1].strip())[:_LINE] if lines else "git says nothing"
