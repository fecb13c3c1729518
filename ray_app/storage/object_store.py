"""Open fsspec file systems (`open_fsspec`).

`open_for_reading` pins each Hugging Face repository to one commit per process. A branch moves, but
a commit does not. So a process lists, compares, and reads the repository in one state. A process
that starts later may see another state. The ids of the files (git blobs) then differ.
"""

import os
from functools import lru_cache, partial
from typing import Any

import fsspec

from ray_app.errors import ConfigError
from ray_app.storage import s3, urls

# The extra of the package that each scheme needs. fsspec would cache the listings of these stores,
# which `open_fsspec` switches off.
_EXTRA = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_kept = set[fsspec.AbstractFileSystem]()


def open_fsspec(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system for a URL, and the path in it.

    The clients of S3, Azure, and Google do not retry requests, because `Store` and `Fetcher` do.
    Raises ConfigError if the scheme is unknown, or its package is missing.
    """
    options: dict[str, Any] = (
        {"use_listings_cache": False} if urls.get_scheme(url) in _EXTRA else {}
    )
    options |= {"endpoint": os.environ.get("HF_ENDPOINT")} if urls.get_scheme(url) == "hf" else {}
    try:
        if urls.get_scheme(url) == "s3":
            return s3.filesystem(), "/".join(urls.split_bucket(url)).rstrip("/")
        if urls.get_scheme(url) == "file":
            # fsspec.core.url_to_fs would interpret `::` in the path as a chain of URLs.
            return fsspec.filesystem("file"), urls.canonicalize(url)
        fs, path = fsspec.core.url_to_fs(urls.canonicalize(url), **options)
    except ImportError as error:
        extra = _EXTRA.get(urls.get_scheme(url))
        hint = f"run pip install 'touchstone-forensics[{extra}]'" if extra else None
        raise ConfigError(f"{urls.strip_secrets(url)}: {error}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(
            f"{urls.strip_secrets(url)}: {error}",
            hint="use a path, file://, s3://, gs://, az://, https://, or hf://",
        ) from None
    _disable_retries(fs)
    keep_open(fs)
    return fs, path


def keep_open(fs: fsspec.AbstractFileSystem) -> None:
    """Keep a file system until this process and its forks exit.

    A fork that drops it closes its connections, and its parent then gets no answers on them: both
    share one epoll instance.
    """
    _kept.add(fs)


def retrying_fsspec_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return an fsspec file system for a URL whose client retries requests, and the path in it.

    Use it for code that calls fsspec directly. `Store` and `Fetcher` retry requests themselves, and
    use `open_fsspec`. The exceptions of fsspec are raised unchanged.
    """
    if urls.get_scheme(url) == "file":
        return open_fsspec(url)
    options = (
        {"use_listings_cache": False, **s3.fsspec_options()} if urls.get_scheme(url) == "s3" else {}
    )
    filesystem, path = fsspec.url_to_fs(url, **options)
    return filesystem, path


def _disable_retries(fs: Any) -> None:
    """Switch off the retries of the clients of Azure and Google, which may take a minute.

    `Store` and `Fetcher` retry with their own policies. Then a wrong endpoint is reported soon, and
    a row of a list whose server does not answer takes no longer than its policy allows.
    """
    policy = getattr(
        getattr(getattr(fs, "service_client", None), "_config", None), "retry_policy", None
    )
    if policy is not None:
        policy.total_retries = 0
    # The method of gcsfs without the decorator that retries it.
    once = getattr(getattr(type(fs), "_request", None), "__wrapped__", None)
    if once is not None and fs.protocol == ("gs", "gcs"):
        fs._request = partial(once, fs)


def open_for_reading(url: str) -> tuple[Any, str]:
    """Return the fsspec file system for a URL that is only read, and the path in it.

    A repository of the Hugging Face Hub is opened at the commit that this process saw first, so
    that all reads see one state. Exceptions of the hub's client are raised unchanged.
    """
    return (filesystem(), pin_commit(url)) if urls.get_scheme(url) == "hf" else open_fsspec(url)


def filesystem() -> Any:
    """Return this process's file system of the Hugging Face Hub, for the current HF_ENDPOINT.

    It caches listings. Use it only with paths from `pin_commit`, because a commit does not change.
    """
    return _filesystem(os.getpid(), os.environ.get("HF_ENDPOINT"))


@lru_cache(maxsize=4)
def _filesystem(pid: int, endpoint: str | None) -> Any:
    from huggingface_hub import HfFileSystem  # The import takes a third of a second.

    # fsspec would create one for each thread, and each would list every folder again.
    return HfFileSystem(endpoint=endpoint, skip_instance_cache=True)


def pin_commit(url: str) -> str:
    """Return the path of an hf:// URL in HfFileSystem, with its branch replaced by a commit.

    The branch pointed to this commit when the process first called this function for it. Thus all
    reads of the process see one state of the repository. Raises FileNotFoundError if the repository
    or the branch does not exist. Exceptions of httpx are raised unchanged.
    """
    fs = filesystem()
    resolved = fs.resolve_path(url)
    if not hasattr(resolved, "revision"):
        return str(resolved.unresolve())  # A bucket has no commits.
    root = f"{resolved.repo_type}s/{resolved.repo_id}@{_commit(os.getpid(), fs.endpoint, resolved.repo_type, resolved.repo_id, resolved.revision)}"
    return f"{root}/{resolved.path_in_repo}".rstrip("/")


@lru_cache(maxsize=256)
def _commit(pid: int, endpoint: str, repo_type: str, repo_id: str, revision: str) -> str:
    from huggingface_hub import HfApi

    return str(
        HfApi(endpoint=endpoint).repo_info(repo_id, revision=revision, repo_type=repo_type).sha
    )
