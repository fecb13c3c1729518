import json

import numpy as np
import pyarrow.compute as pc
import pytest

from ray_app.datasets import DatasetSource, index_source, read_index, read_info
from ray_app.datasets.config import Data
from ray_app.datasets.split_index import SplitConfig, check_splits, split_index
from ray_app.datasets.splits import make_splits
from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Store
from tests.make.datasets import made_index


def rows_of(prompts, *generators, first=0):
    """So many prompts, each with a real and a fake of each generator."""
    return [
        {"label": label, "generator": name, "prompt": f"prompt number {number}"}
        | {"uri": f"/{number}/{name}.png"}
        for number in range(first, first + prompts)
        for name, label in [("real", "real"), *((name, "fake") for name in generators)]
    ]


def divided(folder, rows, out="out", **settings):
    at = made_index(folder / f"index-{len(rows)}", rows)
    return split_index(SplitConfig(at=at, out=str(folder / out), **settings))


def splits_in(place):
    rows = read_index(str(place))
    splits = pc.struct_field(rows["input"], "split").to_pylist()
    return dict(zip(rows["uri"].to_pylist(), splits, strict=True))


def test_index_is_divided_by_prompt_and_read_by_training(tmp_path):
    document = divided(tmp_path, rows_of(400, "flux", "sd-3"))
    shares = [document["splits"][name]["share"] for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.04)
    assert document["groups"] == 400
    found = splits_in(tmp_path / "out")
    for number in range(400):
        assert len({found[f"/{number}/{name}.png"] for name in ("real", "flux", "sd-3")}) == 1
    written = json.loads((tmp_path / "out" / "split.json").read_text())
    assert written == json.loads(json.dumps(document))
    info = read_info(Store.open(str(tmp_path / "out")))
    assert info.digest == document["digest"]
    in_test = sum(one["rows"] for one in info.counts if one["split"] == "test")
    assert in_test == document["splits"]["test"]["images"]
    names, at = ("train", "validation", "test"), str(tmp_path / "out")
    sources = {name: (DatasetSource(at=at, split=name),) for name in names}
    unused = Store.open(str(tmp_path / "unused"))
    made = make_splits(Data(**sources), lambda source: index_source(source, unused))
    for pair in made.findings["leakage"]["pairs"].values():
        assert set(pair.pop("examples")) == set()
        assert set(pair.values()) == {0}


def test_added_images_move_no_other_image(tmp_path):
    divided(tmp_path, rows_of(300, "flux"))
    divided(tmp_path, rows_of(300, "flux"), "other", seed=1)
    divided(tmp_path, rows_of(500, "flux", "sd-3", first=300)[::-1] + rows_of(300, "flux"), "grown")
    before, after, other = (splits_in(tmp_path / name) for name in ("out", "grown", "other"))
    assert after.items() >= before.items()
    assert sum(before[uri] != other[uri] for uri in before) > 100


def test_an_even_division_gives_every_generator_its_share(tmp_path):
    rare = [
        {"label": "fake", "generator": f"rare-{place % 5}", "uri": f"/rare/{place}"}
        | {"prompt": f"rare {place}"}
        for place in range(100)
    ]
    document = divided(tmp_path, rows_of(400) + rare, even=True)
    for one in document["strata"]:
        n = one["train"] + one["validation"] + one["test"]
        assert [one["validation"], one["test"]] == pytest.approx([n / 10, n / 10], abs=1)


def test_an_even_division_after_an_earlier_one_moves_none_of_it(tmp_path):
    first, more = rows_of(200, "flux"), rows_of(133, "sd-3", first=150)
    divided(tmp_path, first, even=True)
    divided(tmp_path, first + more, "grown", even=True, after=str(tmp_path / "out"))
    before, after = splits_in(tmp_path / "out"), splits_in(tmp_path / "grown")
    assert after.items() >= before.items()
    for number in range(150, 200):
        assert after[f"/{number}/sd-3.png"] == before[f"/{number}/flux.png"]


def test_a_held_out_generator_is_in_test_alone(tmp_path):
    rows = rows_of(200, "flux", "sd-3") + [
        row for row in rows_of(60, "sora", first=200) if row["label"] == "fake"
    ]
    document = divided(tmp_path, rows, hold_out=("sora", "sd-3"))
    by = {one["generator"]: one for one in document["strata"]}
    assert (by["sora"]["test"], by["sora"]["held_out"]) == (60, True)
    assert (by["sd-3"]["train"], by["sd-3"]["validation"]) == (0, 0)
    assert by["sd-3"]["aside"] == 200 - by["sd-3"]["test"] > 0
    assert any("aside" in one for one in document["remarks"])
    assert document["held_out"] == {"test": 60 + by["sd-3"]["test"], "aside": by["sd-3"]["aside"]}


def test_a_share_of_generators_is_held_out_and_stays_so(tmp_path):
    names = [f"gen-{number}" for number in range(30)]
    document = divided(tmp_path, rows_of(40, *names), hold_out=("0.3",))
    held = set(document["asked"]["held_out"])
    more = rows_of(40, *names, *(f"new-{k}" for k in range(9)))
    grown = divided(tmp_path, more, "grown", hold_out=("0.3",))
    assert 3 <= len(held) <= 15
    assert set(grown["asked"]["held_out"]) & set(names) == held


def test_copies_and_likenesses_are_never_divided(tmp_path):
    rng = np.random.default_rng(0)
    hashes = [int(one) for one in rng.integers(2**62, 2**64, 300, dtype=np.uint64)]
    classes = [{"label": "real", "generator": "real"}, {"label": "fake", "generator": "x"}]
    rows = [
        classes[k % 2] | {"uri": f"/{k}", "phash": f"{phash:016x}", "sha256": f"{k:064x}"}
        for k, phash in enumerate(hashes)
    ]
    near = [f"{phash ^ (5 << k % 60):016x}" for k, phash in enumerate(hashes)]
    rows += [
        row | {"uri": f"/like{row['uri']}", "phash": phash, "sha256": None}
        for row, phash in zip(rows, near, strict=True)
    ]
    rows += [row | {"uri": f"/copy{row['uri']}", "phash": None} for row in rows[:300]]
    document = divided(tmp_path, rows)
    found = splits_in(tmp_path / "out")
    assert all(found[f"/{k}"] == found[f"/like/{k}"] == found[f"/copy/{k}"] for k in range(300))
    assert document["groups"] == 300
    loose = divided(tmp_path, rows, "loose", by=("prompt",))
    leaks = {one["kind"]: one for one in loose["leaks"]}
    assert leaks["bytes"]["values"] == 0
    assert leaks["looks"]["values"] > 30
    found = splits_in(tmp_path / "loose")
    for one, other in leaks["looks"]["examples"]:
        assert found[one] != found[other]
        assert {one.removeprefix("/like"), one} & {other.removeprefix("/like"), other}


def test_kept_split_stays_and_draws_bound_images(tmp_path):
    rows = rows_of(200, "flux")
    for row in rows[:80]:
        row["split"] = "test" if row["label"] == "fake" else None
    divided(tmp_path, rows, keep=("test",), train=0.9, validation=0.1, test=0.0)
    found = splits_in(tmp_path / "out")
    in_test = {uri for uri, split in found.items() if split == "test"}
    assert in_test == {row["uri"] for row in rows[:80]}


def test_a_check_names_both_images_of_a_leak(tmp_path):
    rows = rows_of(100, "flux")
    for place, row in enumerate(rows):
        row["split"] = "train" if place % 4 < 2 else "test"
    clean = check_splits(made_index(tmp_path / "clean", rows))["leaks"]
    assert {leak["values"] for leak in clean} == {0}
    rows[2]["sha256"] = rows[4]["sha256"] = "a" * 64
    rows[2]["prompt"] = rows[0]["prompt"]
    leaking = check_splits(made_index(tmp_path / "leaking", rows))["leaks"]
    leaks = {leak["kind"]: leak for leak in leaking}
    assert leaks["bytes"]["between"] == {"test in train": 1}
    assert leaks["bytes"]["examples"] == [[rows[2]["uri"], rows[4]["uri"]]]
    assert (leaks["prompt"]["values"], leaks["prompt"]["images"]) == (1, 3)
    assert leaks["looks"]["known"] == 0


def test_impossible_division_is_refused(tmp_path):
    at = made_index(tmp_path / "index", rows_of(40, "flux"))
    with pytest.raises(ValueError, match=r"must sum to 1, got 1\.1"):
        SplitConfig(at=at, out="x", test=0.2)
    asked = SplitConfig(at=at, out=str(tmp_path / "out"))
    tiny = made_index(tmp_path / "tiny", rows_of(1, "flux"))
    for wrong, said in [
        ({"hold_out": ("flax",)}, "held-out generator 'flax'"),
        ({"hold_out": ("flux",)}, "all generators are held out"),
        ({"out": at}, "--out must not be the index"),
        ({"at": str(tmp_path / "nothing")}, "no index"),
        ({"at": tiny}, "no group falls into validation"),
    ]:
        with pytest.raises(ConfigError, match=said):
            split_index(asked.model_copy(update=wrong))
    with pytest.raises(ConfigError, match="fewer than two splits"):
        check_splits(at)
    split_index(asked)
    with pytest.raises(IdentityError, match="divided by other settings"):
        split_index(asked.model_copy(update={"seed": 4}))
