import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.datasets.bonds import Bond, bonds_of, bound
from ray_app.datasets.looks import near_pairs
from tests.datasets.tables import labelled


def real(**fields):
    return {"label": "real", "generator": "real", **fields}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**12 - 1), max_size=40, unique=True), st.integers(0, 4))
def test_near_pairs_are_those_of_comparing_all_with_all(values, bits):
    hashes = np.array(values, np.uint64) * np.uint64(2**26 + 1)
    expected = {
        (one, other) for other in range(len(values)) for one in range(other) if (int(hashes[one]) ^ int(hashes[other])).bit_count() <= bits
    }
    assert set(map(tuple, near_pairs(hashes, bits).tolist())) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 5), min_size=8, max_size=8), max_size=3), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)))
)
def test_groups_are_those_of_a_plain_union_find(codes, pairs):
    bonds = [Bond("group", np.array(one), np.array(pairs, np.int64).reshape(-1, 2) if max(one) == 5 else np.empty((0, 2), np.int64))
             for one in codes]  # fmt: skip
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for kind, bond in enumerate(bonds):
        for row, code in enumerate(bond.codes.tolist()):
            if code >= 0:
                parent[root(row)] = root((kind, code))
        for one, other in bond.pairs.tolist():
            parent[root((kind, one))] = root((kind, other))
    found, count = bound(bonds, 8)
    roots = [root(row) for row in range(8)]
    assert count == len(set(roots))
    assert all((found[one] == found[other]) == (roots[one] == roots[other]) for one in range(8) for other in range(8))


def test_prompts_bind_whatever_their_case_and_looks_only_where_there_is_detail():
    rows = labelled([
        real(prompt="A red  Cube"), real(prompt="a red cube"), real(prompt="a blue cube"), real(),
        real(phash="0123456789abcdef"), real(phash="0123456789abcdee"), real(phash="8000000000000000"), real(phash="8000000000000000"),
    ])  # fmt: skip
    prompt, looks = bonds_of(rows, ["prompt", "looks"])
    assert prompt.codes.tolist() == [0, 0, 1, -1, -1, -1, -1, -1]
    assert looks.codes.tolist() == [-1] * 4 + [0, 1, -1, -1]
    assert looks.pairs.tolist() == [[0, 1]]
    assert prompt.known == 3
