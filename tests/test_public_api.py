"""Product code uses the public API of its libraries. Exceptions are in the `private_api.py` of a package, with reason and fallback."""

import ast
from pathlib import Path

import pytest

from ray_app.cluster import private_api as ray_private_api
from ray_app.streams.private_api import EXECUTION_CALLBACKS

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for folder in ("ray_app", "jobs") for path in (ROOT / folder).rglob("*.py") if path.name != "private_api.py")
INTERNAL = ("ray.core.generated", "ray.train.v2")


def private_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            is_private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if parts[0] not in ("ray_app", "jobs") and (is_private or name.startswith(INTERNAL)):
                yield node.lineno, name


def imported_names(tree):
    """The names that are bound to something from another package."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names if not alias.name.startswith("ray_app")}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ray_app"):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def root_of(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(tree):
    """Assignments to an attribute of an imported module or class, and `setattr` or `mock.patch` on it."""
    imported = imported_names(tree)
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and root_of(target) in imported:
                yield node.lineno, ast.unparse(target)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "setattr" and root_of(node.args[0]) in imported:
                yield node.lineno, ast.unparse(node)
            if called.startswith(("mock.", "unittest.mock.")):
                yield node.lineno, called


@pytest.mark.parametrize("find", [private_imports, patches])
def test_product_code_uses_public_names_only(find):
    found = {
        f"{path.relative_to(ROOT)}:{line} {name}" for path in MODULES for line, name in find(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("code", "find"),
    [
        ("import ray._private.worker", private_imports),
        ("from ray.data import _internal", private_imports),
        ("from ray.core.generated import gcs_pb2", private_imports),
        ("from ray.train.v2.api.config import RunConfig", private_imports),
        ("import ray\nray.data.x = 1", patches),
        ("from ray.data import stats\nsetattr(stats, 'name', None)", patches),
        ("from unittest import mock\nmock.patch('x')", patches),
    ],
)
def test_check_finds_private_names_and_patches(code, find):
    assert list(find(ast.parse(code)))


def test_private_names_still_exist():
    assert ray_private_api.memory_seen_by_ray() is not None
    assert EXECUTION_CALLBACKS


def test_missing_private_names_have_fallbacks(monkeypatch):
    from ray._private import state, utils

    monkeypatch.delattr(utils, "estimate_available_memory")
    assert ray_private_api.memory_seen_by_ray() is None
    monkeypatch.delattr(state, "state")
    assert ray_private_api.draining_nodes() == {}
