"""List the families of detector networks (`FAMILIES`), each with its module.

A family is the code that builds similar networks, and a detector's card names its family. A module
is imported when a card needs it. If a value of `FAMILIES` has the form MODULE:CLASS, the class is
the network, and the card's `architecture.arguments` are its arguments. If the value is only MODULE,
the function `build(card)` of the module returns the network.
"""

from ray_app.errors import ConfigError

# Other packages register their families with entry points of the group `ENTRY_POINTS`.
FAMILIES = {
    "timm-classifier": "ray_app.detectors.families.timm",
    "transformers-classifier": "ray_app.detectors.families.transformers",
    "residual": "ray_app.detectors.families.residual:ResidualNet",
    "clip-linear": "ray_app.detectors.families.frozen",
    "frozen-linear": "ray_app.detectors.families.frozen",
    "corvi": "ray_app.detectors.families.resnet:Corvi",
    "npr": "ray_app.detectors.families.resnet:Npr",
    "ladeda": "ray_app.detectors.families.ladeda",
    "ferretnet": "ray_app.detectors.families.ferretnet:FerretNet",
    "wavelet": "ray_app.detectors.families.resnet:Wavelet",
    "embedding": "ray_app.detectors.families.timm",
    "aide": "ray_app.detectors.families.aide:Aide",
    "frequency": "ray_app.detectors.families.resnet:FreqNet",
    "rine": "ray_app.detectors.families.rine",
    "clip-tuned": "ray_app.detectors.families.clip_tuned",
    "vit-tuned": "ray_app.detectors.families.low_rank",
    "gapl": "ray_app.detectors.families.clip_tuned:Gapl",
    "b-free": "ray_app.detectors.families.timm",
    "fatformer": "ray_app.detectors.families.fatformer:FatFormer",
    "maskclip": "ray_app.detectors.families.maskclip:MaskClip",
    "iml-vit": "ray_app.detectors.families.iml_vit",
    "trufor": "ray_app.detectors.families.trufor:TruFor",
    "aeroblade": "ray_app.detectors.families.aeroblade",
    "internvl": "ray_app.detectors.families.internvl",
    "callable": "ray_app.detectors.families.callables",
}
ENTRY_POINTS = "touchstone.families"
# Families with one linear layer, `fc`, on a feature of a frozen backbone with its own file.
HEADS = ("clip-linear", "frozen-linear")

RETIRED_FAMILIES = {
    "detectzoo": "examples/detectzoo_adapter.py",
    "imdlbenco": "examples/imdlbenco_adapter.py",
}
"""Families that 1.0 retires, each with the example module that replaces it."""


def refuse_retired_family(name: str) -> None:
    """Raise ConfigError if a name means a family of networks that only earlier versions had.

    Such a family was an adapter for another package. The hint of the error names the example module
    that replaces it.

    Args:
        name: A family, or a name that begins with a family, such as "detectzoo:safe".
    """
    family = name.partition(":")[0]
    if family in RETIRED_FAMILIES:
        example = RETIRED_FAMILIES[family]
        raise ConfigError(
            f"{name}: the adapter {family} is retired",
            hint=f"copy {example}, which replaces the adapter, and run the command in its first lines",
        )
