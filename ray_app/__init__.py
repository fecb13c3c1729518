"""Find images that a generative model created or altered.

    >>> import ray_app
    >>> ensemble = ray_app.load_ensemble("default")
    >>> ensemble.score("photo.jpg").verdict
    'real'

`load_ensemble` and `load_detector` score images. `list_ensembles` and `list_detectors` return the
names of those that are shipped. `load_run` reads what `touchstone score` wrote. Importing this
package imports neither torch nor ray; `load_ensemble` and `load_detector` import torch when they are
called.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_app import errors


def on_first_use(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that offers names of its modules: each is imported when it is
    first asked for.

    What a package offers are the imports in the `if TYPE_CHECKING` of its own source, where readers
    find it, too, and mypy: pyproject.toml names these packages to it (`implicit_reexport`).
    """

    @cache
    def origins() -> dict[str, str]:
        module = sys.modules[package]
        assert module.__spec__ is not None
        source = module.__spec__.loader.get_source(package)  # type: ignore[union-attr]
        imports = (
            node
            for block in ast.parse(source).body
            if isinstance(block, ast.If)
            for node in block.body
        )
        return {
            alias.name: str(node.module)
            for node in imports
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def offered(name: str) -> Any:
        if name == "__all__":
            return list(origins())
        if name not in origins():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(origins()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return offered


if TYPE_CHECKING:
    from ray_app.config import list_detectors, list_ensembles
    from ray_app.inference.ensemble import Ensemble, load_detector, load_ensemble
    from ray_app.inference.result import Result, Results
    from ray_app.runs.scored_run import ScoredRun, load_run
else:
    __getattr__ = on_first_use(__name__)

__version__ = "0.29.1"
__all__ = [
    "load_ensemble", "load_detector", "load_run", "list_ensembles", "list_detectors",
    "Ensemble", "Result", "Results", "ScoredRun", "errors",
]  # fmt: skip


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
