"""Read and write files on any storage that fsspec supports.

`Store` reads and writes the files of a run. `list_objects` lists the files of a source, such as an
S3 prefix, and `Fetcher` reads them. `RetryPolicy` configures retries. `Lease` prevents a second
command from writing to the same directory.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.storage.fetch import Fetcher
    from ray_app.storage.http import Guard
    from ray_app.storage.key_prefixes import (
        KeyPrefix,
        PrefixReader,
        divide_prefix,
        find_object,
    )
    from ray_app.storage.lease import UNGUARDED, Lease
    from ray_app.storage.listing import (
        find_base,
        is_pattern,
        list_objects,
        split_source,
    )
    from ray_app.storage.local import NotedFolders, count_linked_folders
    from ray_app.storage.place import ClosedFile, ClosedFolder, ObjectInfo
    from ray_app.storage.retry import AdaptiveLimiter, Retrier, RetryPolicy
    from ray_app.storage.s3 import S3Config, apply_s3_settings
    from ray_app.storage.store import Store
    from ray_app.storage.urls import (
        canonicalize,
        local_path,
        make_folder_matcher,
        make_matcher,
        make_subtree_matcher,
        strip_all_secrets,
        strip_secrets,
    )
else:
    __getattr__ = on_first_use(__name__)
