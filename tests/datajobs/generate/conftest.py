"""Tiny pipelines, made once."""

import pytest
from PIL import Image

from tests.datajobs.generate.cards import WORDS, write_card


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors gain nothing from a second thread, and wait for it where cores are busy."""
    import torch

    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.fixture(scope="session")
def sd3(tmp_path_factory):
    from tests.datajobs.generate.pipelines import tiny_sd3

    folder = tmp_path_factory.mktemp("sd3")
    return write_card(folder, "tiny-sd3", "StableDiffusion3Pipeline", tiny_sd3(folder / "model"))


@pytest.fixture(scope="session")
def flux(tmp_path_factory):
    from tests.datajobs.generate.pipelines import tiny_flux

    folder = tmp_path_factory.mktemp("flux")
    return write_card(folder, "tiny-flux", "FluxPipeline", tiny_flux(folder / "model"), negative=False)


@pytest.fixture(scope="session")
def inpainting(tmp_path_factory):
    from tests.datajobs.generate.pipelines import tiny_inpainting

    folder = tmp_path_factory.mktemp("inpainting")
    model = tiny_inpainting(folder / "model")
    return write_card(folder, "tiny-inpainting", "StableDiffusionInpaintPipeline", model, task="inpainting", sizes=[[32, 32]])


@pytest.fixture(scope="session")
def checked(tmp_path_factory):
    """An inpainting pipeline whose safety checker blanks everything."""
    from tests.datajobs.generate.pipelines import tiny_inpainting

    folder = tmp_path_factory.mktemp("checked")
    model = tiny_inpainting(folder / "model", checker=True)
    return write_card(folder, "tiny-checked", "StableDiffusionInpaintPipeline", model, task="inpainting", sizes=[[32, 32]])


@pytest.fixture(scope="session")
def xl_inpainting(tmp_path_factory):
    from tests.datajobs.generate.pipelines import tiny_xl_inpainting

    folder = tmp_path_factory.mktemp("xl")
    more = {"task": "inpainting", "sizes": [[32, 32]], "strength": 0.99}
    return write_card(folder, "tiny-xl", "StableDiffusionXLInpaintPipeline", tiny_xl_inpainting(folder / "model"), **more)


@pytest.fixture
def reals(tmp_path):
    """A CSV of six real pictures with prompts, of different formats; the first three have a mask of their left half."""
    folder = tmp_path / "reals"
    folder.mkdir()
    lines = ["file_name,prompt,mask_uri,group"]
    for number in range(6):
        name = f"{number}.{'jpg' if number % 3 else 'png'}"
        picture = Image.effect_noise((64, 48), 60).convert("RGB")
        picture.save(folder / name, **({"quality": 71 + number, "subsampling": 0} if number % 3 else {}))
        mask = Image.new("L", (64, 48), 0)
        mask.paste(255, (0, 0, 32, 48))
        mask.save(folder / f"{number}-mask.png")
        lines.append(f"{name},a {WORDS[number]},{f'{number}-mask.png' if number < 3 else ''},scene-{number}")
    table = folder / "reals.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
