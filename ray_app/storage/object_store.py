"""fsspec file systems: `fsspec_for` a URL, and `reading_place`, which pins Hugging Face
repositories to one commit per process.

A branch moves; a commit does not. What is listed, compared and read is therefore always of one
state, and only a process that starts later may find another, which the files' own ids (git blobs)
then show.
"""

import os
from functools import lru_cache, partial
from typing import Any

import fsspec

from ray_app.errors import ConfigError
from ray_app.storage import s3, urls

# by scheme; also those whose listings are kept
_EXTRA = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


def fsspec_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system and path for a URL. Raises ConfigError for a scheme that is unknown or
    whose package is missing.
    """
    options: dict[str, Any] = {"use_listings_cache": False} if urls.scheme_of(url) in _EXTRA else {}
    options |= {"endpoint": os.environ.get("HF_ENDPOINT")} if urls.scheme_of(url) == "hf" else {}
    try:
        if urls.scheme_of(url) == "s3":
            return s3.filesystem(), "/".join(urls.bucket_and_key(url)).rstrip("/")
        if urls.scheme_of(url) == "file":
            # as it is: fsspec would read `::` in it as a chain of URLs
            return fsspec.filesystem("file"), urls.canonical(url)
        fs, path = fsspec.core.url_to_fs(urls.canonical(url), **options)
    except ImportError as error:
        extra = _EXTRA.get(urls.scheme_of(url))
        hint = f"pip install 'touchstone-forensics[{extra}]'" if extra else None
        raise ConfigError(f"{urls.strip_secrets(url)}: {error}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(
            f"{urls.strip_secrets(url)}: {error}",
            hint="known: a path, file://, s3://, gs://, az://, https://, hf://",
        ) from None
    _without_retries(fs)
    return fs, path


def retrying_fsspec_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return fsspec's file system and path for a URL, with the retries of its client. Raises what
    fsspec raises.
    """
    if urls.scheme_of(url) == "file":
        return fsspec_for(url)
    options = (
        {"use_listings_cache": False, **s3.fsspec_options()} if urls.scheme_of(url) == "s3" else {}
    )
    filesystem, path = fsspec.url_to_fs(url, **options)
    return filesystem, path


def _without_retries(fs: Any) -> None:
    """The clients of Azure and Google try again for up to a minute by themselves; `Store` and
    `Fetcher` do so at their own pace: a wrong endpoint is reported soon, and a row of a list that
    does not answer costs no more than its policy allows.
    """
    policy = getattr(
        getattr(getattr(fs, "service_client", None), "_config", None), "retry_policy", None
    )
    if policy is not None:
        policy.total_retries = 0
    # gcsfs's, below the decorator that repeats it
    once = getattr(getattr(type(fs), "_request", None), "__wrapped__", None)
    if once is not None and fs.protocol == ("gs", "gcs"):
        fs._request = partial(once, fs)


def reading_place(url: str) -> tuple[Any, str]:
    """fsspec's file system and path for a URL that is only read; on the hub, at the commit that
    this process has seen first.

    Raises as `fsspec_for`, and what the hub's client raises.
    """
    return (filesystem(), pinned(url)) if urls.scheme_of(url) == "hf" else fsspec_for(url)


def filesystem() -> Any:
    """The process's HfFileSystem for the present HF_ENDPOINT; its listings are kept, since commits
    do not change.
    """
    return _filesystem(os.getpid(), os.environ.get("HF_ENDPOINT"))


@lru_cache(maxsize=4)
def _filesystem(pid: int, endpoint: str | None) -> Any:
    from huggingface_hub import HfFileSystem  # a third of a second, only for hf://

    # fsspec would make one for each thread, and every one would list every folder anew.
    return HfFileSystem(endpoint=endpoint, skip_instance_cache=True)


def pinned(url: str) -> str:
    """The path, as HfFileSystem spells it, at the commit that its branch points to now. Raises
    FileNotFoundError and httpx's errors.
    """
    fs = filesystem()
    found = fs.resolve_path(url)
    if not hasattr(found, "revision"):
        return str(found.unresolve())  # a bucket has no commits
    root = f"{found.repo_type}s/{found.repo_id}@{_commit(os.getpid(), fs.endpoint, found.repo_type, found.repo_id, found.revision)}"
    return f"{root}/{found.path_in_repo}".rstrip("/")


@lru_cache(maxsize=256)
def _commit(pid: int, endpoint: str, repo_type: str, repo_id: str, revision: str) -> str:
    from huggingface_hub import HfApi

    return str(
        HfApi(endpoint=endpoint).repo_info(repo_id, revision=revision, repo_type=repo_type).sha
    )
