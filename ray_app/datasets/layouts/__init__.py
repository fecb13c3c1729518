"""Find the layout of a data set by its name (`make_layout`).

A layout reads the labels of images that are stored in one way, such as real and fake images in two
folders. To add a layout, add a YAML file to `configs/layouts`. If that is not enough, add a class
and an entry in `LAYOUTS`.
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
    """Return the names that `make_layout` accepts: first those of Python classes, then of YAML files."""
    return [*LAYOUTS, *named_configs("layouts")]


def make_layout(name: str, arguments: Mapping[str, Any]) -> DatasetLayout:
    """Create a layout by its name and arguments, and read the files that the arguments name.

    Args:
        name: A name that `layout_names` lists, such as "folders".
        arguments: The arguments of the layout. They replace those of a file of `configs/layouts`.

    Returns:
        The layout, which can label images.

    Raises:
        ConfigError: The name or an argument is unknown, a value is invalid, or a file is not as
            the layout expects.
    """
    if name in (files := named_configs("layouts")):
        published_layout = load_yaml(files[name], rules.PublishedLayout)
        name, arguments = published_layout.layout, {**published_layout.arguments, **arguments}
    if name not in LAYOUTS:
        raise ConfigError(f"no layout {name!r}", hint=f"use one of {', '.join(layout_names())}")
    try:
        return validate(arguments, LAYOUTS[name], where=f"layout {name}")
    except ConfigError as error:
        error.hint = (
            error.hint
            or f"set its arguments by --set arguments.KEY=VALUE; they are {', '.join(LAYOUTS[name].model_fields) or 'none'}"
        )
        raise
