"""Python calls: each gives the score of the file itself, or names what is accepted."""

import copy
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from ray_app.errors import ConfigError, DetectorError, Reason, Status
from tests.make.cards import write_points
from tests.make.forking import run_in_fork
from tests.make.images import encoded, flat, photo
from tests.make.servers.faulty import FaultyServer
from tests.make.unprivileged import closed

DETECTOR = "touchstone-tiny"
NAMES = ("a.png", "b.png", "below/c.png")
TWO = NAMES[:2]
COLUMNS = ["status", "finding", "verdict", "probability", "score", f"score_{DETECTOR}"]


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_ensemble("tiny", precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three PNGs, one of them in a subfolder; a text; and a file that is cut short."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(encoded(photo(160, 120, seed=seed), "PNG"))
    (folder / "notes.txt").write_text("no picture")
    (folder / "z.jpg").write_bytes(encoded(photo(160, 120), "JPEG")[:600])
    return folder


@pytest.fixture(scope="module")
def expected(ensemble, folder):
    """The score of each image by its name, as `score(path)` returns it."""
    return {name: ensemble.score(folder / name).score for name in NAMES}


def pixels(folder, name="a.png"):
    return np.array(Image.open(folder / name))


def saved(folder):
    """A buffer that was written to its end."""
    buffer = io.BytesIO()
    Image.open(folder / "a.png").save(buffer, "PNG")
    return buffer


ONE = {
    "path as str": lambda folder: str(folder / "a.png"),
    "Path": lambda folder: folder / "a.png",
    "file URL": lambda folder: f"file://{folder}/a.png",
    "bytes": lambda folder: (folder / "a.png").read_bytes(),
    "memoryview": lambda folder: memoryview((folder / "a.png").read_bytes()),
    "open file": lambda folder: (folder / "a.png").open("rb"),
    "buffer": saved,
    "PIL, not loaded yet": lambda folder: Image.open(folder / "a.png"),
    "array H×W×3": pixels,
    "array H×W×4": lambda folder: np.dstack([pixels(folder), np.full((120, 160), 255, np.uint8)]),
    "array of the file's bytes": lambda folder: np.fromfile(folder / "a.png", np.uint8),
    "tensor 3×H×W": lambda folder: torch.from_numpy(pixels(folder)).permute(2, 0, 1),
    "dict with bytes": lambda folder: {"bytes": (folder / "a.png").read_bytes(), "path": None},
    "dict with a path": lambda folder: {"bytes": None, "path": str(folder / "a.png")},
}


@pytest.mark.parametrize("given", ONE)
def test_one_image_gives_one_result(ensemble, folder, expected, given):
    result = ensemble.score(ONE[given](folder))
    assert isinstance(result, ray_app.Result)
    assert (result.status, result.score, result.calibrated) == (Status.OK, expected["a.png"], False)
    assert result.probability == pytest.approx(1 / (1 + np.exp(-result.score)))
    assert ensemble(ONE[given](folder)).score == expected["a.png"]


def test_grey_pixels_are_scored_as_grey_colours(ensemble):
    grey = np.asarray(photo(160, 120).convert("L"))
    given = (np.dstack([grey] * 3), grey, grey[..., None], torch.from_numpy(grey.copy()))
    assert len({ensemble.score(one).score for one in given}) == 1


def hub(folder, names=TWO):
    data = {"image": [str(folder / name) for name in names], "label": [0] * len(names)}
    return datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())


MANY = {
    "list of paths": lambda folder: [str(folder / "a.png"), folder / "b.png"],
    "list of anything": lambda folder: [
        Image.open(folder / "a.png"),
        {"bytes": (folder / "b.png").read_bytes()},
    ],
    "generator": lambda folder: (folder / name for name in TWO),
    "glob": lambda folder: f"{folder}/*.png",
    "array N×H×W×3": lambda folder: np.stack([pixels(folder, name) for name in TWO]),
    "tensor N×3×H×W": lambda folder: torch.stack(
        [torch.from_numpy(pixels(folder, name)).permute(2, 0, 1) for name in TWO]
    ),
    "pandas column": lambda folder: pd.Series([str(folder / name) for name in TWO]),
    "pyarrow column": lambda folder: pa.chunked_array(
        [[(folder / name).read_bytes() for name in TWO]]
    ),
    "datasets column": lambda folder: hub(folder)["image"],
    "datasets column, not decoded": lambda folder: hub(folder).cast_column(
        "image", datasets.Image(decode=False)
    )["image"],
    "datasets column, streamed": lambda folder: hub(folder).to_iterable_dataset()["image"],
}


@pytest.mark.parametrize("given", MANY)
def test_many_images_give_results_in_order(ensemble, folder, expected, given):
    results = ensemble.score(MANY[given](folder))
    assert iter(results) is results
    assert [result.score for result in results] == [expected[name] for name in TWO]


def test_folder_gives_a_result_per_file(ensemble, folder, expected):
    found = {
        Path(result.source).relative_to(folder).as_posix(): result
        for result in ensemble.score(folder)
    }
    assert list(found) == [*NAMES, "notes.txt", "z.jpg"]
    assert {name: found[name].score for name in NAMES} == expected
    assert found["notes.txt"].status is Status.UNSUPPORTED_FORMAT
    assert found["z.jpg"].status is Status.TRUNCATED_IMAGE


def test_urls_are_scored_and_lose_their_tokens(ensemble, folder, expected):
    with FaultyServer() as web:
        for name in TWO:
            data = (folder / name).read_bytes()
            web.objects |= {f"/{name}": data, f"/{name}?token=secret": data}
        assert ensemble.score(f"{web.url}/a.png").score == expected["a.png"]
        urls = [f"{web.url}/{name}" for name in ("b.png?token=secret", "none.png", "a.png")]
        found = list(ensemble.score(urls))
    assert [one.score for one in found] == [expected["b.png"], None, expected["a.png"]]
    assert found[1].status is Status.SOURCE_MISSING
    assert found[0].source == f"{web.url}/b.png"


def test_other_storage_gives_a_file_or_a_prefix(ensemble, folder, expected):
    store = fsspec.filesystem("memory")
    for name in TWO:
        store.pipe(f"/calls/{name}", (folder / name).read_bytes())
    assert ensemble.score("memory://calls/a.png").score == expected["a.png"]
    for many in ("memory://calls", "memory://calls/", "memory://calls/*.png"):
        found = {result.source.rpartition("/")[2]: result.score for result in ensemble.score(many)}
        assert found == {name: expected[name] for name in TWO}
    assert ensemble.score("memory://calls/none.png").status is Status.SOURCE_MISSING
    for nothing in ("memory://none/*.png", f"{folder}/*.webp"):
        with pytest.raises(ConfigError, match=r"/\*\.\w+: no file matches this pattern"):
            ensemble.score(nothing)


def test_batch_of_ray_data_gets_columns(ensemble, folder, expected):
    """As `map_batches` passes it: arrays by column; `read_images` calls its column `image`."""
    files = np.array([(folder / "a.png").read_bytes(), b"text"], object)
    out = ensemble({"bytes": files, "id": np.array([1, 2])})
    assert list(out) == ["bytes", "id", *COLUMNS]
    assert list(out["status"]) == ["ok", "unsupported_format"]
    assert list(out["verdict"])[1] is None
    assert np.isnan(out["probability"][1])
    np.testing.assert_array_equal(out["score"], [expected["a.png"], np.nan])
    batch = {"image": pixels(folder)[None], "path": np.array(["x"])}
    assert ensemble(batch)["score"].tolist() == [expected["a.png"]]


def test_map_of_datasets_gets_columns(ensemble, folder, expected):
    data = hub(folder, ("a.png", "below/c.png", "z.jpg"))
    scored = data.map(ensemble, batched=True, batch_size=2)
    assert scored["score"][:] == [expected["a.png"], expected["below/c.png"], None]
    assert scored["status"][2] == "truncated_image"  # `datasets` itself would stop at this file.
    assert scored.features["image"] == datasets.Image()
    assert scored.column_names == ["image", "label", *COLUMNS]
    renamed = hub(folder).rename_column("image", "scan").map(ensemble, batched=True)
    assert renamed["score"][:] == [expected[name] for name in TWO]


def test_image_column_is_found_or_must_be_named(ensemble, folder, expected):
    images = {name: [Image.open(folder / f"{name}.png")] for name in ("a", "b")}
    two = {"left": images["a"], "right": images["b"], "id": [1]}
    right = ray_app.load_ensemble("tiny", image_column="right", precision="fp32")
    assert right(two)["score"] == [expected["b.png"]]
    for scoring, columns, said in (
        (ensemble, two, "left and right have images; the columns are: left, right, id"),
        (ensemble, {"label": [0], "text": ["a"]}, "no column has images"),
        (right, {"id": [1]}, "no column 'right'; its columns are: id"),
    ):
        with pytest.raises(ConfigError, match=said):
            scoring(columns)


def test_unscored_images_have_a_status_and_a_source(ensemble, folder):
    image = Image.open(folder / "a.png")
    image.close()
    file = (folder / "a.png").open("rb")
    file.close()
    data, name = (folder / "a.png").read_bytes(), str(folder / "a.png")
    given = [
        (folder / "none.png", "source_missing", str(folder / "none.png")),
        (None, "empty_file", 1),
        (float("nan"), "empty_file", 2),
        (image, "corrupt_image", name),
        (file, "source_denied", name),
        (b"", "empty_file", 5),
        (b"text", "unsupported_format", 6),
        (folder, "unsupported_format", str(folder)),
        (np.zeros((0, 4, 3), np.uint8), "empty_file", 8),
        ("*.png", "source_missing", "*.png"),
        ("no-such-picture.jpg", "source_missing", "no-such-picture.jpg"),
        (f"file://elsewhere{name}", "source_missing", f"file://elsewhere{name}"),
        ("/dev/zero", "source_denied", "/dev/zero"),
        (data, "ok", 13),
        (Image.open(folder / "b.png"), "ok", str(folder / "b.png")),
        ({"bytes": data, "path": "named.png"}, "ok", "named.png"),
    ]
    rows = list(ensemble.score([thing for thing, _, _ in given]))
    found = [(row.status.value, row.source) for row in rows]
    assert found == [(status, source) for _, status, source in given]
    for row in rows[:13]:
        assert row.verdict is row.score is row.probability is None
        assert row.scores == {DETECTOR: None}
    assert "status='empty_file'" in repr(rows[1])
    assert "pass it alone, as score(FOLDER)" in rows[7].detail
    assert "the host is 'elsewhere'" in rows[11].detail
    assert ensemble.score(["a\0b.jpg"])[0].status is Status.SOURCE_MISSING
    assert ensemble.score(data).source is None


def test_closed_folder_is_a_result(ensemble, folder, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    with closed(tmp_path / "closed"):
        rows = {os.path.basename(row.source): row.status.value for row in ensemble.score(tmp_path)}
    assert rows == {"a.png": "ok", "closed": "source_denied"}


WRONG = {
    "a number": (3, "cannot score an int. Accepted inputs: a path or URL"),
    "None": (None, "cannot score None: there is no image"),
    "a row of a dataset": (
        {"image": 1, "label": 0},
        "a dict with the keys image, label; if one of them has the image, pass that value",
    ),
    "a table": (
        pd.DataFrame({"path": ["a.png"]}),
        "a DataFrame, a table with the columns path; pass one of them",
    ),
    "a dataset": (
        hub,
        r"a Dataset, a table with the columns image, label; pass one of them, as score\(table\[COLUMN\]\)",
    ),
    "lists in a list": ([["a.png"]], "a list, at index 0 of the images"),
    "a text file": (io.StringIO("x"), r"a file opened as text; open it with open\(path, 'rb'\)"),
    "floats": (
        np.zeros((8, 8, 3)),
        r"a ndarray of 8×8×3, float64; pixels must be uint8: \(x \* 255\).round\(\).astype\('uint8'\)",
    ),
    "channels first": (
        np.zeros((3, 8, 9), np.uint8),
        r"a ndarray of 3×8×9, uint8: the last dimension .* try x.transpose\(1, 2, 0\)",
    ),
    "no channels": (
        torch.zeros(7, 8, 9, dtype=torch.uint8),
        "neither the first nor the last dimension has 1, 3 or 4 channels",
    ),
}


@pytest.mark.parametrize("given", WRONG)
def test_wrong_type_names_what_is_accepted(ensemble, folder, given):
    thing, message = WRONG[given]
    with pytest.raises(TypeError, match=message) as caught:
        ensemble.score(thing(folder) if thing is hub else thing)
    assert "Accepted inputs: a path or URL (str or pathlib.Path)" in str(caught.value)
    assert isinstance(caught.value, ConfigError)


def test_saved_dataset_is_refused(ensemble, folder, tmp_path):
    hub(folder).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"saved by Dataset\.save_to_disk"):
        ensemble.score(tmp_path / "saved")


def test_results_arrive_before_all_images_are_read(ensemble, folder):
    taken = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield folder / TWO[number % 2]

    results = ensemble.score(endless(), batch_size=2)
    assert taken == []
    next(results)
    assert len(taken) == 2
    for _ in range(15):
        next(results)
    assert len(taken) <= 2 + 4 + 8 + 16


def test_results_become_a_data_frame(ensemble, folder):
    frame = ensemble.score([folder / "a.png", b"text"]).to_frame()
    result = ensemble.score(folder / "a.png")
    assert frame["source"].tolist() == [str(folder / "a.png"), 1]
    assert frame["status"].tolist() == ["ok", "unsupported_format"]
    assert frame[f"score_{DETECTOR}"][0] == frame["score"][0] == result.score
    assert (frame["width"][0], frame["verdict"][0]) == (160, result.verdict)
    assert list(ensemble.score([]).to_frame())[:4] == ["source", "status", "detail", "finding"]


def test_batch_size_and_progress_change_no_score(ensemble, folder, expected, capsys):
    paths = [folder / name for name in NAMES]
    found = [result.score for result in ensemble.score(paths, batch_size=1, progress=True)]
    assert found == pytest.approx(list(expected.values()), abs=1e-5)
    printed = capsys.readouterr()
    assert "tiny: 100%" in printed.err
    assert "3/3" in printed.err
    assert printed.out == ""
    assert ray_app.load_ensemble("tiny", batch_size=2).spec.slots == 2
    assert ensemble.spec.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_load_and_score_reject_invalid_options(ensemble, folder):
    with pytest.raises(ConfigError, match="batch_size must be an integer of at least 1, got 0"):
        ensemble.score(folder / "a.png", batch_size=0)
    for name, options, said in (
        ("tiny", {"device": "gpu"}, "device must be auto, cpu, cuda, .* got 'gpu'"),
        ("tiny", {"fpr": 0.1}, "no operating point"),
        ("defualt", {}, "did you mean 'default'"),
    ):
        with pytest.raises(ConfigError, match=said):
            ray_app.load_ensemble(name, **options)


def test_operating_point_decides_and_survives_a_copy(folder, tmp_path):
    card = write_points(tmp_path / "points.yaml")
    ensemble = ray_app.load_ensemble(card, fpr=0.1)
    for chosen in (ensemble, pickle.loads(pickle.dumps(ensemble))):
        result = chosen.score(folder / "a.png")
        assert (result.verdict, result.fpr, result.to_dict()["fpr"]) == ("fake", 0.1, 0.1)


def test_threads_and_copies_give_the_same_scores(ensemble, folder, expected):
    paths = [folder / name for name in expected] * 4
    with ThreadPoolExecutor(4) as pool:
        assert [one.score for one in pool.map(ensemble.score, paths)] == list(expected.values()) * 4
    for other in (pickle.loads(pickle.dumps(ensemble)), copy.deepcopy(ensemble)):
        assert other.spec == ensemble.spec
        assert other.score(folder / "a.png").score == expected["a.png"]


@pytest.fixture
def two_threads():
    """Give torch two threads, which a forked process does not have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_forked_process_scores_after_its_parent(ensemble, folder, expected):
    def score_in_child():
        fresh = pickle.loads(pickle.dumps(ensemble))
        return [one.score(folder / "a.png").score for one in (ensemble, fresh, ensemble.twin())]

    own = ensemble.score(folder / "a.png").score
    in_fork = run_in_fork(score_in_child)
    assert [own, *in_fork] == pytest.approx([expected["a.png"]] * 4, abs=1e-4)
    assert ensemble.score(folder / "a.png").score == own


def test_forked_process_reads_urls_after_its_parent(ensemble, folder, expected):
    with FaultyServer() as web:
        web.objects |= {f"/{name}": (folder / name).read_bytes() for name in TWO}
        assert ensemble.score(f"{web.url}/a.png").score == expected["a.png"]
        in_child = run_in_fork(lambda: ensemble.score(f"{web.url}/b.png").score)
        assert ensemble.score(f"{web.url}/a.png").score == expected["a.png"]
    assert in_child == pytest.approx(expected["b.png"], abs=1e-4)


def test_forked_process_rejects_the_gpu_of_its_parent(ensemble, folder):
    on_gpu = ensemble.twin()
    on_gpu.spec = replace(on_gpu.spec, device="cuda:0")

    def error_in_child():
        with pytest.raises(DetectorError, match="forked process cannot use cuda:0") as caught:
            on_gpu.score(folder / "a.png")
        return caught.value.hint

    assert "start processes with spawn" in run_in_fork(error_in_child)


def test_detector_alone_is_an_ensemble(ensemble, folder, expected):
    alone = ray_app.load_detector(DETECTOR, precision="fp32")
    assert alone.score(folder / "a.png").score == expected["a.png"]
    assert alone.spec.ensemble.thresholds.fake_above == 0.0


def test_image_that_is_too_small_abstains_with_its_score(ensemble):
    small = ensemble.score(photo(40, 40))
    assert (small.status, small.verdict) == (Status.OK, "abstain")
    assert small.verdict_reason == Reason.OUT_OF_RANGE
    assert "valid range" in small.verdict_detail
    assert small.score is not None


def test_image_without_content_abstains_with_its_score(ensemble):
    grey = flat(128, 300, 200)
    for result in ensemble.score([encoded(grey, "PNG"), grey, encoded(grey, "JPEG")]):
        assert (result.verdict, result.verdict_reason) == ("abstain", Reason.NO_CONTENT)
        assert result.verdict_detail is None
        assert "no_content" in result.facts.flags
        assert result.score > 4


def test_bug_is_a_result_and_a_log_line(ensemble, folder, monkeypatch, caplog):
    monkeypatch.setattr("ray_app.inference.decoder.peek_image", lambda *_: 1 / 0)
    [result] = ensemble.score([(folder / "a.png").read_bytes()])
    assert (result.status, result.verdict) == (Status.DECODER_CRASHED, None)
    assert "image 0: this is a bug in Touchstone" in caplog.text
    assert "ZeroDivisionError" in caplog.text
