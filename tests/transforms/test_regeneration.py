"""Attacks by networks: real classes of diffusers with tiny seeded weights; what is not on the machine is absent and says why."""

import numpy as np
import pytest

from ray_app.transforms import perturbations
from tests.images.factory import photo

pytestmark = pytest.mark.slow  # diffusers is imported


def listed(tmp_path, **step):
    path = tmp_path / "mine.yaml"
    words = ", ".join(f"{key}: {value}" for key, value in step.items())
    path.write_text(f"name: mine\nsource: me\nperturbations:\n  - {{name: regenerated, kind: attack, steps: [{{{words}}}]}}\n")
    return str(path)


def differences(name, *sides):
    (view,) = perturbations.load_perturbations([name])
    for width, height in sides:
        image = photo(width, height, seed=width)
        seen, again = view.apply(image, 1), view.apply(image, 1)
        assert seen.size == (max(width // 8 * 8, 8), max(height // 8 * 8, 8))
        assert seen.mode == "RGB"
        assert (np.asarray(seen) == np.asarray(again)).all()
        yield view, image, seen


def test_a_round_trip_is_what_diffusers_decodes(tmp_path):
    import torch
    from diffusers import AutoencoderKL

    from tests.datajobs.generate.pipelines import tiny_autoencoder

    folder = tiny_autoencoder(tmp_path / "vae")
    network = AutoencoderKL.from_pretrained(folder).eval()
    for _, image, seen in differences(listed(tmp_path, op="vae", model=folder), (32, 24), (37, 64)):
        framed = image.resize(seen.size, 1) if image.size != seen.size else image
        given = torch.tensor(np.asarray(framed), dtype=torch.float32).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            expected = network.decode(network.encode(given).latent_dist.mode()).sample[0].clamp(-1, 1)
        if framed is image:
            assert np.abs(np.asarray(seen) - ((expected + 1) * 127.5).permute(1, 2, 0).numpy()).max() <= 1
        assert np.abs(np.asarray(seen, float) - np.asarray(framed, float)).mean() > 1


def test_a_light_repaint_goes_farther_with_its_strength(tmp_path):
    from tests.datajobs.generate.pipelines import tiny_image_to_image

    folder = tiny_image_to_image(tmp_path / "pipeline")
    found = []
    for strength in (0.2, 0.9):
        ((view, image, seen),) = differences(listed(tmp_path, op="img2img", model=folder, strength=strength, steps=10), (32, 32))
        assert view.facts()[0]["digest"]
        found.append(seen)
        assert (np.asarray(view.apply(image, 2)) != np.asarray(seen)).any()  # its noise is of the seed
    assert (np.asarray(found[0]) != np.asarray(found[1])).any()


def test_weights_that_are_not_there_are_absent_with_a_reason(tmp_path):
    name = listed(tmp_path, op="vae", model=tmp_path / "nothing")
    assert perturbations.load_perturbations([name]) == ()
    (one,) = perturbations.absent_views([name])
    assert (one.name, one.kind) == ("regenerated", "attack")
    assert one.why == f"{tmp_path}/nothing has no config.json"
