import ast

import pytest

from tools.mutate import Mutation, compare, find_changes

MODULE = '''
def choose(value, limit=10):
    """A docstring is not changed."""
    if value > limit:
        raise ValueError(value)
    return max(value, limit), True
'''


@pytest.fixture
def changes(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    return find_changes(path, tmp_path)


def applied(change):
    data = MODULE.encode()
    return (data[: change.start] + change.mutation.after.encode() + data[change.end :]).decode()


def test_every_kind_of_change_is_found(changes):
    found = {(one.mutation.kind, one.mutation.before, one.mutation.after) for one in changes}
    assert found == {
        ("branch", "value > limit", "False"),
        ("comparison", "value > limit", "(value) >= (limit)"),
        ("exception", "raise ValueError(value)", "pass"),
        ("argument", "value, limit", "limit, value"),
        ("constant", "True", "False"),
    }


def test_changed_module_is_valid_and_different(changes):
    for change in changes:
        assert ast.dump(ast.parse(applied(change))) != ast.dump(ast.parse(MODULE))


def test_equal_changes_of_a_function_are_counted(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def pair():\n    return 1, 1\n")
    assert [one.mutation.occurrence for one in find_changes(path, tmp_path)] == [0, 1]


def test_comparison_names_new_survivors_only():
    def row(status, line):
        mutation = Mutation("a.py", "f", "constant", "1", "2", 0, line)
        return {**{key: str(value) for key, value in vars(mutation).items()}, "status": status}

    before, moved = row("caught", 3), row("survived", 9)
    assert compare([before], [moved]) == [moved]
    assert compare([row("survived", 3)], [moved]) == []


def test_formatter_does_not_change_what_identifies_a_mutation(tmp_path, changes):
    path = tmp_path / "module.py"
    path.write_text(
        MODULE.replace("ValueError(value)", "ValueError(\n            value,\n        )").replace(
            "value > limit", "(\n        value\n        > limit\n    )"
        )
    )
    assert {one.mutation.key for one in find_changes(path, tmp_path)} == {
        one.mutation.key for one in changes
    }
