"""A source, as recipes and commands name it → its labelled rows, read from an index, or indexed once and kept. Labels nothing itself."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import Archive, Each, guard_of, in_turn, name_of
from ray_app.datasets.config import Source
from ray_app.datasets.index import UNFINISHED, IndexInfo, Progress, is_index, read_index, read_info, silent, write_index
from ray_app.datasets.layouts import Layout, make_layout
from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Guard, Store, canonical, strip_secrets
from ray_app.storage.locations import scheme_of

__all__ = ["IndexInfo", "build_index", "index_source", "read_index", "read_info", "write_index"]

SIMULATED = "simulated::"


def index_source(source: Source, store: Store, *, each: Each = in_turn, progress: Progress = silent) -> pa.Table:
    """The labelled rows of a source, as `read_index` gives them, of its `split` and `generators` alone.

    `source.at` is an index directory (or several), or is indexed into `store`, whose index of the same source is used again. Raises
    ConfigError as `write_index`, and for a split or generator that is not there; IdentityError where `store` has another source's index.
    """
    if indexes := _indexes(source):
        rows = pa.concat_tables(read_index(place) for place in indexes)
    else:
        build_index(source, store, each=each, progress=progress)
        rows = read_index(store.url)
    return _chosen(rows, source)


def guard_of_source(source: Source, store: Store) -> Guard:
    """Which web servers are asked for the images of a source that `index_source` indexed."""
    stores = [Store.open(place) for place in _indexes(source)] or [store]
    return reduce(Guard.joined, map(guard_of, stores), Guard(allow_private=source.allow_private))


def check_source(source: Source, store: Store) -> None:
    """Whether a source can be indexed into `store`, as far as its beginning tells: nothing is written. Raises as `index_source`."""
    if source.at == (SIMULATED,):
        _check_simulated(source, store)
    elif not _indexes(source):
        archive, _ = _archive(source, store)
        archive.check()


def build_index(source: Source, store: Store, *, each: Each = in_turn, progress: Progress = silent) -> IndexInfo:
    """Index a source into `store`, or say what the index there holds if it is of the same source. Raises as `index_source`."""
    identity = _identity(source)
    if (info := read_info(store)) is not None:
        if info.source != identity:
            raise IdentityError(f"{store.url} is the index of another source: {_difference(info.source, identity)}", hint="another --out")
        return info
    archive, layout = _simulated(source, store, progress) if source.at == (SIMULATED,) else _archive(source, store)
    try:
        return write_index(store, archive, layout, hashes=source.hashes, limit=source.limit, source=identity, each=each, progress=progress)
    except ConfigError:
        for folder in UNFINISHED:
            store.clear(folder)
        raise


def _archive(source: Source, store: Store) -> tuple[Archive, Layout]:
    layout = make_layout(source.layout, source.arguments)
    settings: dict[str, Any] = {"skip": [store.url], "columns": source.columns, "limits": source.container_limits}
    return Archive(source.at, source.include, source.exclude, allow_private=source.allow_private, **settings), layout


def _simulated(source: Source, store: Store, progress: Progress) -> tuple[Archive, Layout]:
    """The offline set, made here; the same arguments give the same files."""
    from ray_app.simulation.labelled import LABELS, build_labelled_set  # it loads torch

    _check_simulated(source, store)
    folder = build_labelled_set(
        Path(canonical(store.url)) / "simulated", progress=lambda files: progress("made", files), **source.arguments
    )
    return Archive([f"list::{folder / LABELS}"], source.include, source.exclude), make_layout("columns", {})


def _check_simulated(source: Source, store: Store) -> None:
    from ray_app.simulation.labelled import build_labelled_set

    if scheme_of(store.url) != "file":
        raise ConfigError(f"{store.url}: the simulated set is made in a local folder", hint="give a local --out")
    try:
        inspect.signature(build_labelled_set).bind(Path(), **source.arguments)
    except TypeError as error:
        raise ConfigError(f"{SIMULATED} {error}", hint="such as --set 'arguments.pairs={train: 200, test: 50}'") from None


def _indexes(source: Source) -> Sequence[str]:
    """The places of a source, if all are indexes, none if none is. Raises ConfigError for some, and for keys that an index has settled."""
    found = [place for place in source.at if _is_index(place)]
    if found and len(found) < len(source.at):
        raise ConfigError(f"{', '.join(found)}: an index, but not {', '.join(set(source.at) - set(found))}", hint="make two sources of it")
    settled = [key for key in ("arguments", "include", "exclude", "limit") if getattr(source, key)]
    if found and settled:
        raise ConfigError(f"{', '.join(found)}: an index; {', '.join(settled)} had to be said when it was made")
    for place in found:
        info = read_info(Store.open(place))
        if info is not None and (missing := set(source.hashes) - set(info.hashes)):
            raise ConfigError(f"{place}: an index without {', '.join(sorted(missing))}", hint="touchstone index … --hash sha256,phash")
    return found


def _is_index(place: str) -> bool:
    return "::" not in place and scheme_of(place) not in ("http", "https") and is_index(Store.open(place))


def _identity(source: Source) -> dict[str, Any]:
    """What decides which rows an index has, without secrets."""
    keys = {"layout", "include", "exclude", "columns", "container_limits", "limit", "hashes"}
    at = [place if place == SIMULATED else name_of(place) for place in source.at]
    return {"at": at, "arguments": _without_secrets(source.arguments), **source.model_dump(mode="json", include=keys)}


def _without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: strip_secrets(value) if isinstance(value, str) else value for name, value in arguments.items()}


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)


def _chosen(rows: pa.Table, source: Source) -> pa.Table:
    """The rows of the source's split, and of them the reals and the fakes of its generators."""
    labels = rows["input"].combine_chunks()
    kept = np.ones(len(rows), bool)
    if source.split is not None:
        kept = _equal(labels.field("split"), [source.split])
        if not kept.any():
            raise ConfigError(f"{', '.join(source.at)}: no split '{source.split}'", hint=_there_are(labels.field("split")))
    if source.generators:
        generators = labels.field("generator").filter(pa.array(kept))
        there = set(generators.unique().to_pylist())
        if missing := [name for name in source.generators if name not in there]:
            near = ", ".join(difflib.get_close_matches(missing[0], there, 3))
            hint = f"near it: {near}" if near else _there_are(generators)
            raise ConfigError(f"{', '.join(source.at)}: no generator '{missing[0]}'", hint=hint)
        kept &= _equal(labels.field("label"), ["real"]) | _equal(labels.field("generator"), source.generators)
    return rows.filter(pa.array(kept))


def _equal(column: pa.Array, values: Sequence[str]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.asarray(pc.is_in(column, value_set=pa.array(list(values), pa.string())))
    return found


def _there_are(column: pa.Array) -> str:
    names = sorted(str(name) for name in column.unique().drop_null().to_pylist())
    return f"there are {', '.join(names[:20])}" if names else "its rows have none"
