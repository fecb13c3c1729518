"""Labelled tables for a training on prompts (`with_prompts`, `without_training_prompts`)."""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from ray_app.datasets.config import DatasetSource
from ray_app.datasets.labels import prompt_group, texts, with_input
from ray_app.datasets.splits import Splits, counted
from ray_app.errors import ConfigError
from ray_app.identification.prompts import cleaned


def with_prompts(
    open_source: Callable[[DatasetSource], pa.Table],
) -> Callable[[DatasetSource], pa.Table]:
    """Return a function that opens the same tables as `open_source`, with cleaned prompts."""
    return lambda source: with_cleaned_prompts(open_source(source))


def with_cleaned_prompts(rows: pa.Table) -> pa.Table:
    """Return the rows that have a prompt, with the prompt cleaned (`identification.prompts`). A row
    without a group gets the group of its prompt.
    """
    prompts = [cleaned(prompt) for prompt in texts(rows, "prompt").to_pylist()]
    groups = [
        group or prompt_group(prompt)
        for group, prompt in zip(texts(rows, "group").to_pylist(), prompts, strict=True)
    ]
    given = with_input(
        rows, prompt=pa.array(prompts, pa.string()), group=pa.array(groups, pa.string())
    )
    return given.filter(pa.array([prompt is not None for prompt in prompts]))


def without_training_prompts(splits: Splits) -> Splits:
    """Return the splits without images of validation and test whose prompt is in train, but for
    case and spaces. `findings["prompts_in_training"]` counts them.

    Raises:
        ConfigError: No image of a split is left.
    """
    known = {prompt_group(prompt) for prompt in texts(splits.train, "prompt").to_pylist()}
    kept, left_out = {}, {}
    for name, table in (("validation", splits.validation), ("test", splits.test)):
        if table is None:
            continue
        new = [prompt_group(prompt) not in known for prompt in texts(table, "prompt").to_pylist()]
        kept[name], left_out[name] = table.filter(pa.array(new)), len(new) - sum(new)
        if not any(new):
            raise ConfigError(
                f"data.{name}: every prompt of its {len(new):,} images is in training too",
                hint="data.validation: {groups: 0.1}",
            )
    findings = {
        **splits.findings,
        "splits": {
            **splits.findings["splits"],
            **{name: counted(table) for name, table in kept.items()},
        },
        "prompts_in_training": left_out,
    }
    return replace(splits, validation=kept["validation"], test=kept.get("test"), findings=findings)
