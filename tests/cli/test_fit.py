"""`detectors fit` from a labels file to a card that scores."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from benchmarks.seeded import write_card
from ray_app.detectors import licences, load_card, load_detector
from ray_app.errors import DetectorError
from tests.make.networks.small_clip import small_card
from tests.make.networks.small_frozen import seeded_frozen

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small detector, and a folder of dark (real) and bright (fake) images of several sizes."""
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "home.yaml"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    _, card = small_card(tmp_path / "base")
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for index in range(24):
        side = 28 + index % 3 * 9
        pixels = random.integers(0, 60 + 150 * (index % 2), (side, side + 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        rows.append({"uri": f"images/{index}.png", "label": ("real", "fake")[index % 2]})
    return tmp_path, card, rows


def written(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_fit_writes_a_detector_that_separates(archive, touchstone):
    folder, base, rows = archive
    line = f"detectors fit {base} --labels {written(folder / 'mine.csv', rows)} --out head"
    told = touchstone(f"{line} --classifier svm").out
    assert "12 real and 12 fake" in told
    assert "cross-validated ROC AUC 1.000 (mean of 5 folds, 1.000 to 1.000)" in told
    assert "--detector head/card.yaml" in told
    out = folder / "head"
    assert sorted(path.name for path in out.iterdir()) == ["card.yaml", "features", "weights.pth"]
    card = load_card(out / "card.yaml")
    assert card.name == "small-clip-svm"
    assert card.training_data.name == "mine.csv"
    detector = load_detector(card)
    images = [Image.open(folder / row["uri"]).convert("RGB") for row in rows]
    scores = detector.score(np.stack([detector.prepare(image) for image in images]))
    assert np.array_equal(scores > 0, [row["label"] == "fake" for row in rows])


@pytest.mark.parametrize(
    ("columns", "generators", "sources", "complete"),
    [
        ({}, (), (), False),
        ({"real": "real:phone", "fake": "sdxl"}, ("sdxl",), ("phone",), True),
    ],
    ids=["unnamed", "named"],
)
def test_card_of_a_head_names_generators_and_sources(
    archive, touchstone, columns, generators, sources, complete
):
    folder, base, rows = archive
    for row in rows:
        row["group"] = row["uri"]
        if columns:
            row["generator"] = columns[row["label"]]
    touchstone(f"detectors fit {base} --labels {written(folder / 'mine.csv', rows)} --out head")
    data = load_card(folder / "head" / "card.yaml").training_data
    assert (data.generators, data.sources, data.complete) == (generators, sources, complete)


def test_second_fit_computes_features_of_new_images_only(archive, touchstone):
    folder, base, rows = archive

    def kept():
        files = (folder / "head" / "features").rglob("*.npz")
        return {path: path.stat().st_mtime_ns for path in files}

    line = f"detectors fit {base} --labels {written(folder / 'mine.csv', rows)} --out head"
    touchstone(line)
    before = kept()
    touchstone(f"{line} --classifier logistic --name second")
    assert kept() == before
    assert load_card(folder / "head" / "card.yaml").name == "second"

    pixels = np.random.default_rng(1).integers(0, 99, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "new.png")
    more = written(folder / "more.csv", [*rows, {"uri": "images/new.png", "label": "real"}])
    touchstone(f"detectors fit {base} --labels {more} --out other --features head/features")
    (new,) = kept().keys() - before.keys()
    with np.load(new) as block:
        assert len(block["features"]) == 1
    assert not (folder / "other" / "features").exists()


@pytest.mark.slow
def test_fit_imports_neither_ray_nor_transformers(archive):
    folder, base, rows = archive
    words = [str(base), "--labels", str(written(folder / "mine.csv", rows)), "--out", "head"]
    script = f"""
import sys
from ray_app.cli.main import main
assert main(["detectors", "fit", *{words!r}]) == 0
print(*{{"ray", "transformers"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_fit_counts_and_names_unreadable_images(archive, touchstone):
    folder, base, rows = archive
    (folder / "images" / "0.png").write_bytes(b"")
    (folder / "images" / "1.png").write_bytes(b"not an image at all")
    rows += [{"uri": "images/absent.png", "label": "fake"}, dict(rows[5])]
    labels = written(folder / "mine.csv", rows)
    ended = touchstone(f"detectors fit {base} --labels {labels} --out head")
    assert ended.code == 0
    assert "3 of 26 images could not be read" in ended.err
    assert "1 of 26 rows repeat an image" in ended.err
    statuses = {"0": "empty_file", "1": "unsupported_format", "absent": "source_missing"}
    for name, status in statuses.items():
        assert any(f"{name}.png" in line and status in line for line in ended.err.splitlines())
    assert "11 real and 11 fake" in ended.out


def test_fit_that_is_refused_leaves_no_head(archive, touchstone):
    folder, base, rows = archive
    twice = written(folder / "twice.csv", [*rows, rows[0] | {"label": "fake"}])
    labels = written(folder / "mine.csv", rows)
    for row in rows[1::2]:
        (folder / row["uri"]).write_bytes(b"")
    for line, said in (
        (f"--labels {labels} --out head", "0 fake"),
        (f"--labels {twice} --out head", "labelled both real and fake"),
        (f"--labels {labels} --out head --name 'My Head!'", "--name"),
        ("", "name the labelled images either as INDEX or with --labels"),
        (f"--labels {labels} --folds scene", "no such column"),
        (f"--labels {labels} --install", "a published head"),
    ):
        ended = touchstone(f"detectors fit {base} {line}")
        assert ended.code == 2, line
        assert said in ended.err
        assert not list(folder.rglob("head/card.yaml"))


# Heads on foundation models, from an index.


@pytest.fixture
def photos(archive):
    """A folder with a labelled index.parquet of six families."""
    folder, _, rows = archive
    families = [
        row | {"uri": f"../{row['uri']}", "source": f"s{index // 2}", "family": f"f{index // 4}"}
        for index, row in enumerate(rows)
    ]
    (folder / "photos").mkdir()
    table = pa.Table.from_pylist(families)
    pyarrow.parquet.write_table(table, folder / "photos" / "index.parquet")
    return folder


def unfitted(folder, name, **changes):
    """Write the shipped card with a small seeded backbone; its head is missing."""
    card = seeded_frozen(name, folder / "seeded")
    changed = card.model_copy(update={"weights": load_card(name).weights} | changes)
    return write_card(changed, folder / f"{name}.yaml")


def test_fetch_and_fit_of_a_shipped_head_give_scores(photos, touchstone):
    card = unfitted(photos, "vfm-dinov3-convnext")
    fit = "touchstone detectors fit vfm-dinov3-convnext"
    ended = touchstone("detectors fetch", card)
    assert ended.code == 0
    assert f"its head is not published; fit it: {fit}" in ended.err
    with pytest.raises(DetectorError, match="no weights of its head") as missing:
        load_detector(card)
    assert f"{fit} LABELS --install" in missing.value.hint
    told = touchstone(f"detectors fit {card} photos --install").out
    assert "12 real and 12 fake" in told
    assert "saw no image of its group (6 groups)" in told  # Families, not 12 sources.
    fitted = load_card(photos / "heads/vfm-dinov3-convnext/card.yaml")
    assert fitted.name == "vfm-dinov3-convnext-logistic"
    assert fitted.training_data.name == "index.parquet"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    assert np.array_equal(load_detector(card).score(pixels), load_detector(fitted).score(pixels))
    assert touchstone("detectors verify", card).code == 0


def test_verify_without_a_fitted_head_checks_the_backbone(photos, touchstone):
    ended = touchstone("detectors verify", unfitted(photos, "vfm-pe-l14"))
    assert ended.code == 0
    assert "present     skipped  no head is fitted yet" in ended.out
    assert "keys        ok       perception-encoder-l14: all " in ended.out


def test_terms_are_accepted_once_for_backbone_and_head(photos, touchstone):
    card = unfitted(photos, "vfm-metaclip2-h14", terms="non-commercial")
    assert touchstone(f"detectors fit {card} photos").code == 4
    assert not (photos / "heads").exists()
    assert touchstone(f"detectors fit {card} photos --accept-licence {card}").code == 0
    licences.require_accepted(load_card(photos / "heads/vfm-metaclip2-h14/card.yaml"))
