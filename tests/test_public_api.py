"""Product code uses the public API of its libraries. Exceptions are in the `private_api.py` of a
package, with reason and fallback.
"""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ray_app.cluster import private_api as ray_private_api
from ray_app.inference.private_api import pillow_blocks
from ray_app.streams.private_api import EXECUTION_CALLBACKS

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    path
    for folder in ("ray_app", "jobs")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "private_api.py"
)
INTERNAL = ("ray.core.generated", "ray.train.v2")
SETTINGS = ("torch.backends.",)  # Torch documents that these are assigned.


def imports(tree):
    """The line and the full name of everything that a module imports from other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (
            (node.lineno, name) for name in names if name.split(".")[0] not in ("ray_app", "jobs")
        )


def private_imports(tree):
    for line, name in imports(tree):
        is_private = any(
            part.startswith("_") and not part.startswith("__") for part in name.split(".")
        )
        if is_private or name.startswith(INTERNAL):
            yield line, name


def imported_names(tree):
    """The names that are bound to something from another package."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]
                for alias in node.names
                if not alias.name.startswith("ray_app")
            }
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ray_app"):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def root_of(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(tree):
    """Assignments to an attribute of an imported module or class, and `setattr` or `mock.patch` on
    it.
    """
    imported = imported_names(tree)
    for node in ast.walk(tree):
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign | ast.AugAssign)
            else []
        )
        for target in targets:
            if (
                isinstance(target, ast.Attribute)
                and root_of(target) in imported
                and not ast.unparse(target).startswith(SETTINGS)
            ):
                yield node.lineno, ast.unparse(target)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "setattr" and root_of(node.args[0]) in imported:
                yield node.lineno, ast.unparse(node)
            if called.startswith(("mock.", "unittest.mock.")):
                yield node.lineno, called


@cache
def foreign_names():
    """What product code takes from other packages: the violations, and the imported modules."""
    violations, modules = [], set()
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for find in (private_imports, patches):
            violations += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in find(tree)]
        modules |= {name.split(".")[0] for _, name in imports(tree)}
    return violations, modules


def test_product_code_uses_public_names_only():
    violations, _ = foreign_names()
    assert violations == []


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
    from ray._private import services

    assert ray_private_api.memory_seen_by_ray() is not None
    assert callable(services.canonicalize_bootstrap_address)
    assert EXECUTION_CALLBACKS
    from PIL import _imaging

    before = _imaging.get_block_size()
    with pillow_blocks(2**20):
        assert _imaging.get_block_size() == 2**20
    assert _imaging.get_block_size() == before


def test_missing_private_names_have_fallbacks(monkeypatch):
    from ray._private import services, state, utils

    monkeypatch.delattr(services, "canonicalize_bootstrap_address")
    assert ray_private_api.find_current_cluster() is None
    monkeypatch.delattr(utils, "estimate_available_memory")
    assert ray_private_api.memory_seen_by_ray() is None
    monkeypatch.delattr(state, "state")
    assert ray_private_api.draining_nodes() == {}
    from PIL import _imaging

    monkeypatch.delattr(_imaging, "set_block_size")
    with pillow_blocks(2**20):
        pass


def distribution_name(requirement):
    return re.split(r"[\[><=~!; ]", requirement)[0].lower().replace("_", "-")


def test_every_imported_distribution_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: required
        for name, required in project["optional-dependencies"].items()
        if name != "dev"
    }
    declared = {
        distribution_name(one)
        for required in (project["dependencies"], *extras.values())
        for one in required
    }
    distributions = packages_distributions()
    _, modules = foreign_names()
    provided = {
        module: {distribution_name(one) for one in distributions.get(module, [module])}
        for module in modules
    }
    # The module `compression` is part of Python 3.14.
    standard = {*sys.stdlib_module_names, "compression"}
    assert {module for module in modules - standard if not provided[module] & declared} == set()
