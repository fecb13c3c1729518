import csv
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from ray_app.config import validate
from ray_app.datasets.simulation import archive
from ray_app.datasets.simulation.archive import LABELS, SPLITS, SimulatedSet, build_labelled_set
from ray_app.errors import ConfigError

ARGUMENTS = {
    "pairs": {"train": 11, "test": 2},
    "histories": {"train": 2},
    "picture_px": {"train": 96, "test": 96},
    "file_px": {"train": 72, "test": 80},
    "seed": 5,
}
PLAN = SimulatedSet(**ARGUMENTS)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Built in this process; `test_an_unfinished_set_…` has processes of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
        return build_labelled_set(tmp_path_factory.mktemp("simulated") / "set", PLAN)


@pytest.fixture(scope="module")
def rows(built):
    with (built / LABELS).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_row_is_a_file_of_the_asked_size_and_names_what_only_its_split_may_draw_from(built, rows):
    assert len(rows) == 2 * (11 * 2 + 2)
    for row in rows:
        image = Image.open(built / row["path"])
        side = ARGUMENTS["file_px"][row["split"]]
        assert (image.size, image.mode) == ((side, side), "RGB")
        split, real = SPLITS[row["split"]], row["label"] == "real"
        assert row["prompt"] in split.scenes
        assert row["generator"].removeprefix("real:") in (split.cameras if real else split.decoders)
    on_disk = {str(path.relative_to(built)) for split in ("train", "test") for path in (built / split).iterdir()}
    assert on_disk == {row["path"] for row in rows}


def _facts(path):
    """All that a file tells besides its pixels: container, size, mode, and for JPEG the tables that quality and subsampling set."""
    image = Image.open(path)
    return image.format, image.size, image.mode, getattr(image, "quantization", None), getattr(image, "layer", None), sorted(image.info)


def test_a_group_is_one_pair_and_metadata_of_twins_of_one_history_tell_nothing(built, rows):
    assert [row["group"] for row in rows[:8]] == ["train-000000"] * 4 + ["train-000001"] * 4
    for real, fake in zip(rows[::2], rows[1::2], strict=True):
        assert (real["label"], fake["label"]) == ("real", "fake")
        assert (real["group"], real["prompt"]) == (fake["group"], fake["prompt"])
        assert _facts(built / real["path"]) == _facts(built / fake["path"])
        assert (built / real["path"]).read_bytes() != (built / fake["path"]).read_bytes()


def _contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_unfinished_set_is_made_again_to_the_same_bytes_by_any_number_of_processes(built, tmp_path):
    told = []
    begun = tmp_path / "set"
    (begun / "train").mkdir(parents=True)
    (begun / "arguments.json").write_bytes((built / "arguments.json").read_bytes())
    (begun / "train/train-000010-0-real.png").write_bytes(b"cut short")
    name = next(path.name for path in (built / "train").glob("train-000010-0-real.*"))
    (begun / "train/train-000010-0-real.png").rename(begun / "train" / name)
    build_labelled_set(begun, PLAN.model_copy(update={"processes": 1}), told.append)
    assert _contents(begun) == _contents(built)
    assert sum(told) == 2 * (11 * 2 + 2)


def test_a_finished_set_is_left_as_it_is_and_one_of_other_arguments_is_not_written_over(built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert build_labelled_set(built, PLAN) == built
    with pytest.raises(ConfigError, match=r"other arguments: seed 5, not 6"):
        build_labelled_set(built, PLAN.model_copy(update={"seed": 6}))
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pairs": {"training": 3}}, "training"),
        ({"pairs": {"train": 0}}, "pairs.train"),
        ({"picture_px": {"train": 64}}, "files of 72 px cannot be cut from pictures of 64 px"),
    ],
)
def test_wrong_arguments_are_named(wrong, said):
    with pytest.raises(ConfigError, match=said):
        validate(ARGUMENTS | wrong, SimulatedSet, where="simulated::")


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_word_of_its_processes(tmp_path):
    """A terminal sends the signal to all of them."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom ray_app.datasets.simulation.archive import SimulatedSet, build_labelled_set\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        plan = SimulatedSet(pairs={'train': 900}, picture_px={'train': 96}, file_px={'train': 64}, processes=2)\n"
        "        build_labelled_set(Path(sys.argv[1]), plan, lambda files: print('some', flush=True))\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(code)
    command = [sys.executable, str(program), str(tmp_path / "set")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "some\n"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, "")
