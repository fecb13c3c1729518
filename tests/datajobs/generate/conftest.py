"""Tiny pipelines, made once."""

import pytest
from PIL import Image

from tests.datajobs.generate.cards import WORDS, write_card

INPAINTING = {"task": "inpainting", "sizes": [[32, 32]]}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Make a pipeline, and return its card."""

    def make(name, diffusers_class, maker, card=None, **options):
        from tests.datajobs.generate import pipelines  # which imports diffusers

        folder = tmp_path_factory.mktemp(name)
        model = getattr(pipelines, maker)(folder / "model", **options)
        return write_card(folder, f"tiny-{name}", diffusers_class, model, **(card or {}))

    return make


@pytest.fixture(scope="session")
def sd3(made):
    return made("sd3", "StableDiffusion3Pipeline", "tiny_sd3")


@pytest.fixture(scope="session")
def flux(made):
    return made("flux", "FluxPipeline", "tiny_flux", {"negative": False})


@pytest.fixture(scope="session")
def sd(made):
    return made("sd", "StableDiffusionPipeline", "tiny_image_to_image")


@pytest.fixture(scope="session")
def xl(made):
    return made("xl-text", "StableDiffusionXLPipeline", "tiny_xl")


@pytest.fixture(scope="session")
def sd3_inpainting(made):
    card = INPAINTING | {"strength": 0.6}
    return made("sd3-edit", "StableDiffusion3InpaintPipeline", "tiny_sd3", card, edits=True)


@pytest.fixture(scope="session")
def flux_inpainting(made):
    card = INPAINTING | {"strength": 0.6, "negative": False}
    return made("flux-edit", "FluxInpaintPipeline", "tiny_flux", card, edits=True)


@pytest.fixture(scope="session")
def inpainting(made):
    return made("inpainting", "StableDiffusionInpaintPipeline", "tiny_inpainting", INPAINTING)


@pytest.fixture(scope="session")
def checked(made):
    """An inpainting pipeline whose safety checker blanks everything."""
    name = "StableDiffusionInpaintPipeline"
    return made("checked", name, "tiny_inpainting", INPAINTING, checker=True)


@pytest.fixture(scope="session")
def xl_inpainting(made):
    card = INPAINTING | {"strength": 0.99}
    return made("xl", "StableDiffusionXLInpaintPipeline", "tiny_xl_inpainting", card)


@pytest.fixture
def reals(tmp_path):
    """A CSV of six real pictures with prompts, of different formats; the first three have a mask of
    their left half.
    """
    folder = tmp_path / "reals"
    folder.mkdir()
    lines = ["file_name,prompt,mask_uri,group"]
    for number in range(6):
        name = f"{number}.{'jpg' if number % 3 else 'png'}"
        picture = Image.effect_noise((64, 48), 60).convert("RGB")
        picture.save(
            folder / name, **({"quality": 71 + number, "subsampling": 0} if number % 3 else {})
        )
        mask = Image.new("L", (64, 48), 0)
        mask.paste(255, (0, 0, 32, 48))
        mask.save(folder / f"{number}-mask.png")
        lines.append(
            f"{name},a {WORDS[number]},{f'{number}-mask.png' if number < 3 else ''},scene-{number}"
        )
    table = folder / "reals.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
