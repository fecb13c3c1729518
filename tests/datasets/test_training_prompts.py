"""Which images a predictor of prompts learns from, and that no prompt of training is in another
split.
"""

import pyarrow as pa
import pytest

from ray_app.datasets.config import Data, DatasetSource, HeldOut
from ray_app.datasets.labels import INPUT, prompt_group
from ray_app.datasets.splits import make_splits
from ray_app.datasets.training_prompts import (
    drop_training_prompts,
    select_prompted_rows,
    with_prompts,
)
from ray_app.errors import ConfigError


def table(prompts, groups=None, first=0):
    labels = [
        {"label": "fake", "generator": "g", "prompt": prompt, "group": group}
        for prompt, group in zip(prompts, groups or [None] * len(prompts), strict=True)
    ]
    columns = {"image_id": pa.array(range(first, first + len(prompts)), pa.int64())}
    columns["uri"] = [f"{n}.png" for n in range(len(prompts))]
    return pa.table(columns | {"input": pa.array(labels, INPUT)})


def told(rows, name):
    return rows["input"].combine_chunks().field(name).to_pylist()


def test_rows_without_prompt_go_and_others_are_cleaned():
    prompts = ["(a red fox:1.3) in snow, nsfw", None, "1234567890 42", "a blue bird --ar 1:1"]
    rows = select_prompted_rows(table([*prompts, "short"], ["x", "y", None, None, None]))
    assert told(rows, "prompt") == ["a red fox in snow", "a blue bird"]
    assert told(rows, "group") == ["x", prompt_group("a blue bird")]
    assert told(rows, "generator") == ["g", "g"]
    assert rows["image_id"].to_pylist() == [0, 3]
    assert rows.schema == table(["a"]).schema


def split_of(data, **tables):
    """The splits of tables by source, without prompts of training in the others."""
    read = with_prompts(lambda source: tables[source.at[0]])
    return drop_training_prompts(make_splits(data, read, one_class=True))


def test_no_prompt_of_training_is_in_another_split():
    data = Data(train=(DatasetSource(at=("a",)),), validation=(DatasetSource(at=("b",)),))
    own = table(["A  Red fox in SNOW", "a green frog in grass"], first=9)
    splits = split_of(data, a=table(["a red fox in snow", "a blue bird in rain"]), b=own)
    assert told(splits.validation, "prompt") == ["a green frog in grass"]
    assert splits.findings["prompts_in_training"] == {"validation": 1}
    assert splits.findings["splits"]["validation"]["images"] == 1
    fox = ["a red fox in snow"]
    with pytest.raises(ConfigError, match="is in training, too"):
        split_of(data, a=table(fox), b=table(fox, first=9))


def test_images_of_one_prompt_stay_together():
    data = Data(train=(DatasetSource(at=("a",)),), validation=HeldOut(groups=0.3))
    words = ["abcdefghij"[n % 10] * 3 for n in range(200)]
    splits = split_of(data, a=table([f"a picture of thing number {word}" for word in words]))
    train, validation = (set(told(rows, "prompt")) for rows in (splits.train, splits.validation))
    assert train
    assert validation
    assert not train & validation
    assert len(train | validation) == 10
