"""What people call from Python, as they would write it: every call gives the score of the file
itself, or says what is accepted.
"""

import copy
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

import ray_app
from ray_app.errors import ConfigError, Reason, Status
from tests.images.factory import encoded, flat, photo
from tests.scoring.conftest import write_points
from tests.storage.faulty_server import FaultyServer
from tests.unprivileged import closed

DETECTOR = "touchstone-tiny"


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_ensemble("tiny", precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three PNGs (so that pixels are what the file says), one of them below; a text; and a file
    that is cut short.
    """
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for seed, name in enumerate(("a.png", "b.png", "below/c.png")):
        (folder / name).write_bytes(encoded(photo(160, 120, seed=seed), "PNG"))
    (folder / "notes.txt").write_text("no picture")
    (folder / "z.jpg").write_bytes(encoded(photo(160, 120), "JPEG")[:600])
    return folder


@pytest.fixture(scope="module")
def expected(ensemble, folder):
    """The score of each picture, by its name, as `score(path)` has it."""
    return {name: ensemble.score(folder / name).score for name in ("a.png", "b.png", "below/c.png")}


def pixels(folder):
    return np.asarray(Image.open(folder / "a.png"))


ONE = {
    "path as str": lambda folder: str(folder / "a.png"),
    "Path": lambda folder: folder / "a.png",
    "file URL": lambda folder: f"file://{folder}/a.png",
    "bytes": lambda folder: (folder / "a.png").read_bytes(),
    "memoryview": lambda folder: memoryview((folder / "a.png").read_bytes()),
    "open file": lambda folder: (folder / "a.png").open("rb"),
    "buffer that was written to its end": lambda folder: _saved(folder),
    "PIL, not loaded yet": lambda folder: Image.open(folder / "a.png"),
    "array H×W×3": pixels,
    "array H×W×4": lambda folder: np.dstack([pixels(folder), np.full((120, 160), 255, np.uint8)]),
    "array of the file's bytes": lambda folder: np.fromfile(folder / "a.png", np.uint8),
    "tensor 3×H×W": lambda folder: torch.from_numpy(pixels(folder).copy()).permute(2, 0, 1),
    "dict with bytes": lambda folder: {"bytes": (folder / "a.png").read_bytes(), "path": None},
    "dict with a path": lambda folder: {"bytes": None, "path": str(folder / "a.png")},
}


def _saved(folder):
    buffer = io.BytesIO()
    Image.open(folder / "a.png").save(buffer, "PNG")
    return buffer


@pytest.mark.parametrize("given", ONE)
def test_one_thing_gives_one_result(ensemble, folder, expected, given):
    result = ensemble.score(ONE[given](folder))
    assert isinstance(result, ray_app.Result)
    assert (result.status, result.score, result.calibrated) == (Status.OK, expected["a.png"], False)
    assert result.probability == pytest.approx(1 / (1 + np.exp(-result.score)))
    assert ensemble(ONE[given](folder)).score == expected["a.png"]


def test_grey_pixels_are_the_picture_in_grey(ensemble):
    grey = np.asarray(photo(160, 120).convert("L"))
    scores = {
        ensemble.score(one).score
        for one in (np.dstack([grey] * 3), grey, grey[..., None], torch.from_numpy(grey.copy()))
    }
    assert len(scores) == 1


MANY = {
    "list of paths": lambda folder: [str(folder / "a.png"), folder / "b.png"],
    "list of anything": lambda folder: [
        Image.open(folder / "a.png"),
        {"bytes": (folder / "b.png").read_bytes()},
    ],
    "generator": lambda folder: (folder / name for name in ("a.png", "b.png")),
    "glob": lambda folder: f"{folder}/*.png",
    "array N×H×W×3": lambda folder: np.stack(
        [np.asarray(Image.open(folder / name)) for name in ("a.png", "b.png")]
    ),
    "tensor N×3×H×W": lambda folder: torch.stack(
        [
            torch.from_numpy(np.array(Image.open(folder / n))).permute(2, 0, 1)
            for n in ("a.png", "b.png")
        ]
    ),
    "pandas column": lambda folder: pd.Series([str(folder / "a.png"), str(folder / "b.png")]),
    "pyarrow column": lambda folder: pa.table(
        {"bytes": [(folder / name).read_bytes() for name in ("a.png", "b.png")]}
    )["bytes"],
    "column of datasets": lambda folder: hub(folder)["image"],
    "column of datasets, not decoded": lambda folder: hub(folder).cast_column(
        "image", datasets.Image(decode=False)
    )["image"],
    "column of datasets, streamed": lambda folder: hub(folder).to_iterable_dataset()["image"],
}


def hub(folder, names=("a.png", "b.png")):
    data = {"image": [str(folder / name) for name in names], "label": [0] * len(names)}
    return datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())


@pytest.mark.parametrize("given", MANY)
def test_many_give_results_in_order(ensemble, folder, expected, given):
    results = ensemble.score(MANY[given](folder))
    assert iter(results) is results
    assert [result.score for result in results] == [expected["a.png"], expected["b.png"]]


def test_a_folder_is_all_that_lies_in_it(ensemble, folder, expected):
    found = {
        Path(result.source).relative_to(folder).as_posix(): result
        for result in ensemble.score(folder)
    }
    assert list(found) == ["a.png", "b.png", "below/c.png", "notes.txt", "z.jpg"]
    assert {name: one.score for name, one in found.items() if one.status is Status.OK} == expected
    assert (found["notes.txt"].status, found["z.jpg"].status) == (
        Status.UNSUPPORTED_FORMAT,
        Status.TRUNCATED_IMAGE,
    )


def test_urls(ensemble, folder, expected):
    with FaultyServer() as web:
        for name in ("a.png", "b.png"):
            web.objects[f"/{name}"] = web.objects[f"/{name}?token=secret"] = (
                folder / name
            ).read_bytes()
        assert ensemble.score(f"{web.url}/a.png").score == expected["a.png"]
        found = list(
            ensemble.score(
                [f"{web.url}/b.png?token=secret", f"{web.url}/none.png", f"{web.url}/a.png"]
            )
        )
    assert [one.score for one in found] == [expected["b.png"], None, expected["a.png"]]
    assert found[1].status is Status.SOURCE_MISSING
    assert found[0].source == f"{web.url}/b.png"


def test_one_file_or_a_prefix_of_another_store(ensemble, folder, expected):
    store = fsspec.filesystem("memory")
    for name in ("a.png", "b.png"):
        store.pipe(f"/calls/{name}", (folder / name).read_bytes())
    assert ensemble.score("memory://calls/a.png").score == expected["a.png"]
    for many in ("memory://calls", "memory://calls/", "memory://calls/*.png"):
        found = {result.source.rpartition("/")[2]: result.score for result in ensemble.score(many)}
        assert found == {name: expected[name] for name in ("a.png", "b.png")}
    assert ensemble.score("memory://calls/none.png").status is Status.SOURCE_MISSING
    for nothing in ("memory://none/*.png", f"{folder}/*.webp"):
        with pytest.raises(ConfigError, match=r"/\*\.\w+: no file matches this pattern"):
            ensemble.score(nothing)


def test_a_batch_of_ray_data(ensemble, folder, expected):
    """As `map_batches` passes it: arrays by column; those of `read_images` are called `image`."""
    files = np.array([(folder / "a.png").read_bytes(), b"text"], object)
    out = ensemble({"bytes": files, "id": np.array([1, 2])})
    assert list(out) == [
        "bytes",
        "id",
        "status",
        "finding",
        "verdict",
        "probability",
        "score",
        f"score_{DETECTOR}",
    ]
    assert list(out["status"]) == ["ok", "unsupported_format"]
    assert list(out["verdict"])[1] is None
    assert np.isnan(out["probability"][1])
    np.testing.assert_array_equal(out["score"], [expected["a.png"], np.nan])
    assert ensemble({"image": pixels(folder)[None], "path": np.array(["x"])})["score"].tolist() == [
        expected["a.png"]
    ]


def test_map_of_datasets(ensemble, folder, expected):
    scored = hub(folder, ("a.png", "below/c.png", "z.jpg")).map(
        ensemble, batched=True, batch_size=2
    )
    assert scored["score"][:] == [expected["a.png"], expected["below/c.png"], None]
    assert scored["status"][2] == "truncated_image"  # a file that datasets themselves would stop at
    assert scored.features["image"] == datasets.Image()
    assert scored.column_names == [
        "image",
        "label",
        "status",
        "finding",
        "verdict",
        "probability",
        "score",
        f"score_{DETECTOR}",
    ]
    renamed = hub(folder).rename_column("image", "scan").map(ensemble, batched=True)
    assert renamed["score"][:] == [expected["a.png"], expected["b.png"]]


def test_which_column_has_the_images(ensemble, folder, expected):
    two = {
        "left": [Image.open(folder / "a.png")],
        "right": [Image.open(folder / "b.png")],
        "id": [1],
    }
    right = ray_app.load_ensemble("tiny", image_column="right", precision="fp32")
    assert right(two)["score"] == [expected["b.png"]]
    for scoring, columns, words in (
        (ensemble, two, "left and right have images; the columns are: left, right, id"),
        (
            ensemble,
            {"label": [0], "text": ["a"]},
            "none of its columns has images; the columns are: label, text",
        ),
        (right, {"id": [1]}, "no column 'right'; its columns are: id"),
    ):
        with pytest.raises(ConfigError, match=words):
            scoring(columns)


def test_what_cannot_be_scored_is_a_row_with_what_one_finds_it_by(ensemble, folder):
    closed = Image.open(folder / "a.png")
    closed.close()
    shut = (folder / "a.png").open("rb")
    shut.close()
    data, name = (folder / "a.png").read_bytes(), str(folder / "a.png")
    given = {
        "no file": (folder / "none.png", "source_missing", str(folder / "none.png")),
        "none": (None, "empty_file", 1),
        "nan": (float("nan"), "empty_file", 2),
        "closed image": (closed, "corrupt_image", name),
        "closed file": (shut, "source_denied", name),
        "no bytes": (b"", "empty_file", 5),
        "text": (b"text", "unsupported_format", 6),
        "folder": (folder, "unsupported_format", str(folder)),
        "no pixels": (np.zeros((0, 4, 3), np.uint8), "empty_file", 8),
        "pattern": ("*.png", "source_missing", "*.png"),
        "bytes": (data, "ok", 10),
        "image": (Image.open(folder / "b.png"), "ok", str(folder / "b.png")),
        "named bytes": ({"bytes": data, "path": "named.png"}, "ok", "named.png"),
    }
    rows = list(ensemble.score([thing for thing, _, _ in given.values()]))
    assert [(one.status.value, one.source) for one in rows] == [
        (status, source) for _, status, source in given.values()
    ]
    for row in rows[:10]:
        assert (row.verdict, row.score, row.probability, row.scores) == (
            None,
            None,
            None,
            {DETECTOR: None},
        )
    assert (
        repr(rows[1])
        == "Result(source=1, status='empty_file', detail='no image was given here: it is missing (None)')"
    )
    assert "give it alone, as score(FOLDER)" in rows[7].detail
    paths = {
        "no-such-picture.jpg": Status.SOURCE_MISSING,
        "a\0b.jpg": Status.SOURCE_MISSING,
        "/dev/zero": Status.SOURCE_DENIED,
    }
    assert {path: ensemble.score([path])[0].status for path in paths} == paths
    assert ensemble.score(data).source is None


def test_closed_folder_and_foreign_host_are_results(ensemble, folder, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    with closed(tmp_path / "closed"):
        rows = {os.path.basename(row.source): row.status.value for row in ensemble.score(tmp_path)}
    assert rows == {"a.png": "ok", "closed": "source_denied"}
    [row] = ensemble.score([f"file://elsewhere{tmp_path}/a.png"])
    assert (row.status.value, "the host is 'elsewhere'" in row.detail) == ("source_missing", True)


WRONG = {
    "a number": (3, "cannot score an int. Accepted are: a path or URL"),
    "None": (None, "cannot score None: there is no image"),
    "a row of a dataset": (
        {"image": 1, "label": 0},
        "a dict with the keys image, label; if one of them has the image, give that one",
    ),
    "a table": (
        pd.DataFrame({"path": ["a.png"]}),
        "a DataFrame, a table with the columns path; give one of them",
    ),
    "a dataset": (
        hub,
        r"a Dataset, a table with the columns image, label; give one of them, as score\(table\[COLUMN\]\)",
    ),
    "lists in a list": ([["a.png"]], "a list, image 0 of those given"),
    "a text file": (io.StringIO("x"), r"a file opened as text; open it with open\(path, 'rb'\)"),
    "floats": (
        np.zeros((8, 8, 3)),
        r"a ndarray of 8×8×3, float64; pixels are uint8: \(x \* 255\).round\(\).astype\('uint8'\)",
    ),
    "channels first": (
        np.zeros((3, 8, 9), np.uint8),
        r"a ndarray of 3×8×9, uint8: the last dimension .* try x.transpose\(1, 2, 0\)",
    ),
    "no channels": (
        torch.zeros(7, 8, 9, dtype=torch.uint8),
        "neither the first nor the last dimension is 1, 3 or 4 channels",
    ),
}


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_type_is_told_what_is_accepted(ensemble, folder, given):
    thing, message = WRONG[given]
    with pytest.raises(TypeError, match=message) as caught:
        ensemble.score(thing(folder) if thing is hub else thing)
    assert "Accepted are: a path or URL (str or pathlib.Path), a folder or a glob" in str(
        caught.value
    )
    assert isinstance(caught.value, ConfigError)


def test_results_come_as_they_are_read(ensemble, folder):
    """The first is there after one batch, and no more is read than is wanted."""
    taken = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield folder / ("a.png", "b.png")[number % 2]

    results = ensemble.score(endless(), batch_size=2)
    assert taken == []
    next(results)
    assert len(taken) == 2
    for _ in range(15):
        next(results)
    assert len(taken) <= 2 + 4 + 8 + 16


def test_frames(ensemble, folder):
    frame = ensemble.score([folder / "a.png", b"text"]).to_frame()
    assert frame["source"].tolist() == [str(folder / "a.png"), 1]
    assert frame["status"].tolist() == ["ok", "unsupported_format"]
    assert (
        frame[f"score_{DETECTOR}"][0] == frame["score"][0] == ensemble.score(folder / "a.png").score
    )
    assert (frame["width"][0], frame["verdict"][0]) == (
        160,
        ensemble.score(folder / "a.png").verdict,
    )
    assert list(ensemble.score([]).to_frame())[:4] == ["source", "status", "detail", "finding"]


def test_batch_sizes_devices_and_progress(ensemble, folder, expected, capsys):
    names = list(expected)
    found = list(ensemble.score([folder / name for name in names], batch_size=1, progress=True))
    assert [one.score for one in found] == pytest.approx(list(expected.values()), abs=1e-5)
    printed = capsys.readouterr()
    assert "tiny: 100%" in printed.err
    assert "3/3" in printed.err
    assert printed.out == ""
    assert ray_app.load_ensemble("tiny", batch_size=2).spec.slots == 2
    with pytest.raises(ConfigError, match="batch_size is 0, and must be a whole number from 1"):
        ensemble.score(folder / "a.png", batch_size=0)
    assert ensemble.spec.device == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(
        ConfigError, match="device 'gpu' is none that PyTorch knows: auto, cpu, cuda or cuda:0"
    ):
        ray_app.load_ensemble("tiny", device="gpu")


def test_operating_point_decides_and_survives_a_copy(folder, tmp_path):
    card = write_points(tmp_path / "points.yaml")
    ensemble = ray_app.load_ensemble(card, fpr=0.1)
    for chosen in (ensemble, pickle.loads(pickle.dumps(ensemble))):
        result = chosen.score(folder / "a.png")
        assert (result.verdict, result.fpr, result.to_dict()["fpr"]) == ("fake", 0.1, 0.1)
    with pytest.raises(ConfigError, match="no operating point"):
        ray_app.load_ensemble("tiny", fpr=0.1)


def test_threads_and_copies(ensemble, folder, expected):
    paths = [folder / name for name in expected] * 4
    with ThreadPoolExecutor(4) as pool:
        assert [one.score for one in pool.map(ensemble.score, paths)] == list(expected.values()) * 4
    for other in (pickle.loads(pickle.dumps(ensemble)), copy.deepcopy(ensemble)):
        assert other.spec == ensemble.spec
        assert other.score(folder / "a.png").score == expected["a.png"]


def test_one_detector_is_an_ensemble_of_its_own(ensemble, folder, expected):
    alone = ray_app.load_detector(DETECTOR, precision="fp32")
    assert alone.score(folder / "a.png").score == expected["a.png"]
    assert alone.spec.ensemble.thresholds.fake_above == 0.0
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        ray_app.load_ensemble("defualt")


def test_what_is_too_small_or_shows_nothing_abstains_with_its_score(ensemble):
    small = ensemble.score(photo(40, 40))
    assert (small.status, small.verdict, small.verdict_reason) == (
        Status.OK,
        "abstain",
        Reason.OUT_OF_RANGE,
    )
    assert "valid range" in small.verdict_detail
    assert small.score is not None
    grey = flat(128, 300, 200)
    for result in ensemble.score([encoded(grey, "PNG"), grey, encoded(grey, "JPEG")]):
        assert (result.verdict, result.verdict_reason, result.verdict_detail) == (
            "abstain",
            Reason.NO_CONTENT,
            None,
        )
        assert "no_content" in result.facts.flags
        assert result.score > 4


def test_a_bug_of_ours_is_a_result_and_a_log_line(ensemble, folder, monkeypatch, caplog):
    monkeypatch.setattr("ray_app.inference.decoder.peek_image", lambda *_: 1 / 0)
    [result] = ensemble.score([(folder / "a.png").read_bytes()])
    assert (result.status, result.verdict) == (Status.DECODER_CRASHED, None)
    assert "image 0: this is a bug in Touchstone" in caplog.text
    assert "ZeroDivisionError" in caplog.text
