import pickle
import re
from typing import Annotated

import pytest
from PIL import Image
from pydantic import Field, ValidationError

from docs_site import settings
from ray_app.errors import ConfigError
from ray_app.transforms.perturbations import Perturbation, load_perturbations
from ray_app.transforms.registry import STEPS, Rng, make_step, number_parameters, register_step
from tests.make.images import photo
from tests.transforms.given import rng


@pytest.fixture
def shade():
    """A step that is one function."""

    @register_step("shade")
    def add_shade(
        image: Image.Image,
        rng: Rng,
        depth: Annotated[int, Field(ge=1, le=9, description="grey levels at most")],
        floor: Annotated[int, Field(description="darkest value")] = 0,
    ) -> Image.Image:
        """Darken by a drawn number of grey levels."""
        fall = int(rng.integers(1, depth, endpoint=True))
        return image.point(lambda value: max(value - fall, floor))

    yield add_shade
    del STEPS["shade"]


def test_new_step_takes_one_function(shade):
    step = make_step({"op": "shade", "depth": 9})
    image = photo(20, 20)
    assert step(image, rng(1)).tobytes() == shade(image, rng(1), 9).tobytes()
    assert step.parameters == {"depth": 9, "floor": 0}
    assert (step.keeps_place, step.is_random) == (True, True)
    assert number_parameters()["shade"] == "depth"
    with pytest.raises(ValidationError, match=r"shade\ndepth\n"):
        make_step({"op": "shade", "depth": 10})
    with pytest.raises(ValidationError, match="deep"):
        make_step({"op": "shade", "depth": 1, "deep": 2})


def test_every_step_is_in_the_reference_with_its_parameters():
    page = settings.pages()["card-perturbations"]
    for op, step in STEPS.items():
        assert f"| <code>{op}</code> | {step.__doc__[:9]}" in page
        for name in step.model_fields.keys() - {"op"}:
            assert f"| <code>{name.replace('_', '&#95;')}</code> |" in page
    assert not re.search(r"\| +\|$", page.partition("## families")[0].partition("steps[]")[2], re.M)


def test_number_after_a_step_sets_its_first_parameter():
    [view] = load_perturbations(["lens-blur:3+gamma:1.2"])
    assert view.facts() == [{"op": "lens-blur", "strength": 3}, {"op": "gamma", "gamma": 1.2}]
    with pytest.raises(ConfigError, match=r"lens-blur\.strength: 99 does not fit[^\n]+$"):
        load_perturbations(["lens-blur:99"])
    with pytest.raises(ConfigError, match=r"^--perturb jpeg:300: steps\.0\.jpeg\.quality: 300"):
        load_perturbations(["jpeg:300"])
    with pytest.raises(ConfigError, match="the step show needs more than a number") as refused:
        load_perturbations(["show:300"])
    assert refused.value.hint == (
        "write a list of perturbations as a YAML file with this step (op, screen), and give --perturb FILE"
    )


def test_unknown_step_names_the_nearest_step(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsource: me\nperturbations: [{name: a, steps: [{op: lens-blurr, strength: 2}]}]\n"
    )
    with pytest.raises(ConfigError, match=r"op: 'lens-blurr' is not valid .* 'lens-blur'\?"):
        load_perturbations([str(tmp_path / "mine.yaml")])


def test_family_names_the_invalid_parameter(tmp_path):
    family = "{name: soft, group: blur, strengths: ours, step: {op: OP}, levels: {strength: [1, 2, 3, 4, 99]}}"
    path = tmp_path / "mine.yaml"
    for op, message in (
        ("lens-blur", "soft, level 5: strength: Input should be less than or equal to 64"),
        ("no-such", "soft, level 1: 'no-such' is not a step"),
        ("call", "soft: a family cannot call a function of yours"),
    ):
        path.write_text(f"name: mine\nsource: me\nfamilies: [{family.replace('OP', op)}]\n")
        with pytest.raises(ConfigError, match=message):
            load_perturbations([str(path)])


@pytest.mark.parametrize("name", ["standard", "photographs", "degraded", "ntire-2026"])
def test_steps_stay_the_same_in_another_process(name):
    views = load_perturbations([name])
    copies = pickle.loads(pickle.dumps(views))
    assert copies == views
    assert [type(step) for view in copies for step in view.steps] == [
        type(step) for view in views for step in view.steps
    ]
    assert [Perturbation(name="a", steps=view.facts()).facts() for view in copies] == [
        view.facts() for view in views
    ]
