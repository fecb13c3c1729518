"""Which images a predictor of prompts learns from, and that no prompt of training is in another
split.
"""

import pyarrow as pa
import pytest

from ray_app.datasets.config import Data, DatasetSource, HeldOut
from ray_app.datasets.labels import INPUT, prompt_group
from ray_app.datasets.splits import make_splits
from ray_app.datasets.training_prompts import (
    with_cleaned_prompts,
    with_prompts,
    without_training_prompts,
)
from ray_app.errors import ConfigError


def table(prompts, groups=None, first=0):
    labels = [
        {"label": "fake", "generator": "g", "prompt": prompt, "group": group}
        for prompt, group in zip(prompts, groups or [None] * len(prompts), strict=True)
    ]
    ids = pa.array(range(first, first + len(prompts)), pa.int64())
    return pa.table(
        {
            "image_id": ids,
            "uri": [f"{n}.png" for n in range(len(prompts))],
            "input": pa.array(labels, INPUT),
        }
    )


def told(rows, name):
    return rows["input"].combine_chunks().field(name).to_pylist()


def test_rows_without_a_prompt_are_left_out_and_the_others_are_cleaned():
    rows = with_cleaned_prompts(
        table(
            [
                "(a red fox:1.3) in snow, nsfw",
                None,
                "1234567890 42",
                "a blue bird --ar 1:1",
                "short",
            ],
            ["x", "y", None, None, None],
        )
    )
    assert told(rows, "prompt") == ["a red fox in snow", "a blue bird"]
    assert told(rows, "group") == ["x", prompt_group("a blue bird")]
    assert told(rows, "generator") == ["g", "g"]
    assert rows["image_id"].to_pylist() == [0, 3]
    assert rows.schema == table(["a"]).schema


def test_a_split_of_its_own_loses_what_training_has():
    tables = {
        "a": table(["a red fox in snow", "a blue bird in rain"]),
        "b": table(["A  Red fox in SNOW", "a green frog in grass"], first=9),
    }
    data = Data(train=(DatasetSource(at=("a",)),), validation=(DatasetSource(at=("b",)),))
    splits = without_training_prompts(
        make_splits(data, with_prompts(lambda source: tables[source.at[0]]), one_class=True)
    )
    assert told(splits.validation, "prompt") == ["a green frog in grass"]
    assert splits.findings["prompts_in_training"] == {"validation": 1}
    assert splits.findings["splits"]["validation"]["images"] == 1
    # images of one prompt stay together
    held = Data(train=data.train, validation=HeldOut(groups=0.3))
    tables["a"] = table(
        [f"a picture of thing number {'abcdefghij'[n % 10] * 3}" for n in range(200)]
    )
    apart = without_training_prompts(
        make_splits(held, with_prompts(lambda source: tables[source.at[0]]), one_class=True)
    )
    prompts = [set(told(rows, "prompt")) for rows in (apart.train, apart.validation)]
    assert all(prompts)
    assert len(prompts[0] | prompts[1]) == len(prompts[0]) + len(prompts[1]) == 10
    tables["a"] = table(["a red fox in snow"])
    tables["b"] = table(["a red fox in snow"], first=9)
    with pytest.raises(ConfigError, match="is in training too"):
        without_training_prompts(
            make_splits(data, with_prompts(lambda source: tables[source.at[0]]), one_class=True)
        )
