"""Prepare labelled tables for training a network that predicts the prompts of images.

`with_prompts` keeps only images that have a prompt. `drop_training_prompts` removes validation and
test images whose prompt is also in the training split.
"""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from ray_app.datasets.config import DatasetSource
from ray_app.datasets.labels import prompt_group, texts, with_input
from ray_app.datasets.splits import Splits, summarize_split
from ray_app.errors import ConfigError
from ray_app.identification.prompts import clean_prompt


def with_prompts(
    open_source: Callable[[DatasetSource], pa.Table],
) -> Callable[[DatasetSource], pa.Table]:
    """Wrap a function that opens sources, so that it returns only rows that have a prompt.

    The prompts are also cleaned. `select_prompted_rows` describes how.

    Args:
        open_source: Returns the labelled table of a source.

    Returns:
        A function that takes a source, like `open_source`, and returns the selected rows.
    """
    return lambda source: select_prompted_rows(open_source(source))


def select_prompted_rows(rows: pa.Table) -> pa.Table:
    """Return the rows that have a prompt, with the prompt cleaned.

    `clean_prompt` removes the prompt syntax of programs, such as `(word:1.3)`, and rejects texts
    that cannot be prompts. A row without the label `group` gets a group that all rows of its prompt
    share (`prompt_group`), so that they stay in one split.
    """
    prompts = [clean_prompt(prompt) for prompt in texts(rows, "prompt").to_pylist()]
    groups = [
        group or prompt_group(prompt)
        for group, prompt in zip(texts(rows, "group").to_pylist(), prompts, strict=True)
    ]
    prompted = with_input(
        rows, prompt=pa.array(prompts, pa.string()), group=pa.array(groups, pa.string())
    )
    return prompted.filter(pa.array([prompt is not None for prompt in prompts]))


def drop_training_prompts(splits: Splits) -> Splits:
    """Return the splits without those images of validation and test whose prompt is in train.

    Letter case and spaces make no difference. `findings["prompts_in_training"]` counts the images.

    Raises:
        ConfigError: No image of a split is left.
    """
    train_groups = {prompt_group(prompt) for prompt in texts(splits.train, "prompt").to_pylist()}
    remaining, left_out = {}, {}
    for name, table in (("validation", splits.validation), ("test", splits.test)):
        if table is None:
            continue
        is_new = [
            prompt_group(prompt) not in train_groups
            for prompt in texts(table, "prompt").to_pylist()
        ]
        remaining[name], left_out[name] = table.filter(pa.array(is_new)), len(is_new) - sum(is_new)
        if not any(is_new):
            raise ConfigError(
                f"data.{name}: every prompt of its {len(is_new):,} images is in training, too",
                hint="hold out a part by data.validation: {groups: 0.1}",
            )
    findings = {
        **splits.findings,
        "splits": {
            **splits.findings["splits"],
            **{name: summarize_split(table) for name, table in remaining.items()},
        },
        "prompts_in_training": left_out,
    }
    return replace(
        splits, validation=remaining["validation"], test=remaining.get("test"), findings=findings
    )
