"""A labelled set on disk of simulated pictures (`build_labelled_set`): camera pictures and repainted twins, in three disjoint splits.

A file depends on the arguments and its own number, never on the process that made it.
"""

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from ray_app.config import Frozen, validate
from ray_app.datasets.simulation.camera import SUFFIXES, draw_history
from ray_app.datasets.simulation.decoders import LEARNED, keep_generator, kept_generators
from ray_app.datasets.simulation.pairs import SPLITS, Decode, make_pair
from ray_app.errors import ConfigError
from ray_app.storage import Store

SplitName = Literal["train", "validation", "test"]
PerSplit = Mapping[SplitName, Annotated[int, Field(ge=1)]]
Row = Sequence[str]

COLUMNS = ("path", "label", "generator", "split", "group", "prompt")
LABELS = "labels.csv"
_ARGUMENTS = "arguments.json"
_PAIRS_AT_ONCE = 10  # in one task: about a second
_SPLIT_SEED = {"train": 1, "validation": 2, "test": 3}
_PICTURE_PX = {"train": 320, "validation": 352, "test": 352}
_FILE_PX = {"train": 168, "validation": 256, "test": 256}


class SimulatedSet(Frozen):
    """What decides the pictures. `pairs` of each split; a pair becomes `histories` times two files, real and fake (1 where not named).

    `picture_px`: side of the picture before its history; `file_px`: side of the file. `autoencoder_steps`: how long the learned decoders
    are trained.
    """

    pairs: PerSplit = Field(min_length=1)
    histories: PerSplit = Field(default={})
    picture_px: PerSplit = Field(default={})
    file_px: PerSplit = Field(default={})
    autoencoder_steps: int = Field(default=300, ge=1)
    seed: int = Field(default=20, ge=0)

    @model_validator(mode="after")
    def _files_fit(self) -> "SimulatedSet":
        for split in self.pairs:
            picture, file = self.sides(split)
            if file > picture:
                raise ValueError(f"files of {file} px cannot be cut from pictures of {picture} px ({split})")
        return self

    def sides(self, split: SplitName) -> tuple[int, int]:
        """Pixels of the picture and of the file."""
        return self.picture_px.get(split, _PICTURE_PX[split]), self.file_px.get(split, _FILE_PX[split])


def build_labelled_set(
    folder: Path,
    *,
    pairs: Mapping[str, int],
    histories: Mapping[str, int] | None = None,
    picture_px: Mapping[str, int] | None = None,
    file_px: Mapping[str, int] | None = None,
    autoencoder_steps: int = 300,
    seed: int = 20,
    processes: int | None = None,
    progress: Callable[[int], object] = lambda files: None,
) -> Path:
    """Write the set below `folder` and return it: image files, and `labels.csv` last (path, label, generator, split, group, prompt).

    The arguments are those of `SimulatedSet`; `processes` (None = one per core) make it and change nothing in it; `progress` is told how
    many more files are ready. The generator of a real file is `real:CAMERA`, the prompt is the scene. The files of a group are of one pair:
    a real one followed by its fake twin after the same history. A finished set is left as it is, an unfinished one is continued.
    Raises ConfigError for wrong arguments, and where the folder holds a set of others.
    """
    given = {"histories": histories or {}, "picture_px": picture_px or {}, "file_px": file_px or {}}
    plan = validate({"pairs": pairs, **given, "autoencoder_steps": autoencoder_steps, "seed": seed}, SimulatedSet, where="simulated set")
    store = Store.open(str(folder))
    _claim(store, plan)
    if not store.exists(LABELS):
        rows = _simulate(folder, plan, processes or len(os.sched_getaffinity(0)), progress)
        store.write(LABELS, _csv([COLUMNS, *rows]))
    return folder


def _claim(store: Store, plan: SimulatedSet) -> None:
    wanted = plan.model_dump(mode="json")
    if not store.exists(_ARGUMENTS):
        store.write(_ARGUMENTS, json.dumps(wanted, indent=1).encode())
    elif (found := json.loads(store.read(_ARGUMENTS))) != wanted:
        other = "; ".join(f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value)
        raise ConfigError(f"{store!r} holds a simulated set of other arguments: {other}", hint="give another folder, or remove that one")


def _simulate(folder: Path, plan: SimulatedSet, processes: int, progress: Callable[[int], object]) -> Iterator[Row]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(partial(keep_generator, _generators(folder), seed=plan.seed, steps=plan.autoencoder_steps), LEARNED))
        tasks = [(split, first) for split, count in plan.pairs.items() for first in range(0, count, _PAIRS_AT_ONCE)]
        for rows in pool.map(partial(_part, folder, plan), tasks):
            progress(len(rows))
            yield from rows


def _part(folder: Path, plan: SimulatedSet, task: tuple[SplitName, int]) -> list[Row]:
    """The rows of some pairs of one split, whose files exist when this returns; their own list is written last and makes them known."""
    (split, first), parts = task, Store.open(str(folder / "parts"))
    name = f"{split}-{first:06d}.csv"
    if not parts.exists(name):
        (folder / split).mkdir(exist_ok=True)
        last = min(first + _PAIRS_AT_ONCE, plan.pairs[split])
        parts.write(name, _csv(row for index in range(first, last) for row in _pair(folder, plan, split, index)))
    return list(csv.reader(io.StringIO(parts.read(name).decode())))


def _pair(folder: Path, plan: SimulatedSet, split: SplitName, index: int) -> Iterator[Row]:
    rng = np.random.default_rng([plan.seed, _SPLIT_SEED[split], index])
    side, target = plan.sides(split)
    pair = make_pair(SPLITS[split], _decoders(folder), rng, side, side)
    height, width = pair.real.shape[:2]
    group = f"{split}-{index:06d}"
    for number in range(plan.histories.get(split, 1)):
        history = draw_history(rng, height, width, target=(target, target))
        makers = (("real", f"real:{pair.camera}"), ("fake", pair.decoder))
        for (label, generator), data in zip(makers, pair.encode(history), strict=True):
            path = f"{split}/{group}-{number}-{label}{SUFFIXES[history.last.format]}"
            (folder / path).write_bytes(data)
            yield path, label, generator, split, group, pair.scene


@cache
def _decoders(folder: Path) -> Mapping[str, Decode]:
    return kept_generators(_generators(folder))


def _generators(folder: Path) -> Store:
    return Store.open(str(folder / "generators"))


def _csv(rows: Iterable[Row]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()
