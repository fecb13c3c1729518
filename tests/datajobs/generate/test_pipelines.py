"""Each image from its own noise, whatever it is batched with. Shipped cards: beside it, since both
import diffusers.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from ray_app.config import named_configs
from ray_app.datajobs.generate import load_pipeline_card
from ray_app.datajobs.generate.config import FileEncoding
from ray_app.datajobs.generate.pipelines import InpaintingInput, find_pipeline_class
from ray_app.datajobs.generate.requests import ImageRequest, Prompt, make_requests
from ray_app.identification.generators import find_generator, generator_index
from tests.datajobs.generate.cards import loaded, write_card

PROMPTS = [
    Prompt(str(number), text)
    for number, text in enumerate(("a cat", "a dog", "a red ship", "two trees"))
]


def orders(size=(32, 32), prompts=PROMPTS) -> list[ImageRequest]:
    return make_requests(prompts, per_prompt=1, base_seed=7, sizes=[size], encoding=FileEncoding())


def pixels(made) -> np.ndarray:
    return np.stack([np.asarray(one.image.convert("RGB"), np.int16) for one in made])


@pytest.mark.parametrize("card", ["sd3", "flux", "sd", "xl"])
def test_image_does_not_depend_on_its_batch(card, request):
    pipeline = loaded(request.getfixturevalue(card))
    together = pipeline.make(orders((48, 32)), steps=2, guidance=3.5)
    alone = [
        pipeline.make([order], steps=2, guidance=3.5)[0] for order in reversed(orders((48, 32)))
    ][::-1]
    assert np.abs(pixels(alone) - pixels(together)).max() <= 2
    assert np.abs(pixels(together)[0] - pixels(together)[1]).mean() > 5
    assert together[0].image.size == (48, 32)


def test_prompt_and_negative_prompt_stay_with_their_image(sd3):
    pipeline = loaded(sd3)
    plain, unlike, swapped = (
        pipeline.make(orders(prompts=prompts), steps=2, guidance=5.0)
        for prompts in (
            PROMPTS[:2],
            [Prompt("0", "a cat", negative="ugly, blurred"), PROMPTS[1]],
            [PROMPTS[1], PROMPTS[0]],
        )
    )
    assert (pixels(unlike) != pixels(plain)).reshape(2, -1).any(axis=1).tolist() == [True, False]
    assert (pixels(plain) != pixels(swapped)).any()


@pytest.mark.parametrize(
    "card", ["inpainting", "xl_inpainting", "sd3_inpainting", "flux_inpainting"]
)
def test_inpainting_gives_each_request_its_own_image(card, request):
    pipeline = loaded(request.getfixturevalue(card))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    pictures = [
        InpaintingInput(Image.new("RGB", (32, 32), colour), mask) for colour in ("red", "blue")
    ]
    made = pipeline.make(orders()[:2], pictures, steps=3, guidance=3.5)
    swapped = pipeline.make(orders()[:2], pictures[::-1], steps=3, guidance=3.5)
    assert (pixels(made) != pixels(swapped)).any()
    alone = pipeline.make(orders()[1:2], pictures[1:], steps=3, guidance=3.5)
    assert np.abs(pixels(alone)[0] - pixels(made)[1]).max() <= 2


def test_a_lora_is_fused_at_its_scale(flux, tmp_path):
    """Fused at s, the weight is W + s · B · A · alpha / rank."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    plain = loaded(flux)._pipeline
    before = plain.transformer.transformer_blocks[0].attn.to_q.weight.detach().clone()
    plain.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False)
    )
    layer = plain.transformer.transformer_blocks[0].attn.to_q
    change = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    plain.save_lora_weights(
        tmp_path / "lora", transformer_lora_layers=get_peft_model_state_dict(plain.transformer)
    )
    lora = {"model": str(tmp_path / "lora"), "scale": 0.8}
    lora["weight_name"] = "pytorch_lora_weights.safetensors"
    card = write_card(
        tmp_path, "tuned", "FluxPipeline", flux.parent / "model", negative=False, lora=lora
    )
    fused = loaded(card)._pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    torch.testing.assert_close(fused, before + 0.8 * change)
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("split", "whole", "part"),
    [("sd15", "sd-1.5", "sd-1.5-inpainting"), ("sd2", "sd-2.1", "sd-2-inpainting"), ("sdxl", "sdxl", "sdxl-inpainting"),
     ("sd3", "sd-3", "sd-3-inpainting"), ("flux", "flux.1-dev", "flux.1-dev-inpainting")],
)  # fmt: skip
def test_each_generator_of_opensdi_has_two_cards(split, whole, part):
    """The split's name is that of the generator of whole images, and both are of one family."""
    cards = [load_pipeline_card(name) for name in (whole, part)]
    assert [card.task for card in cards] == ["text", "inpainting"]
    named = [find_generator(one) for one in (split, *(card.label for card in cards))]
    assert named[0] == named[1]
    assert len({one.family for one in named}) == 1


def test_each_card_names_a_class_and_a_known_generator():
    for name in named_configs("generate"):
        card = load_pipeline_card(name)
        assert card.name == name
        assert card.label in generator_index().generators, name
        assert callable(find_pipeline_class(card)), name
        assert card.terms != "permissive", name
