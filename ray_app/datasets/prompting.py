"""The images of a labelled table that have a prompt, as a predictor of prompts learns them. Knows tables; knows no model."""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from ray_app.datasets.columns import texts
from ray_app.datasets.config import Source
from ray_app.datasets.labels import INPUT, prompt_group
from ray_app.datasets.splitting import Splits, counted
from ray_app.errors import ConfigError
from ray_app.profiling.cleaning import cleaned


def with_prompts(open_source: Callable[[Source], pa.Table]) -> Callable[[Source], pa.Table]:
    """Opens the same tables without the rows that have no prompt; the others have it cleaned, and its group where they had none."""
    return lambda source: prompted(open_source(source))


def prompted(rows: pa.Table) -> pa.Table:
    """The rows with a prompt, the prompt cleaned (`profiling.cleaning`); a row without a group is of its prompt's."""
    prompts = [cleaned(prompt) for prompt in texts(rows, "prompt").to_pylist()]
    groups = [group or prompt_group(prompt) for group, prompt in zip(texts(rows, "group").to_pylist(), prompts, strict=True)]
    labels = rows["input"].combine_chunks()
    columns = {name: labels.field(name) for name in labels.type.names} | {
        "prompt": pa.array(prompts, INPUT.field("prompt").type),
        "group": pa.array(groups, INPUT.field("group").type),
    }
    place = rows.schema.names.index("input")
    told = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return rows.set_column(place, "input", told).filter(pa.array([prompt is not None for prompt in prompts]))


def apart(splits: Splits) -> Splits:
    """The same splits; an image whose prompt training has, letter case and spaces aside, is in no other split.

    `findings["prompts_in_training"]` counts what was left out. Raises ConfigError where a split then has no image.
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
                f"data.{name}: every prompt of its {len(new):,} images is in training too", hint="data.validation: {groups: 0.1}"
            )
    findings = {
        **splits.findings,
        "splits": {**splits.findings["splits"], **{name: counted(table) for name, table in kept.items()}},
        "prompts_in_training": left_out,
    }
    return replace(splits, validation=kept["validation"], test=kept.get("test"), findings=findings)
