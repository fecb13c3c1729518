"""From a describer's card to what predicts prompts. Knows which tier is which module; imports torch only for those that need it."""

from pathlib import Path

from ray_app.profiling.cards import DescriberCard
from ray_app.profiling.describing.described import Describer


def load_describing(card: DescriberCard, *, device: str = "cpu", cache_dir: Path | None = None, offline: bool | None = None) -> Describer:
    """The describer of a card, its weights read and on `device`, ready to be given batches. Raises DetectorError."""
    if device.startswith("cuda") and card.tier != "retrieval":
        from ray_app.detectors.precision import forbid_tf32

        forbid_tf32()  # else its words would hang on which detectors share its process
    if card.tier == "retrieval":
        from ray_app.profiling.describing.retrieval import Retrieval

        return Retrieval(card, cache_dir, offline)
    if card.tier == "prefix":
        from ray_app.profiling.describing.prefix import PrefixDescriber

        return PrefixDescriber(card, device, cache_dir, offline)
    if card.tier == "captioner":
        from ray_app.profiling.describing.captioner import Captioner

        return Captioner(card, device, cache_dir, offline)
    from ray_app.profiling.describing.dialogue import DialogueDescriber

    return DialogueDescriber(card, device, cache_dir, offline)
