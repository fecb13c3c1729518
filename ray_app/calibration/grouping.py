"""Which labelled images are not independent, so that one part must hold all of them. Knows hashes and names; divides nothing."""

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.calibration.labelled import Labelled, Places
from ray_app.datasets.looks import Pairs, near_pairs
from ray_app.errors import ConfigError

UNNAMED = "a generator that is not told"

_SIXTEEN_DIGITS = re.compile("[0-9a-fA-F]{16}")


def groups_of(labelled: Labelled, *, share_generators: bool = False) -> Places:
    """(n,) the number of each image's group, 0 … groups − 1.

    Images are of one group that share a source, their bytes, or the looks of a picture (perceptual hashes within
    `datasets.leakage.NEAR_BITS`), and fakes that share a generator, unless the parts may share generators; and so are images that hang
    together by way of others. Fakes whose generator is not told count as those of one: nothing says that they are of several.
    """
    links = [_coded(labelled.sha256), _coded(labelled.source), _looks(labelled.phash)]
    if not share_generators:
        links.append(_coded(generators_of(labelled)))
    return _linked(links)


def generators_of(labelled: Labelled) -> list[str | None]:
    """The generator of each fake, UNNAMED where it is not told; None for reals."""
    return [(name or UNNAMED) if fake else None for name, fake in zip(labelled.generator, labelled.fake.tolist(), strict=True)]


def repeated(labelled: Labelled) -> NDArray[np.bool_]:
    """(n,) whether an image has the bytes or the looks of another of its class, with a smaller sha256, that can stand for both.

    A rate whose bound takes images for independent counts such ones once. A real is no copy of the fake that was made of it.
    """
    groups = 2 * _linked([_coded(labelled.sha256), _looks(labelled.phash)]) + labelled.fake
    order = np.lexsort((np.array(labelled.sha256, dtype="S"), groups))
    is_repeated = np.ones(len(groups), bool)
    is_repeated[order[np.unique(groups[order], return_index=True)[1]]] = False
    return is_repeated


def _linked(links: list[Places]) -> Places:
    """(n,) the group of each image: those that have an equal code in one of the links (n,) hang together; -1 links to nothing."""
    n = len(links[0])
    edges, nodes = [], n  # a code is a node of its own, after the images
    for codes in links:
        coded = np.flatnonzero(codes >= 0)
        edges.append(np.stack([coded, nodes + codes[coded]], axis=1))
        nodes += int(codes.max(initial=-1)) + 1
    return np.unique(_connected(nodes, np.concatenate(edges))[:n], return_inverse=True)[1].astype(np.int64)


def _connected(nodes: int, edges: Pairs) -> Places:
    """(nodes,) the component of each node of a graph with edges (m, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    components: Places = connected_components(graph, directed=False)[1].astype(np.int64)
    return components


def _coded(texts: Iterable[str | None]) -> Places:
    """(n,) a number for each different text, -1 for None."""
    codes: Places = pa.array(texts, pa.string()).dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _looks(phashes: Iterable[str | None]) -> Places:
    """(n,) a number for all hashes that hang together by likeness, -1 for None."""
    encoded = pa.array(phashes, pa.string()).dictionary_encode()
    hashes = np.array([_hash(text) for text in encoded.dictionary.to_pylist()], np.uint64)
    different, place_of = np.unique(hashes, return_inverse=True)  # a hash may be written in two ways
    alike = _connected(len(different), near_pairs(different))[place_of]
    codes: Places = np.append(alike, -1)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return codes


def _hash(text: str) -> int:
    if not _SIXTEEN_DIGITS.fullmatch(text):
        raise ConfigError(f"labels: the phash {text!r} is no hash of 64 bits", hint="16 hexadecimal digits, as `score` writes them")
    return int(text, 16)
