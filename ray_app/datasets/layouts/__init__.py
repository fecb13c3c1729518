"""The published layouts of labelled images, by name (`LAYOUTS`, `make_layout`).

A further layout is a file of `configs/layouts`, or a class in a module of its own and a line here.
"""

from collections.abc import Mapping
from typing import Any

from ray_app.config import load_yaml, named_configs, validate
from ray_app.datasets.layouts import published, rules
from ray_app.datasets.layouts.base import (
    CommunityForensicsFolders,
    DatasetLayout,
    Folders,
    LabelColumns,
)
from ray_app.errors import ConfigError

LAYOUTS: Mapping[str, type[DatasetLayout]] = {
    "columns": LabelColumns,
    "folders": Folders,
    "openfake": published.OpenFake,
    "openfake-csv": published.OpenFakeCsv,
    "openfake-ood": published.OpenFakeOod,
    "opensdi": published.OpenSdi,
    "community-forensics": published.CommunityForensics,
    "community-forensics-folders": CommunityForensicsFolders,
    "dflip": published.Dflip,
    "opendeepfake-preview": published.OpenDeepfakePreview,
    "imdlbenco-json": published.ImdlbencoJson,
    "imdlbenco-folder": published.ImdlbencoFolder,
    "paths": rules.PathRules,
    "table": rules.TableRules,
    "words": rules.WordColumns,
}

__all__ = ["LAYOUTS", "DatasetLayout", "layout_names", "make_layout"]


def layout_names() -> list[str]:
    """What `make_layout` knows: layouts of code, then those of `configs/layouts`."""
    return [*LAYOUTS, *named_configs("layouts")]


def make_layout(name: str, arguments: Mapping[str, Any]) -> DatasetLayout:
    """The layout of a name with these arguments; reads the files that they name.

    Raises ConfigError for a name, an argument or a value that there is not, and for files that are
    not what the layout expects.
    """
    if name in (files := named_configs("layouts")):
        known = load_yaml(files[name], rules.PublishedLayout)
        name, arguments = known.layout, {**known.arguments, **arguments}
    if name not in LAYOUTS:
        raise ConfigError(f"no layout {name!r}", hint=f"there are {', '.join(layout_names())}")
    try:
        return validate(arguments, LAYOUTS[name], where=f"layout {name}")
    except ConfigError as error:
        error.hint = (
            error.hint
            or f"its arguments: {', '.join(LAYOUTS[name].model_fields) or 'none'}; as in --set arguments.KEY=VALUE"
        )
        raise
