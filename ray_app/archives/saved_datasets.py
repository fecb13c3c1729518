"""Recognise a source that `Dataset.save_to_disk` of the library `datasets` wrote."""

import re

from ray_app.errors import ConfigError

_FILES = re.compile(r"dataset_dict\.json|data-\d{5}-of-\d{5}\.arrow")


def refuse_saved_dataset(source: str, file: str) -> None:
    """Raise ConfigError if a file shows that its source, a folder or the file, is a saved data set.

    Both are paths or URLs without secrets.
    """
    source, name = source.rstrip("/"), file.rpartition("/")[2]
    if file in (source, f"{source}/{name}") and _FILES.fullmatch(name):
        raise ConfigError(
            f"{source}: saved by Dataset.save_to_disk of datasets, whose Arrow files are not read",
            hint="load it with datasets.load_from_disk, write each split with ds.to_parquet('SPLIT.parquet'), and give these files to "
            "touchstone score or data index",
        )
