"""`detectors fit` from a labels file to a card that scores."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from benchmarks.seeded import write_card
from ray_app.cli.main import main
from ray_app.cli.train import fit
from ray_app.detectors import licences, load_card, load_detector
from ray_app.errors import ConfigError, DetectorError
from tests.detectors.conftest import one_thread  # noqa: F401  (an autouse fixture of that folder)
from tests.detectors.small_clip import small_card
from tests.detectors.small_frozen import seeded_frozen

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(tmp_path):
    """A small detector, and a folder of dark (real) and bright (fake) images of several sizes."""
    base = tmp_path / "base"
    base.mkdir()
    _, card = small_card(base)
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for index in range(24):
        side = 28 + index % 3 * 9
        pixels = random.integers(0, 60 + 150 * (index % 2), (side, side + 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append({"uri": f"images/{index}.png", "label": ("real", "fake")[index % 2]})
    return tmp_path, card, rows


def written(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(card, index, out, *more, labels=True):
    return fit.main(
        [str(card), *(["--labels"] if labels else []), str(index), "--out", str(out), *more],
        standalone_mode=False,
    )


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_from_labels_to_a_detector(archive, capsys, classifier):
    folder, base, rows = archive
    out = folder / "head"
    assert run(base, written(folder / "mine.csv", rows), out, "--classifier", classifier) == 0
    told = capsys.readouterr().out
    assert "12 real and 12 fake" in told
    assert (
        "cross-validated ROC AUC 1.000 (mean of 5 folds, 1.000 to 1.000); each image was judged by a head that did not see it"
        in told
    )
    assert f"--detector {out / 'card.yaml'}" in told
    assert sorted(path.name for path in out.iterdir()) == ["card.yaml", "features", "weights.pth"]

    card = load_card(out / "card.yaml")
    assert card.name == f"small-clip-{classifier}"
    assert card.training_data.name == "mine.csv"
    detector = load_detector(card)
    prepared = np.stack(
        [detector.prepare(Image.open(folder / row["uri"]).convert("RGB")) for row in rows]
    )
    assert np.array_equal(detector.score(prepared) > 0, [row["label"] == "fake" for row in rows])


@pytest.mark.parametrize(
    ("real", "fake", "seen"),
    [
        ({}, {}, ((), (), False)),
        ({"generator": "real:phone"}, {"generator": "sdxl"}, (("sdxl",), ("phone",), True)),
    ],
)
def test_a_head_says_which_generators_and_sources_it_saw(archive, real, fake, seen):
    folder, base, rows = archive
    told = [
        row | {"group": row["uri"]} | (fake if row["label"] == "fake" else real) for row in rows
    ]
    run(base, written(folder / "mine.csv", told), folder / "head")
    data = load_card(folder / "head" / "card.yaml").training_data
    assert (data.generators, data.sources, data.complete) == seen


def kept(features):
    """When each file of features was written."""
    return {path: path.stat().st_mtime_ns for path in features.rglob("*.npz")}


def test_a_second_fit_computes_only_features_of_new_images(archive):
    folder, base, rows = archive
    labels = written(folder / "mine.csv", rows)
    run(base, labels, folder / "head")
    before = kept(folder / "head" / "features")
    run(base, labels, folder / "head", "--classifier", "logistic", "--name", "second")
    assert kept(folder / "head" / "features") == before
    assert load_card(folder / "head" / "card.yaml").name == "second"

    pixels = np.random.default_rng(1).integers(0, 99, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "new.png")
    more = written(folder / "more.csv", [*rows, {"uri": "images/new.png", "label": "real"}])
    run(base, more, folder / "other", "--features", str(folder / "head" / "features"))
    (new,) = kept(folder / "head" / "features").keys() - before.keys()
    with np.load(new) as block:
        assert len(block["features"]) == 1
    assert not (folder / "other" / "features").exists()


def test_a_fit_imports_neither_ray_nor_transformers(archive):
    folder, base, rows = archive
    words = [str(base), str(written(folder / "mine.csv", rows)), "--out", str(folder / "head")]
    script = f"""
import sys
from ray_app.cli.main import main
assert main(["detectors", "fit", *{words!r}]) == 0
print(*{{"ray", "transformers"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_what_cannot_be_read_is_told_and_counted(archive, capsys):
    folder, base, rows = archive
    (folder / "images" / "0.png").write_bytes(b"")
    (folder / "images" / "1.png").write_bytes(b"not an image at all")
    rows.append({"uri": "images/absent.png", "label": "fake"})
    rows.append(dict(rows[5]))
    assert run(base, written(folder / "mine.csv", rows), folder / "head") == 0
    captured = capsys.readouterr()
    assert "3 of 26 images could not be read" in captured.err
    assert "1 of 26 rows repeat an image" in captured.err
    for name, status in (
        ("0", "empty_file"),
        ("1", "unsupported_format"),
        ("absent", "source_missing"),
    ):
        assert any(f"{name}.png" in line and status in line for line in captured.err.splitlines())
    assert "11 real and 11 fake" in captured.out


def no_fake_readable(folder, rows):
    for row in rows[1::2]:
        (folder / row["uri"]).write_bytes(b"")
    return rows


@pytest.mark.parametrize(
    ("spoil", "more", "said"),
    [
        (no_fake_readable, [], "0 fake"),
        (
            lambda folder, rows: [*rows, rows[0] | {"label": "fake"}],
            [],
            "labelled both real and fake",
        ),
        (lambda folder, rows: rows, ["--name", "My Head!"], "--name"),
    ],
    ids=["one class that can be read", "two labels", "no name of a card"],
)
def test_a_fit_that_cannot_be_is_refused_and_leaves_no_head(archive, spoil, more, said):
    folder, base, rows = archive
    with pytest.raises(ConfigError, match=said):
        run(base, written(folder / "mine.csv", spoil(folder, rows)), folder / "head", *more)
    assert not (folder / "head" / "card.yaml").exists()


# ---- heads on foundation models, from an index


@pytest.fixture
def photos(archive, monkeypatch):
    """A folder with a labelled index.parquet, and an empty cache and home."""
    folder, _, rows = archive
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(folder / "home.yaml"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    families = [
        row | {"uri": f"../{row['uri']}", "source": f"s{index // 2}", "family": f"f{index // 4}"}
        for index, row in enumerate(rows)
    ]
    (folder / "photos").mkdir()
    written(folder / "photos" / "index.parquet", families)
    return folder


def unfitted(folder, name, **changes):
    """The shipped card with a small seeded backbone, as a file; its head is not there."""
    card = seeded_frozen(name, folder / "seeded")
    own = load_card(name).weights
    return write_card(
        card.model_copy(update={"weights": own} | changes),
        folder / f"{name.replace(':', '-')}.yaml",
    )


def test_two_commands_from_an_index_to_scores(photos, capsys, monkeypatch):
    card = unfitted(photos, "vfm-dinov3-convnext")
    assert main(["detectors", "fetch", str(card)]) == 0
    assert (
        "nobody publishes its head; fit one: touchstone detectors fit vfm-dinov3-convnext"
        in capsys.readouterr().err
    )
    with pytest.raises(DetectorError, match="no weights of its head") as missing:
        load_detector(card)
    assert "touchstone detectors fit vfm-dinov3-convnext LABELS --install" in missing.value.hint
    monkeypatch.chdir(photos)
    assert main(["detectors", "fit", str(card), "photos", "--install"]) == 0
    told = capsys.readouterr().out
    assert "12 real and 12 fake" in told
    # families, not the 12 sources
    assert "saw neither it nor any other of its group, of which there are 6" in told
    fitted = load_card(photos / "heads/vfm-dinov3-convnext/card.yaml")
    assert (fitted.name, fitted.training_data.name) == (
        "vfm-dinov3-convnext-logistic",
        "index.parquet",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    assert np.array_equal(load_detector(card).score(pixels), load_detector(fitted).score(pixels))
    assert main(["detectors", "verify", str(card)]) == 0


def test_verify_of_a_card_whose_head_nobody_fitted_says_so_and_checks_the_backbone(photos, capsys):
    card = unfitted(photos, "vfm-pe-l14")
    assert main(["detectors", "verify", str(card)]) == 0
    out = capsys.readouterr().out
    assert "present     skipped  no head is fitted yet" in out
    assert "keys        ok       perception-encoder-l14: all " in out


def test_terms_are_accepted_once_for_backbone_and_head(photos, monkeypatch):
    monkeypatch.chdir(photos)
    card = unfitted(photos, "vfm-metaclip2-h14", terms="non-commercial")
    assert main(["detectors", "fit", str(card), "photos"]) == 4
    assert not (photos / "heads").exists()
    assert main(["detectors", "fit", str(card), "photos", "--accept-licence", str(card)]) == 0
    licences.require_accepted(load_card(photos / "heads/vfm-metaclip2-h14/card.yaml"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one file of labelled images"),
        (["photos", "--folds", "scene"], "no such column"),
        (["photos", "--install"], "a head of its own"),
    ],
)
def test_what_does_not_go_together_is_refused(
    photos, archive, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(photos)
    assert main(["detectors", "fit", str(archive[1]), *arguments]) == 2
    assert said in capsys.readouterr().err
