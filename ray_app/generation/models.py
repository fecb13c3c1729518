"""Where a card's model lies: a local folder, hashed, or one commit of the hub. Knows files and the hub's client; loads no network."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_app.detectors.weights import file_sha256, is_offline
from ray_app.errors import ConfigError, DetectorError, said
from ray_app.generation.cards import PipelineCard


@dataclass(frozen=True)
class Model:
    """What is loaded. `place`: a folder or a hub id; `revision`: the commit, or `sha256:…` over a folder's files."""

    place: str
    revision: str
    is_local: bool

    @property
    def commit(self) -> str | None:
        """What the hub's client is asked for."""
        return None if self.is_local else self.revision


def find_model(card: PipelineCard) -> Model:
    """The card's model as it is now. Raises DetectorError: not there, or the hub refuses."""
    folder = card.local_folder
    if folder is not None:
        return Model(str(folder), f"sha256:{folder_digest(folder)[:32]}", True)
    if card.model.startswith(("/", ".")):
        raise DetectorError(
            f"{card.name}: {card.model} is no folder of a pipeline: it has no model_index.json", hint="save_pretrained makes one"
        )
    return Model(card.model, _commit(card), False)


def fetch_model(card: PipelineCard, model: Model) -> None:
    """Bring the files of a hub's commit into this machine's cache, once, before workers ask for them. Raises DetectorError."""
    if not model.is_local:
        kind = pipeline_class(card)
        _on_hub(card, lambda: kind.download(model.place, revision=model.commit, variant=card.variant, local_files_only=is_offline()))


def pipeline_class(card: PipelineCard) -> Any:
    """The class of diffusers that the card names. Raises ConfigError."""
    try:
        import diffusers
    except ImportError:
        raise ConfigError("generating needs diffusers", hint="pip install 'touchstone[generate]'") from None
    kind = getattr(diffusers, card.diffusers_class, None)
    if kind is None:
        raise ConfigError(
            f"{card.name}: diffusers {diffusers.__version__} has no {card.diffusers_class}", hint="a newer diffusers may have it"
        )
    return kind


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder, whatever their order on disk."""
    lines = [f"{path.relative_to(folder)} {file_sha256(path)}" for path in sorted(folder.rglob("*")) if path.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _commit(card: PipelineCard) -> str:
    from huggingface_hub import hf_hub_download

    found = _on_hub(card, lambda: hf_hub_download(card.model, "model_index.json", revision=card.revision, local_files_only=is_offline()))
    return Path(found).parent.name  # …/snapshots/COMMIT/model_index.json


def _on_hub(card: PipelineCard, ask: Any) -> Any:
    try:
        return ask()
    except Exception as error:  # the hub's client lets through whatever its transport raises
        raise DetectorError(
            f"{card.name}: cannot have {card.model} from the hub: {said(error)}",
            hint=f"its terms may have to be accepted at https://huggingface.co/{card.model} with HF_TOKEN set; "
            "--set model=FOLDER takes a copy on this machine",
        ) from error
