"""Daft's own model function, as its users write it today:
`embed_image(decode_image(download(path)), provider="transformers")`.

The network is CLIP ViT-L/14 with UnivFD's linear head, from the same seeded weights, written once
as a folder that transformers reads. The function takes the class of the model, its precision
(fp32), its threads and its batches by itself; the head is applied to what it gives. It runs in the
environment of `daft_guide`.
"""

import time
from collections import Counter
from pathlib import Path

from benchmarks.contenders.contender import Contender, InEnvironment, Record, arguments, printed
from benchmarks.contenders.daft_guide import ENVIRONMENT
from benchmarks.measuring import cumulative
from benchmarks.work import Work

# what the function itself takes at a time; what comes out shows how fast it goes
BATCH, HEADS = 16, 16
_OF_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OF_TOWER = {
    "class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight", "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm",
}  # fmt: skip


def write_model(work: Work, folder: Path) -> None:
    """The backbone of the work's card as transformers writes a CLIP, with a text tower of no size,
    and its pictures' preprocessing.
    """
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from ray_app.detectors import load_card

    card = load_card(work.card)
    assert card.backbone is not None
    tower = {
        key.removeprefix("visual."): tensor
        for key, tensor in load_file(card.backbone.weights.uri).items()
    }
    width, size = tower["proj"].shape
    layers = sum(key.endswith("ln_1.weight") for key in tower)
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 8,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "patch_size": 14,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=size))
    state = {
        f"vision_model.{key}": tensor
        for name in tower
        for key, tensor in _renamed(name, tower[name])
        if name != "proj"
    }
    own = model.state_dict()
    assert {key for key in own if key.startswith("vision_model.")} - set(state) <= {
        "vision_model.embeddings.position_ids"
    }
    model.load_state_dict(own | state | {"visual_projection.weight": tower["proj"].T.contiguous()})
    model.save_pretrained(folder)
    steps = card.preprocessing
    crop = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    CLIPImageProcessor(
        **crop, image_mean=list(steps.mean), image_std=list(steps.std)
    ).save_pretrained(folder)


def _renamed(name: str, tensor):
    """A tensor of OpenAI's tower under transformers' names."""
    if not name.startswith("transformer.resblocks."):
        stem = next((one for one in _OF_TOWER if name == one or name.startswith(f"{one}.")), None)
        return [(name.replace(stem, _OF_TOWER[stem], 1), tensor)] if stem else []
    number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
    layer = f"encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return [
            (f"{layer}.self_attn.{part}_proj.{kind}", piece)
            for part, piece in zip("qkv", tensor.chunk(3), strict=True)
        ]
    stem = next(one for one in _OF_LAYER if rest.startswith(f"{one}."))
    return [(f"{layer}.{rest.replace(stem, _OF_LAYER[stem], 1)}", tensor)]


def main() -> None:
    import daft
    import numpy as np
    import torch
    from daft import col
    from daft.functions import decode_image, download, embed_image

    from ray_app.detectors import load_card

    work, count, (out,) = arguments()
    imported = time.time()
    folder = Path(out)
    write_model(work, folder)
    written = time.time()
    head = torch.load(load_card(work.card).weights.uri, weights_only=True)
    weight, bias = head["weight"].numpy()[0].astype(np.float64), float(head["bias"])
    paths = daft.from_pydict({"path": [str(path) for path in work.files(count)]})
    images = decode_image(download(col("path")))
    embedded = paths.into_batches(BATCH).select(
        "path", embed_image(images, provider="transformers", model=str(folder)).alias("embedding")
    )
    arrivals: Counter[float] = Counter()
    scores = {}
    for row in embedded.iter_rows():
        arrivals[time.time()] += 1
        scores[Path(row["path"]).name] = float(
            np.dot(np.asarray(row["embedding"], np.float64), weight) + bias
        )
    Record(
        cumulative(list(arrivals.items())), scores, {"imported": imported, "model written": written}
    ).print()


_APART = InEnvironment(ENVIRONMENT, "benchmarks.contenders.daft_model")
DAFT_MODEL = Contender(
    "daft_model",
    "Daft: embed_image of transformers' CLIP, the head on what it gives",
    _APART.command,
    printed,
    lacks=_APART.lacks,
    works=("clip_bound",),
)

if __name__ == "__main__":
    main()
