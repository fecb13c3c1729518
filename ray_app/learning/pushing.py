"""Putting a finished detector where others find it: any fsspec URL, or a repository of models on the Hugging Face hub.

Knows which files of a training's folder make the detector. Knows nothing of what is in them.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ray_app.errors import ConfigError, StorageError, said
from ray_app.storage import Store, local_path, strip_secrets

# What is for others. The run's own state (train.json, checkpoints, scores, which may name places and people) stays where it is.
_CARDS = ("card.yaml", "identifier.yaml", "describer.yaml")
PUSHED = ("config.json", "preprocessor_config.json", "model.onnx", "metrics.json", "report.html", *_CARDS)
_WEIGHTS = (".safetensors", ".pth", ".pt")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/?")
_CHUNK_BYTES = 2**26


def push(folder: str | Path, target: str) -> str:
    """Copy card, weights, metrics and report from a training's folder (any fsspec URL) to `target`; returns where they are now.

    `target`: any fsspec URL, where the card is written last, or hf://ORGANISATION/NAME, where all are one commit. A repository that is not
    there is made, and is private: who pushed it decides when others see it. The hub is that of $HF_ENDPOINT, with the login that
    huggingface_hub finds. Raises ConfigError for a folder without a card and a target that is none, StorageError where it cannot be done.
    """
    source = Store.open(str(folder))
    names = [name for name in source.names("") if name in PUSHED or name.endswith(_WEIGHTS)]
    if not set(names) & set(_CARDS):
        raise ConfigError(f"{source.url}: nothing to push: no card.yaml", hint="touchstone train writes it when a training ends")
    names.sort(key=lambda name: name in _CARDS)
    if target.startswith("hf://"):
        return _to_hub(source, names, target)
    store = Store.open(target)
    with tempfile.TemporaryDirectory(prefix="touchstone-push-") as scratch:
        for name in names:
            store.write_file(name, _here(source, name, Path(scratch)))
    return store.url


def _to_hub(source: Store, names: list[str], target: str) -> str:
    import huggingface_hub  # a third of a second

    place = _HUB.fullmatch(target)
    if place is None:
        raise ConfigError(f"{strip_secrets(target)}: not a repository of models on the hub", hint="hf://ORGANISATION/NAME")
    with tempfile.TemporaryDirectory(prefix="touchstone-push-") as scratch:
        folder = _here(source, names[0], Path(scratch)).parent
        for name in names[1:]:
            _here(source, name, Path(scratch))
        try:
            hub: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            hub.create_repo(place["repo"], private=True, exist_ok=True)
            made = hub.upload_folder(
                repo_id=place["repo"], folder_path=folder, allow_patterns=names, commit_message="Put there by touchstone train --push"
            )
        except Exception as error:  # the hub's own errors, its HTTP library's and its uploader's
            raise StorageError(
                f"cannot push to {target}: {said(error)}",
                hint="hf auth login, or set HF_TOKEN to one that may write there; what was trained is safe where it is",
            ) from error
    return str(made.commit_url)


def _here(source: Store, name: str, scratch: Path) -> Path:
    """The file on this machine: itself where it is, else a copy, made in pieces."""
    if "://" not in source.url:
        return Path(local_path(source.url)) / name
    path, size = scratch / name, source.sizes("")[name]
    with path.open("wb") as sink:
        for start in range(0, size, _CHUNK_BYTES):
            sink.write(source.read_range(name, start, min(start + _CHUNK_BYTES, size)))
    return path
