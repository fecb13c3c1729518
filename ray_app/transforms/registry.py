"""Register the steps from which perturbations of images are built, such as `jpeg` (`STEPS`).

A step is a function with the decorator `register_step`. Its signature is the schema of the step:
its parameters are the keys of the step in YAML, with their types, bounds, defaults, and
descriptions. The reference documentation and error messages also take names and parameters from the
signature. To add a step, write one decorated function in `steps`, `degradations`, or `photography`.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, cleandoc, signature
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import numpy as np
from PIL import Image
from pydantic import Field, create_model, model_validator

from ray_app.config import Frozen

Rng = np.random.Generator
Function = TypeVar("Function", bound=Callable[..., Image.Image])


class Step(Frozen):
    """A step of a perturbation with its parameters, as in YAML: `{op: jpeg, quality: 75}`.

    Each registered step has a subclass, whose fields are the parameters.

    Attributes:
        function: Takes an RGB image, the parameters by name, and `rng` if the step is random.
        is_random: Whether `function` takes `rng`, a random number generator.
        keeps_place: Whether each part of an image keeps its position, as a fraction of the sides. A
            crop does not.
        number: The parameter that a number sets in the short form, such as `quality` in `jpeg:75`.
            None if the step has no short form.
        check_parameters: Raises ValueError for parameters that are incompatible. None if the types
            and bounds are enough.
    """

    function: ClassVar[Callable[..., Image.Image]]
    is_random: ClassVar[bool]
    keeps_place: ClassVar[bool]
    number: ClassVar[str | None]
    check_parameters: ClassVar[Callable[..., None] | None]

    op: str = Field(description="name of the step")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the step by name, such as `{"quality": 75}`."""
        return {name: value for name, value in self if name != "op"}

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        """Return the RGB image after the step, without changing the given image."""
        step = type(self)
        extra = {"rng": rng} if step.is_random else {}
        return step.function(image, **self.parameters, **extra)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if check := type(self).check_parameters:
            check(**self.parameters)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.op, self.parameters)


STEPS: dict[str, type[Step]] = {}
"""All steps by name."""


def register_step(
    op: str, *, keeps_place: bool = True, check: Callable[..., None] | None = None
) -> Callable[[Function], Function]:
    """Return a decorator that registers a function as a step of perturbations.

    The function takes an RGB image of any size and returns one. If the step is impossible for an
    image, for example because of a codec's maximum side, the function returns the image unchanged.
    The first paragraph of its docstring describes the step in the reference documentation.

    Args:
        op: The name of the step in YAML, such as `jpeg`.
        keeps_place: Whether each part of an image keeps its position, as a fraction of the sides. A
            crop does not.
        check: Gets all parameters by name, and raises ValueError if they are incompatible.
    """

    def register(function: Function) -> Function:
        all_parameters = signature(function).parameters
        parameters = {
            name: parameter
            for name, parameter in all_parameters.items()
            if name not in ("image", "rng")
        }
        fields: dict[str, Any] = {
            name: (
                parameter.annotation,
                Field() if parameter.default is Parameter.empty else parameter.default,
            )
            for name, parameter in parameters.items()
        }
        op_field: Any = (Literal[op], Field(description=Step.model_fields["op"].description))
        model = create_model(
            op, __base__=Step, __doc__=cleandoc(function.__doc__ or ""), op=op_field, **fields
        )
        model.function = staticmethod(function)
        model.is_random = "rng" in all_parameters
        model.keeps_place = keeps_place
        model.number = _find_number(list(parameters.values()))
        model.check_parameters = staticmethod(check) if check else None
        STEPS[op] = model
        return function

    return register


def make_step(facts: Mapping[str, Any]) -> Step:
    """Create a step from its mapping in YAML, such as `{op: jpeg, quality: 75}`.

    Args:
        facts: The mapping. `op` names the step, and the other keys are its parameters.

    Returns:
        The validated step.

    Raises:
        ValueError: The step does not exist, or a parameter is invalid.
    """
    model = STEPS.get(facts.get("op", ""))
    if model is None:
        raise ValueError(f"{facts.get('op')!r} is not a step; steps are {', '.join(STEPS)}")
    return model.model_validate(facts)


def number_parameters() -> dict[str, str]:
    """Return which parameter the number of a short form such as `jpeg:75` sets, for each step.

    An example item is `"jpeg": "quality"`. Steps without a short form are not included.
    """
    return {op: model.number for op, model in STEPS.items() if model.number}


def _find_number(parameters: list[Parameter]) -> str | None:
    """Return the first parameter if it may be a number and all others have defaults."""
    first, *others = parameters
    has_defaults = all(parameter.default is not Parameter.empty for parameter in others)
    return first.name if has_defaults and _takes_number(first.annotation) else None


def _takes_number(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return any(map(_takes_number, get_args(annotation)))
    return annotation in (int, float)


def _restore(op: str, parameters: dict[str, Any]) -> Step:
    """Return a step that was valid in the process that pickled it."""
    return STEPS[op].model_construct(op=op, **parameters)
