"""Find images that a generative model created or altered.

    >>> import ray_app
    >>> ensemble = ray_app.load_ensemble("default")
    >>> ensemble.score("photo.jpg").verdict
    'real'

`load_ensemble` and `load_detector` return objects that score images. `list_ensembles` and
`list_detectors` return the names of the shipped ensembles and detectors. `load_run` reads the run
directory that `touchstone score` wrote. `errors` contains the exceptions.

Importing this package imports neither torch nor ray. `load_ensemble` and `load_detector` import
torch when they are called.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_app import errors


def on_first_use(package: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that imports each public name on first use.

    The public names are the imports in the `if TYPE_CHECKING` block of the package's source. mypy
    reads that block, too: pyproject.toml lists packages with such a block as `implicit_reexport`.

    Args:
        package: The dotted name of the package: its `__name__`.

    Returns:
        A function that maps a name to its value. For `__all__` it returns the list of public names.
        It raises AttributeError if the package has no such name.

    Examples:
        >>> __getattr__ = on_first_use(__name__)
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

    def import_public_name(name: str) -> Any:
        if name == "__all__":
            return list(origins())
        if name not in origins():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(origins()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return import_public_name


if TYPE_CHECKING:
    from ray_app.config import list_detectors, list_ensembles
    from ray_app.inference.ensemble import Ensemble, load_detector, load_ensemble
    from ray_app.inference.result import Result, Results
    from ray_app.runs.scored_run import ScoredRun, load_run
else:
    __getattr__ = on_first_use(__name__)

__version__ = "1.3.0"
__all__ = [
    "load_ensemble", "load_detector", "load_run", "list_ensembles", "list_detectors",
    "Ensemble", "Result", "Results", "ScoredRun", "errors",
]  # fmt: skip


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
