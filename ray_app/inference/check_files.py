"""Score files one after another in this process, for `touchstone check` (`check_files`)."""

import json
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

from ray_app.archives.split_archives import explain_part
from ray_app.images.provenance import ProvenanceConfig
from ray_app.inference.isolated_files import IsolatedFiles, ReadFile
from ray_app.inference.named_files import NamedFiles, make_uri
from ray_app.inference.result import Result
from ray_app.inference.small_pictures import ThumbnailLimits, encode_small_jpeg
from ray_app.inference.spec import ScoringSpec
from ray_app.storage.node_budget import usable_cores

_MAX_THREADS = 4
_MAX_SMALL_PARAMETERS = 100_000_000
"""A larger network keeps the memory bus of a processor busy alone."""


class CheckedFile(NamedTuple):
    """The result of one file, and a small copy of the image as JPEG.

    The row has the keys of `Result.to_dict`, but `uri` in place of `source`, and also `provenance`.
    The copy is None if it is not requested, or if the file does not decode.
    """

    row: dict[str, Any]
    picture: bytes | None


def check_files(
    files: NamedFiles,
    spec: ScoringSpec,
    *,
    accept_licences: Sequence[str] = (),
    picture_size: ThumbnailLimits | None = None,
) -> Generator[CheckedFile, None, None]:
    """Score files with an ensemble, and yield the result row of each file in order.

    Child processes decode the files, so that a file cannot crash this process. `accept_licences`
    has names of detectors or licences. No `picture_size` makes no small images.
    """
    isolated = IsolatedFiles(
        spec,
        lambda name: files.read(name, spec.limits.max_bytes),
        provenance=ProvenanceConfig(watermarks=True).policy(),
        picture_px=picture_size.side_px if picture_size else 0,
    )
    with closing(isolated):
        # Child processes decode the first files while this process imports torch.
        arriving = zip(files.names, isolated.decode_ahead(files.names), strict=True)
        from ray_app.inference.ensemble import Ensemble

        ensemble = Ensemble(
            spec.ensemble,
            device=spec.device,
            limits=spec.limits,
            accept_licences=accept_licences,
            children=isolated.children,
        )
        threads = _count_threads(len(files.names), spec)
        # Each thread takes its own ensemble.
        idle = deque([ensemble, *(ensemble.twin() for _ in range(threads - 1))])

        def score(chunk: list[tuple[str, ReadFile]]) -> list[Result]:
            scorer = idle.popleft()
            try:
                return scorer.score_read(file.image for _, file in chunk)
            finally:
                idle.append(scorer)

        chunks = iter(lambda: list(islice(arriving, spec.slots)), [])
        with ThreadPoolExecutor(threads, thread_name_prefix="scorer") as pool:
            running = deque(
                (chunk, pool.submit(score, chunk)) for chunk in islice(chunks, 2 * threads)
            )
            while running:
                chunk, results = running.popleft()
                for (name, file), result in zip(chunk, results.result(), strict=True):
                    row = _make_row(name, file, result)
                    yield CheckedFile(row, _make_picture(file, picture_size))
                running += ((chunk, pool.submit(score, chunk)) for chunk in islice(chunks, 1))


def _count_threads(files: int, spec: ScoringSpec) -> int:
    """Return how many batches are scored at the same time.

    There are several only if all networks are small and run in one thread each.
    """
    is_small = all(
        card.size is not None and card.size.parameters < _MAX_SMALL_PARAMETERS
        for card in spec.cards.values()
    )
    has_several = (
        spec.device == "cpu"
        and is_small
        and spec.describer is None
        and os.environ.get("OMP_NUM_THREADS") == "1"
    )
    return min(usable_cores(), _MAX_THREADS, -(-files // spec.slots)) if has_several else 1


def _make_row(name: str, file: ReadFile, result: Result) -> dict[str, Any]:
    row = result.to_dict()
    del row["source"]
    row["detail"] = explain_part(name, result.status, result.detail)
    provenance = file.provenance and json.loads(file.provenance.row() or "null")
    return {"uri": make_uri(name), **row, "provenance": provenance}


def _make_picture(file: ReadFile, size: ThumbnailLimits | None) -> bytes | None:
    if file.picture is None or file.facts is None or size is None:
        return None
    return encode_small_jpeg(file.picture, file.facts, size)
