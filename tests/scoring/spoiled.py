"""A module that goes wrong in every process of a run: driver, workers, decoder children."""

import os
import textwrap

from tests.scoring.conftest import ROOT

SITE = """
import sys
from importlib.machinery import PathFinder

def spoil(module):
{body}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "{module}":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), spoil(module))
        return spec

sys.meta_path.insert(0, Finder())
"""


def spoiled(folder, module, body):
    """The environment in which `body` is run on a module when it is imported; Python imports `sitecustomize` whenever it starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, body=textwrap.indent(body, "    ")))
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
