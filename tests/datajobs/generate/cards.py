"""Cards and prompt lists for tests: tiny pipelines under the settings of real ones."""

from pathlib import Path

import yaml

from ray_app.datajobs.generate import GenerateConfig, load_pipeline_card

_BASIS = {
    "title": "Tiny",
    "licence": "apache-2.0",
    "terms": "permissive",
    "source": "tests",
    "precision": "fp32",
    "steps": 2,
    "guidance": 3.5,
}
WORDS = ("cat", "dog", "house", "tree", "ship", "lamp", "road", "bird")


def write_card(folder: Path, name: str, diffusers_class: str, model: Path, **more) -> Path:
    """A card in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [[32, 32], [48, 32], [32, 48]]
    card = {"name": name, "diffusers_class": diffusers_class, "model": str(model), "sizes": sizes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(_BASIS | card | more))
    return path


def write_prompts(path: Path, number: int) -> Path:
    """A text file of `number` different prompts."""
    lines = [f"a {WORDS[n % 8]} beside a {WORDS[n // 8 % 8]}, number {n}\n" for n in range(number)]
    path.write_text("".join(lines))
    return path


def job(card: Path, prompts: Path, out: Path, **more) -> GenerateConfig:
    """A job in this process."""
    cluster = {"workers": 1} | more.pop("cluster", {})
    settings = {"device": "cpu", "cluster": cluster, "block_images": 4} | more
    paths = {"pipeline": str(card), "prompts": str(prompts), "out": str(out)}
    return GenerateConfig.model_validate(paths | settings)


def loaded(card: Path):
    """The card's pipeline on the CPU."""
    from ray_app.datajobs.generate.pipelines import LoadedPipeline, find_model

    found = load_pipeline_card(card)
    return LoadedPipeline(found, find_model(found), device="cpu", precision="fp32")
